//! What a data plane tells control.

use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

use super::codec::{DecodeError, Fields, Writer, push};
use crate::id::{ClusterId, Epoch, Generation, InstanceId};
use crate::limits::{LABELS_MAX, REPORT_ENTRIES_MAX};
use crate::token::Digest;
use crate::wire::Reader;

const REPORT_DOMAIN: &[u8] = b"culvert-report/1\0";
const ACK_DOMAIN: &[u8] = b"culvert-ack/1\0";

/// What a data plane has and carries. Sent at subscription, then on change and every few seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The generation it serves; 0 = none.
    pub generation: Generation,
    /// Which data plane; stable over restarts.
    pub dataplane_id: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// When it started, wall clock ms.
    pub started_unix_ms: u64,
    /// Whether it is about to stop.
    pub draining: bool,
    /// Every live session.
    pub sessions: Vec<SessionFact>,
    /// Tokens seen since the last report.
    pub token_uses: Vec<TokenUse>,
    /// Tokens that agents have stored since the last report.
    pub rotated: Vec<RotatedFact>,
}

/// One live session (C-35).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFact {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its agent process.
    pub instance: InstanceId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Accepted at, wall clock ms.
    pub connected_unix_ms: u64,
    /// Last byte received at, wall clock ms.
    pub last_seen_unix_ms: u64,
    /// Round trip of the carrier, ms; 0 = not known.
    pub rtt_ms: u32,
    /// Streams open now.
    pub streams: u32,
    /// Word of [`crate::hello::CarrierKind`].
    pub protocol: Arc<str>,
    /// The agent's version.
    pub version: Arc<str>,
    /// Where the agent runs.
    pub region: Arc<str>,
    /// The agent's address as seen by the data plane.
    pub address: Arc<str>,
    /// Public id of the token it came with.
    pub token_id: Arc<str>,
    /// Labels of the agent.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// Whether it takes no new streams.
    pub draining: bool,
}

/// A token was presented and accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUse {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its public id.
    pub token_id: Arc<str>,
    /// When last, wall clock ms.
    pub last_used_unix_ms: u64,
}

/// An agent stored a new token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotatedFact {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The agent process.
    pub instance: InstanceId,
    /// SHA-256 of the stored token.
    pub digest: Digest,
}

/// A data plane took a generation into use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Which.
    pub generation: Generation,
}

mod field {
    pub(super) const GENERATION: u8 = 1;
    pub(super) const DATAPLANE_ID: u8 = 2;
    pub(super) const VERSION: u8 = 3;
    pub(super) const STARTED: u8 = 4;
    pub(super) const DRAINING: u8 = 5;
    pub(super) const SESSION: u8 = 6;
    pub(super) const TOKEN_USE: u8 = 7;
    pub(super) const ROTATED: u8 = 8;
}

mod session {
    pub(super) const CLUSTER: u8 = 1;
    pub(super) const INSTANCE: u8 = 2;
    pub(super) const EPOCH: u8 = 3;
    pub(super) const CONNECTED: u8 = 4;
    pub(super) const LAST_SEEN: u8 = 5;
    pub(super) const RTT_MS: u8 = 6;
    pub(super) const STREAMS: u8 = 7;
    pub(super) const PROTOCOL: u8 = 8;
    pub(super) const VERSION: u8 = 9;
    pub(super) const REGION: u8 = 10;
    pub(super) const ADDRESS: u8 = 11;
    pub(super) const TOKEN_ID: u8 = 12;
    pub(super) const LABEL: u8 = 13;
    pub(super) const DRAINING: u8 = 14;
}

/// Fields of token uses, rotated facts and labels.
mod fact {
    pub(super) const CLUSTER: u8 = 1;
    pub(super) const TOKEN_ID: u8 = 2;
    pub(super) const LAST_USED: u8 = 3;
    pub(super) const INSTANCE: u8 = 2;
    pub(super) const DIGEST: u8 = 3;
    pub(super) const KEY: u8 = 1;
    pub(super) const VALUE: u8 = 2;
}

impl Report {
    /// The report's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(REPORT_DOMAIN);
        out.u64(field::GENERATION, self.generation.0);
        out.text(field::DATAPLANE_ID, &self.dataplane_id);
        out.text(field::VERSION, &self.version);
        out.u64(field::STARTED, self.started_unix_ms);
        out.u8(field::DRAINING, u8::from(self.draining));
        for session in &self.sessions {
            out.bytes(field::SESSION, &write_session(session));
        }
        for used in &self.token_uses {
            let mut nested = Writer::nested();
            nested.text(fact::CLUSTER, used.cluster.as_str());
            nested.text(fact::TOKEN_ID, &used.token_id);
            nested.u64(fact::LAST_USED, used.last_used_unix_ms);
            out.bytes(field::TOKEN_USE, &nested.finish());
        }
        for rotated in &self.rotated {
            let mut nested = Writer::nested();
            nested.text(fact::CLUSTER, rotated.cluster.as_str());
            nested.bytes(fact::INSTANCE, &rotated.instance.0);
            nested.bytes(fact::DIGEST, &rotated.digest.0);
            out.bytes(field::ROTATED, &nested.finish());
        }
        Bytes::from(out.finish())
    }

    /// Reads a report.
    pub fn decode(body: &[u8]) -> Result<Report, DecodeError> {
        let mut fields = Fields::open("report", field::ROTATED, REPORT_DOMAIN, body)?;
        let mut read = Report::default();
        let lists = [field::SESSION, field::TOKEN_USE, field::ROTATED];
        while let Some((field, value)) = fields.next(&lists)? {
            match field {
                field::GENERATION => read.generation = Generation(fields.u64(field, value)?),
                field::DATAPLANE_ID => read.dataplane_id = fields.text(field, value)?,
                field::VERSION => read.version = fields.text(field, value)?,
                field::STARTED => read.started_unix_ms = fields.u64(field, value)?,
                field::DRAINING => read.draining = fields.flag(field, value)?,
                field::SESSION => {
                    push(
                        &mut read.sessions,
                        read_session(value)?,
                        "sessions",
                        REPORT_ENTRIES_MAX,
                    )?;
                }
                field::TOKEN_USE => {
                    let used = read_token_use(value)?;
                    push(&mut read.token_uses, used, "token uses", REPORT_ENTRIES_MAX)?;
                }
                field::ROTATED => {
                    push(
                        &mut read.rotated,
                        read_rotated(value)?,
                        "rotated",
                        REPORT_ENTRIES_MAX,
                    )?;
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

impl Ack {
    /// The acknowledgement's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(ACK_DOMAIN);
        out.u64(1, self.generation.0);
        Bytes::from(out.finish())
    }

    /// Reads an acknowledgement.
    pub fn decode(body: &[u8]) -> Result<Ack, DecodeError> {
        let mut fields = Fields::open("ack", 1, ACK_DOMAIN, body)?;
        let mut read = Ack::default();
        while let Some((field, value)) = fields.next(&[])? {
            if field == 1 {
                read.generation = Generation(fields.u64(field, value)?);
            }
        }
        Ok(read)
    }
}

impl SessionFact {
    /// A fact that names the session and nothing more.
    pub fn new(cluster: ClusterId, instance: InstanceId, epoch: Epoch) -> Self {
        let none: Arc<str> = Arc::from("");
        SessionFact {
            cluster,
            instance,
            epoch,
            connected_unix_ms: 0,
            last_seen_unix_ms: 0,
            rtt_ms: 0,
            streams: 0,
            protocol: none.clone(),
            version: none.clone(),
            region: none.clone(),
            address: none.clone(),
            token_id: none,
            labels: Vec::new(),
            draining: false,
        }
    }
}

fn write_session(fact: &SessionFact) -> Vec<u8> {
    let mut out = Writer::nested();
    out.text(session::CLUSTER, fact.cluster.as_str());
    out.bytes(session::INSTANCE, &fact.instance.0);
    out.u64(session::EPOCH, fact.epoch.0);
    out.u64(session::CONNECTED, fact.connected_unix_ms);
    out.u64(session::LAST_SEEN, fact.last_seen_unix_ms);
    out.u32(session::RTT_MS, fact.rtt_ms);
    out.u32(session::STREAMS, fact.streams);
    out.text(session::PROTOCOL, &fact.protocol);
    out.text(session::VERSION, &fact.version);
    out.text(session::REGION, &fact.region);
    out.text(session::ADDRESS, &fact.address);
    out.text(session::TOKEN_ID, &fact.token_id);
    for (key, value) in &fact.labels {
        let mut nested = Writer::nested();
        nested.text(fact::KEY, key);
        nested.text(fact::VALUE, value);
        out.bytes(session::LABEL, &nested.finish());
    }
    out.u8(session::DRAINING, u8::from(fact.draining));
    out.finish()
}

fn read_session(value: Reader<'_>) -> Result<SessionFact, DecodeError> {
    let mut fields = Fields::nested("session", session::DRAINING, value);
    let Some((session::CLUSTER, cluster)) = fields.next(&[])? else {
        return Err(fields.error(session::CLUSTER));
    };
    let cluster = fields.cluster_id(session::CLUSTER, cluster)?;
    let Some((session::INSTANCE, instance)) = fields.next(&[])? else {
        return Err(fields.error(session::INSTANCE));
    };
    let instance = InstanceId(fields.exact(session::INSTANCE, instance)?);
    let mut read = SessionFact::new(cluster, instance, Epoch(0));
    while let Some((field, value)) = fields.next(&[session::LABEL])? {
        match field {
            session::EPOCH => read.epoch = Epoch(fields.u64(field, value)?),
            session::CONNECTED => read.connected_unix_ms = fields.u64(field, value)?,
            session::LAST_SEEN => read.last_seen_unix_ms = fields.u64(field, value)?,
            session::RTT_MS => read.rtt_ms = fields.u32(field, value)?,
            session::STREAMS => read.streams = fields.u32(field, value)?,
            session::PROTOCOL => read.protocol = fields.text(field, value)?,
            session::VERSION => read.version = fields.text(field, value)?,
            session::REGION => read.region = fields.text(field, value)?,
            session::ADDRESS => read.address = fields.text(field, value)?,
            session::TOKEN_ID => read.token_id = fields.text(field, value)?,
            session::LABEL => push(&mut read.labels, read_label(value)?, "labels", LABELS_MAX)?,
            session::DRAINING => read.draining = fields.flag(field, value)?,
            _ => {}
        }
    }
    Ok(read)
}

fn read_label(value: Reader<'_>) -> Result<(Arc<str>, Arc<str>), DecodeError> {
    let mut fields = Fields::nested("label", fact::VALUE, value);
    let (mut key, mut text) = (Arc::from(""), Arc::from(""));
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            fact::KEY => key = fields.text(field, value)?,
            fact::VALUE => text = fields.text(field, value)?,
            _ => {}
        }
    }
    Ok((key, text))
}

fn read_token_use(value: Reader<'_>) -> Result<TokenUse, DecodeError> {
    let mut fields = Fields::nested("token use", fact::LAST_USED, value);
    let (mut cluster, mut token_id, mut last_used_unix_ms) = (None, Arc::from(""), 0);
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            fact::CLUSTER => cluster = Some(fields.cluster_id(field, value)?),
            fact::TOKEN_ID => token_id = fields.text(field, value)?,
            fact::LAST_USED => last_used_unix_ms = fields.u64(field, value)?,
            _ => {}
        }
    }
    let cluster = cluster.ok_or(fields.error(fact::CLUSTER))?;
    Ok(TokenUse {
        cluster,
        token_id,
        last_used_unix_ms,
    })
}

fn read_rotated(value: Reader<'_>) -> Result<RotatedFact, DecodeError> {
    let mut fields = Fields::nested("rotated", fact::DIGEST, value);
    let (mut cluster, mut instance, mut digest) = (None, None, None);
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            fact::CLUSTER => cluster = Some(fields.cluster_id(field, value)?),
            fact::INSTANCE => instance = Some(InstanceId(fields.exact(field, value)?)),
            fact::DIGEST => digest = Some(Digest(fields.exact(field, value)?)),
            _ => {}
        }
    }
    Ok(RotatedFact {
        cluster: cluster.ok_or(fields.error(fact::CLUSTER))?,
        instance: instance.ok_or(fields.error(fact::INSTANCE))?,
        digest: digest.ok_or(fields.error(fact::DIGEST))?,
    })
}

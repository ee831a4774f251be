//! Encoding of snapshots and of the settings in them.

use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

use super::cluster::{read_cluster, write_cluster};
use super::codec::{DecodeError, Fields, Writer, push};
use super::sign_in::{read_end, read_sign_in, write_end, write_sign_in};
use super::{Ended, Settings, Snapshot};
use crate::id::Generation;
use crate::limits::{AGENT_CA_BYTES_MAX, AGENT_CAS_MAX, CLUSTERS_MAX, ENDED_SUBJECTS_MAX};
use crate::wire::Reader;

const SNAPSHOT_DOMAIN: &[u8] = b"culvert-snapshot/1\0";

mod field {
    pub(super) const GENERATION: u8 = 1;
    pub(super) const HUB_ID: u8 = 2;
    pub(super) const ISSUED: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const CLUSTER: u8 = 5;
    pub(super) const ENDED_FLOOR: u8 = 6;
    pub(super) const ENDED: u8 = 7;
}

mod settings {
    pub(super) const RATE: u8 = 1;
    pub(super) const SNAPSHOT_AGE_MAX: u8 = 2;
    pub(super) const SIGN_IN: u8 = 3;
    pub(super) const AGENT_CA: u8 = 4;
}

impl Snapshot {
    /// The bytes to sign and to send.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(SNAPSHOT_DOMAIN);
        out.u64(field::GENERATION, self.generation.0);
        out.text(field::HUB_ID, &self.hub_id);
        out.u64(field::ISSUED, self.issued_unix_ms);
        if self.settings != Settings::default() {
            out.bytes(field::SETTINGS, &write_settings(&self.settings));
        }
        for cluster in &self.clusters {
            out.bytes(field::CLUSTER, &write_cluster(cluster));
        }
        out.u64(field::ENDED_FLOOR, self.ended.floor_unix_ms);
        for (subject, epoch) in &self.ended.subjects {
            out.bytes(field::ENDED, &write_end(subject, *epoch));
        }
        Bytes::from(out.finish())
    }

    /// Reads a snapshot. Verify the signature over `body` first.
    pub fn decode(body: &[u8]) -> Result<Snapshot, DecodeError> {
        let mut fields = Fields::open("snapshot", field::ENDED, SNAPSHOT_DOMAIN, body)?;
        let mut read = Snapshot::default();
        let mut ended = Ended::default();
        while let Some((field, value)) = fields.next(&[field::CLUSTER, field::ENDED])? {
            match field {
                field::GENERATION => read.generation = Generation(fields.u64(field, value)?),
                field::HUB_ID => read.hub_id = fields.text(field, value)?,
                field::ISSUED => read.issued_unix_ms = fields.u64(field, value)?,
                field::SETTINGS => read.settings = read_settings(value)?,
                field::CLUSTER => {
                    let cluster = read_cluster(value)?;
                    let rises = read.clusters.last().is_none_or(|last| last.id < cluster.id);
                    fields.check(field, rises)?;
                    push(
                        &mut read.clusters,
                        Arc::new(cluster),
                        "clusters",
                        CLUSTERS_MAX,
                    )?;
                }
                field::ENDED_FLOOR => ended.floor_unix_ms = fields.u64(field, value)?,
                field::ENDED => {
                    let (subject, epoch) = read_end(value)?;
                    let last = ended.subjects.last_key_value();
                    fields.check(field, last.is_none_or(|(last, _)| *last < subject))?;
                    if ended.subjects.len() >= ENDED_SUBJECTS_MAX {
                        let (part, max) = ("ended sessions", ENDED_SUBJECTS_MAX);
                        return Err(DecodeError::TooMany { part, max });
                    }
                    ended.subjects.insert(subject, epoch);
                }
                _ => {}
            }
        }
        read.ended = Arc::new(ended);
        Ok(read)
    }
}

pub(super) fn write_settings(values: &Settings) -> Vec<u8> {
    let mut out = Writer::nested();
    out.u32(settings::RATE, values.rate_per_second);
    out.u32(settings::SNAPSHOT_AGE_MAX, values.snapshot_age_max_s);
    if let Some(sign_in) = &values.sign_in {
        out.bytes(settings::SIGN_IN, &write_sign_in(sign_in));
    }
    for ca in &values.agent_cas {
        out.bytes(settings::AGENT_CA, ca);
    }
    out.finish()
}

pub(super) fn read_settings(value: Reader<'_>) -> Result<Settings, DecodeError> {
    let mut fields = Fields::nested("settings", settings::AGENT_CA, value);
    let mut read = Settings::default();
    while let Some((field, mut value)) = fields.next(&[settings::AGENT_CA])? {
        match field {
            settings::RATE => read.rate_per_second = fields.u32(field, value)?,
            settings::SNAPSHOT_AGE_MAX => read.snapshot_age_max_s = fields.u32(field, value)?,
            settings::SIGN_IN => read.sign_in = Some(Arc::new(read_sign_in(value)?)),
            settings::AGENT_CA => {
                let ca = Bytes::copy_from_slice(value.rest());
                fields.check(field, (1..=AGENT_CA_BYTES_MAX).contains(&ca.len()))?;
                push(&mut read.agent_cas, ca, "agent CAs", AGENT_CAS_MAX)?;
            }
            _ => {}
        }
    }
    Ok(read)
}

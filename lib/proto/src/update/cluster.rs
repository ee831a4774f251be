//! Encoding of one cluster.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::access::{read_access, write_access};
use super::codec::{DecodeError, Fields, Writer, push};
use super::route::{self, read_route, write_route};
use super::{Access, ClusterState, Policy, Target, TargetKind, TokenHash};
use crate::id::{ClusterId, Epoch};
use crate::limits::{
    LABELS_MAX, PERSONAL_TOKENS_PER_CLUSTER_MAX, ROUTES_PER_CLUSTER_MAX, STREAMS_DEFAULT,
    TOKENS_PER_CLUSTER_MAX,
};
use crate::token::{Digest, TokenEntry};
use crate::wire::Reader;

mod field {
    pub(super) const ID: u8 = 1;
    pub(super) const DISABLED: u8 = 2;
    pub(super) const POLICY: u8 = 3;
    pub(super) const TOKEN: u8 = 4;
    pub(super) const EPOCH_FLOOR: u8 = 5;
    pub(super) const STREAMS_MAX: u8 = 6;
    pub(super) const REQUESTS_MAX: u8 = 7;
    pub(super) const RATE: u8 = 8;
    pub(super) const ALLOW_IMPERSONATION: u8 = 9;
    pub(super) const TARGET_KIND: u8 = 10;
    pub(super) const TARGET_ADDR: u8 = 11;
    pub(super) const NAME: u8 = 12;
    pub(super) const LABEL: u8 = 13;
    pub(super) const ROUTE: u8 = 14;
    pub(super) const PERSONAL_TOKEN: u8 = 15;
    pub(super) const ACCESS: u8 = 16;
    pub(super) const AUDIT_TUNNEL: u8 = 17;
    pub(super) const CERTIFICATES_FROM: u8 = 18;
}

mod token {
    pub(super) const DIGEST: u8 = 1;
    pub(super) const ID: u8 = 2;
    pub(super) const NOT_AFTER: u8 = 3;
}

mod label {
    pub(super) const KEY: u8 = 1;
    pub(super) const VALUE: u8 = 2;
}

impl ClusterState {
    /// A cluster with the defaults: enabled, no token, standard limits, any HTTP service.
    pub fn new(id: ClusterId) -> Self {
        ClusterState {
            id,
            enabled: true,
            policy: Policy::Spread,
            tokens: Vec::new(),
            epoch_floor: Epoch(0),
            streams_max: STREAMS_DEFAULT,
            requests_max: 0,
            rate_per_second: 0,
            allow_impersonation: false,
            target: Target::default(),
            name: None,
            labels: Vec::new(),
            routes: Vec::new(),
            personal_tokens: Vec::new(),
            access: Access::default(),
            audit_tunnel: false,
            certificates_from_unix_s: 0,
        }
    }

    /// Whether a data plane will read this cluster as it is: not more tokens or labels than
    /// allowed, no empty text where `None` is meant.
    pub fn check(&self) -> Result<(), DecodeError> {
        let encoded = write_cluster(self);
        match read_cluster(Reader::new(&encoded))? == *self {
            true => Ok(()),
            false => Err(DecodeError::Field {
                part: "cluster",
                field: 0,
            }),
        }
    }

    /// The cluster's tokens as entries of a [`crate::token::TokenIndex`].
    pub fn token_entries(&self) -> impl Iterator<Item = TokenEntry> {
        self.tokens.iter().map(|token| TokenEntry {
            digest: token.digest,
            cluster: self.id.clone(),
            token_id: token.id.clone(),
            not_after_unix_ms: token.not_after_unix_ms,
        })
    }
}

pub(super) fn write_cluster(cluster: &ClusterState) -> Vec<u8> {
    let mut out = Writer::nested();
    out.text(field::ID, cluster.id.as_str());
    out.u8(field::DISABLED, u8::from(!cluster.enabled));
    out.u8(field::POLICY, policy_code(cluster.policy));
    for token in &cluster.tokens {
        out.bytes(field::TOKEN, &write_token(token));
    }
    out.u64(field::EPOCH_FLOOR, cluster.epoch_floor.0);
    out.u32(field::STREAMS_MAX, cluster.streams_max);
    out.u32(field::REQUESTS_MAX, cluster.requests_max);
    out.u32(field::RATE, cluster.rate_per_second);
    out.u8(
        field::ALLOW_IMPERSONATION,
        u8::from(cluster.allow_impersonation),
    );
    out.u8(
        field::TARGET_KIND,
        u8::from(cluster.target.kind == TargetKind::Kube),
    );
    if let Some(addr) = &cluster.target.addr {
        out.text(field::TARGET_ADDR, addr);
    }
    if let Some(name) = &cluster.name {
        out.text(field::NAME, name);
    }
    for (key, value) in &cluster.labels {
        let mut nested = Writer::nested();
        nested.text(label::KEY, key);
        nested.text(label::VALUE, value);
        out.bytes(field::LABEL, &nested.finish());
    }
    for route in &cluster.routes {
        out.bytes(field::ROUTE, &write_route(route));
    }
    for token in &cluster.personal_tokens {
        out.bytes(field::PERSONAL_TOKEN, &route::write_token(token));
    }
    if cluster.access != Access::default() {
        out.bytes(field::ACCESS, &write_access(&cluster.access));
    }
    out.u8(field::AUDIT_TUNNEL, u8::from(cluster.audit_tunnel));
    out.u64(field::CERTIFICATES_FROM, cluster.certificates_from_unix_s);
    out.finish()
}

fn write_token(hash: &TokenHash) -> Vec<u8> {
    let mut out = Writer::nested();
    out.bytes(token::DIGEST, &hash.digest.0);
    out.text(token::ID, &hash.id);
    out.u64(
        token::NOT_AFTER,
        hash.not_after_unix_ms.map_or(0, |at| at.max(1)),
    );
    out.finish()
}

pub(super) fn read_cluster(value: Reader<'_>) -> Result<ClusterState, DecodeError> {
    let mut fields = Fields::nested("cluster", field::CERTIFICATES_FROM, value);
    let Some((field::ID, id)) = fields.next(&[])? else {
        return Err(fields.error(field::ID));
    };
    let mut read = ClusterState::new(fields.cluster_id(field::ID, id)?);
    read.streams_max = 0;
    let lists = [
        field::TOKEN,
        field::LABEL,
        field::ROUTE,
        field::PERSONAL_TOKEN,
    ];
    while let Some((field, value)) = fields.next(&lists)? {
        match field {
            field::DISABLED => read.enabled = !fields.flag(field, value)?,
            field::POLICY => {
                let code = fields.u8(field, value)?;
                read.policy = policy_of(code).ok_or(fields.error(field))?;
            }
            field::TOKEN => {
                let hash = read_token(value)?;
                push(&mut read.tokens, hash, "tokens", TOKENS_PER_CLUSTER_MAX)?;
            }
            field::EPOCH_FLOOR => read.epoch_floor = Epoch(fields.u64(field, value)?),
            field::STREAMS_MAX => read.streams_max = fields.u32(field, value)?,
            field::REQUESTS_MAX => read.requests_max = fields.u32(field, value)?,
            field::RATE => read.rate_per_second = fields.u32(field, value)?,
            field::ALLOW_IMPERSONATION => read.allow_impersonation = fields.flag(field, value)?,
            field::TARGET_KIND => {
                fields.flag(field, value)?;
                read.target.kind = TargetKind::Kube;
            }
            field::TARGET_ADDR => read.target.addr = Some(fields.text(field, value)?),
            field::NAME => read.name = Some(fields.text(field, value)?),
            field::LABEL => push(&mut read.labels, read_label(value)?, "labels", LABELS_MAX)?,
            field::ROUTE => {
                let route = read_route(value)?;
                push(&mut read.routes, route, "routes", ROUTES_PER_CLUSTER_MAX)?;
            }
            field::PERSONAL_TOKEN => {
                let token = route::read_token(value)?;
                let max = PERSONAL_TOKENS_PER_CLUSTER_MAX;
                push(&mut read.personal_tokens, token, "personal tokens", max)?;
            }
            field::ACCESS => {
                read.access = read_access(value)?;
                fields.check(field, read.access != Access::default())?;
            }
            field::AUDIT_TUNNEL => read.audit_tunnel = fields.flag(field, value)?,
            field::CERTIFICATES_FROM => {
                read.certificates_from_unix_s = fields.u64(field, value)?;
            }
            _ => {}
        }
    }
    Ok(read)
}

fn read_token(value: Reader<'_>) -> Result<TokenHash, DecodeError> {
    let mut fields = Fields::nested("token", token::NOT_AFTER, value);
    let (mut digest, mut id, mut not_after_unix_ms) = (None, Arc::from(""), None);
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            token::DIGEST => digest = Some(Digest(fields.exact(field, value)?)),
            token::ID => id = fields.text(field, value)?,
            token::NOT_AFTER => not_after_unix_ms = Some(fields.u64(field, value)?),
            _ => {}
        }
    }
    let digest = digest.ok_or(fields.error(token::DIGEST))?;
    Ok(TokenHash {
        digest,
        id,
        not_after_unix_ms,
    })
}

fn read_label(value: Reader<'_>) -> Result<(Arc<str>, Arc<str>), DecodeError> {
    let mut fields = Fields::nested("label", label::VALUE, value);
    let (mut key, mut text) = (Arc::from(""), Arc::from(""));
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            label::KEY => key = fields.text(field, value)?,
            label::VALUE => text = fields.text(field, value)?,
            _ => {}
        }
    }
    Ok((key, text))
}

fn policy_code(policy: Policy) -> u8 {
    match policy {
        Policy::Spread => 0,
        Policy::Replace => 1,
        Policy::Refuse => 2,
    }
}

fn policy_of(code: u8) -> Option<Policy> {
    match code {
        1 => Some(Policy::Replace),
        2 => Some(Policy::Refuse),
        _ => None,
    }
}

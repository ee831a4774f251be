//! What every store does; one conformance suite holds both to it.

use std::pin::Pin;

use culvert_audit::Record;
use culvert_proto::id::Generation;
use culvert_proto::token::Digest;

use super::error::RowError;
use super::{Loaded, Step, Touch};
use crate::audit::{Entry, Filter, Recorded};
use crate::cluster::Cluster;
use crate::connect::ConnectRequest;
use crate::enrol::{AgentCa, EnrolToken};
use crate::identity::ApiToken;
use crate::license::LicenseRecord;

/// A call of a store on its way.
pub(super) type Done<'a, T> = Pin<Box<dyn Future<Output = Result<T, RowError>> + Send + 'a>>;

/// The right to record the next change. Dropped, it is given back.
pub struct Claim(pub(super) Option<sqlx::Transaction<'static, sqlx::Postgres>>);

/// What other processes recorded since.
pub enum News {
    /// Nobody else writes here.
    Alone,
    /// Their changes, as they are at this generation.
    Changed(Generation, Vec<Step>),
    /// Too much: everything as it is now, at this generation.
    All(Generation, Vec<Cluster>),
}

/// A store.
pub(super) trait Backend: Send + Sync {
    fn kind(&self) -> &'static str;
    /// Makes the hub's row where there is none, and reads everything.
    fn load(&self, now_ms: u64) -> Done<'_, Loaded>;
    fn claim(&self, held: Generation) -> Done<'_, (Claim, News)>;
    fn record<'a>(
        &'a self,
        claim: Claim,
        steps: &'a [Step],
        generation: Generation,
        entries: &'a [Entry],
    ) -> Done<'a, ()>;
    fn changed(&self) -> Pin<Box<dyn Future<Output = Option<Generation>> + Send + '_>>;
    fn generation(&self) -> Done<'_, Generation>;
    fn append_audit<'a>(&'a self, entry: &'a Entry) -> Done<'a, ()>;
    /// Adds records that are not there yet and answers their rows.
    fn take_events<'a>(&'a self, records: &'a [Record]) -> Done<'a, Vec<Recorded>>;
    fn audit<'a>(&'a self, filter: &'a Filter) -> Done<'a, (Vec<Recorded>, u64)>;
    /// Rows behind `seq`, oldest first, [`Filter::limit`] at most.
    fn audit_since<'a>(&'a self, filter: &'a Filter, seq: i64) -> Done<'a, Vec<Recorded>>;
    /// The number of the newest row; 0 where there is none.
    fn audit_newest(&self) -> Done<'_, i64>;
    fn prune_audit(&self, before_unix_ms: Option<u64>, bytes_max: Option<u64>) -> Done<'_, u64>;
    fn touch<'a>(&'a self, touched: &'a [Touch]) -> Done<'a, ()>;
    fn save_license<'a>(
        &'a self,
        record: &'a LicenseRecord,
        entry: Option<&'a Entry>,
    ) -> Done<'a, ()>;
    fn api_tokens(&self) -> Done<'_, Vec<ApiToken>>;
    fn api_token<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<ApiToken>>;
    fn add_api_token<'a>(
        &'a self,
        token: &'a ApiToken,
        most: u64,
        entry: &'a Entry,
    ) -> Done<'a, u64>;
    fn remove_api_token<'a>(&'a self, id: &'a str, entry: &'a Entry) -> Done<'a, bool>;
    fn add_connect_request<'a>(
        &'a self,
        request: &'a ConnectRequest,
        most: (u64, u64),
    ) -> Done<'a, (u64, u64)>;
    fn connect_request<'a>(&'a self, id: &'a str) -> Done<'a, Option<ConnectRequest>>;
    fn connect_requests(&self, now_ms: u64) -> Done<'_, Vec<ConnectRequest>>;
    fn session_epoch<'a>(&'a self, subject: &'a str) -> Done<'a, u64>;
    fn ended_sessions(&self, since_unix_ms: u64) -> Done<'_, Vec<(String, u64)>>;
    /// Oldest first.
    fn agent_cas(&self) -> Done<'_, Vec<AgentCa>>;
    fn agent_ca_signed<'a>(&'a self, id: &'a str, until_unix_s: u64) -> Done<'a, bool>;
    fn add_enrol_token<'a>(
        &'a self,
        token: &'a EnrolToken,
        most: u64,
        entry: &'a Entry,
    ) -> Done<'a, u64>;
    fn take_enrol_token<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<EnrolToken>>;
    fn prune_enrol_tokens(&self, now_ms: u64) -> Done<'_, u64>;
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

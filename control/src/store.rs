//! Durable state: SQLite by default, PostgreSQL where several control processes
//! share it (R-24, P-33).
//!
//! Everything is read once at start; afterwards the store only records what
//! was decided. Each change raises the generation in the same transaction.

mod backend;
mod dsn;
mod error;
mod lock;
pub mod migrate;
#[expect(
    clippy::duplicate_mod,
    reason = "the SQL that both engines understand is compiled for each"
)]
mod postgres;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use culvert_audit::Record;
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::token::Digest;
use tokio::time::timeout;

use crate::audit::{Entry, Filter, Recorded};
use crate::cluster::Cluster;
use crate::connect::{ConnectRequest, Stage};
use crate::enrol::{AgentCa, EnrolToken};
use crate::identity::ApiToken;
use crate::license::LicenseRecord;

use backend::{Backend, Done};
pub use backend::{Claim, News};
pub use dsn::Dsn;
pub use error::StoreError;

/// A call that takes longer fails.
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// The open store.
pub struct Store {
    backend: Box<dyn Backend>,
    place: String,
}

/// A change from one generation to the next.
#[derive(Clone)]
pub enum Step {
    /// The cluster as it is now.
    Put(Arc<Cluster>),
    /// It is gone.
    Remove(ClusterId),
    /// Every session of the subject below the epoch ends.
    End {
        /// Whose.
        subject: String,
        /// When it ended, milliseconds since 1970.
        epoch: u64,
    },
    /// A request to connect stands elsewhere. Data planes do not hear of it.
    Decide {
        /// As it is now.
        request: Box<ConnectRequest>,
        /// Where it stood.
        before: Stage,
    },
    /// The CA of agents is so.
    AgentCa(AgentCa),
    /// It is gone.
    DropAgentCa(String),
}

/// What the store held when it was opened.
pub struct Loaded {
    /// Names this hub; made with the store.
    pub hub_id: String,
    /// The generation published last.
    pub generation: Generation,
    /// Every cluster, by id.
    pub clusters: Vec<Cluster>,
    /// What is kept of the licence.
    pub license: LicenseRecord,
}

/// When a credential or a cluster was last used, for [`Store::touch`].
pub struct Touch {
    /// The cluster.
    pub cluster: ClusterId,
    /// When an agent was last connected, if one was.
    pub last_connected_unix_ms: Option<u64>,
    /// Ids of tokens and when they were last used.
    pub tokens: Vec<(String, u64)>,
}

impl Step {
    /// Which cluster changes, if one does.
    #[must_use]
    pub fn id(&self) -> Option<&ClusterId> {
        match self {
            Self::Put(cluster) => Some(&cluster.id),
            Self::Remove(id) => Some(id),
            Self::End { .. } | Self::Decide { .. } | Self::AgentCa(_) | Self::DropAgentCa(_) => {
                None
            }
        }
    }
}

impl Store {
    /// Opens or makes the store, brings its schema up to date and reads it.
    ///
    /// # Errors
    /// [`StoreError`], naming the store and what to do.
    pub async fn open(dsn: &Dsn, now_ms: u64) -> Result<(Self, Loaded), StoreError> {
        let place = dsn.place();
        let backend: Box<dyn Backend> = match dsn {
            Dsn::Sqlite(path) => Box::new(sqlite::Sqlite::open(path).await?),
            Dsn::Postgres(params) => Box::new(postgres::Postgres::open(params, &place).await?),
        };
        let loaded = backend.load(now_ms).await.map_err(|why| why.at(&place))?;
        Ok((Self { backend, place }, loaded))
    }

    /// Which kind of store it is: `sqlite` or `postgres`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.backend.kind()
    }

    /// Whether other processes may record in it too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.kind() == "postgres"
    }

    /// The right to record the next change, where other processes record too, and
    /// what they recorded after `held`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim(&self, held: Generation) -> Result<(Claim, News), StoreError> {
        self.bounded(self.backend.claim(held)).await
    }

    /// Records `generation`: what changed, and the rows that say who changed it.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was recorded.
    pub async fn record(
        &self,
        claim: Claim,
        steps: &[Step],
        generation: Generation,
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        self.bounded(self.backend.record(claim, steps, generation, entries))
            .await
    }

    /// Waits until a change was recorded, by this process or another, and says which;
    /// `None` = some may have been missed.
    pub async fn changed(&self) -> Option<Generation> {
        self.backend.changed().await
    }

    /// Records a row of the audit log that belongs to no change.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn append_audit(&self, entry: &Entry) -> Result<(), StoreError> {
        self.bounded(self.backend.append_audit(entry)).await
    }

    /// Records requests that a data plane audited, those that are not there yet, as one;
    /// answers their rows.
    ///
    /// # Errors
    /// [`StoreError`]; then it holds none of them, or all: send them again.
    pub async fn take_events(&self, records: &[Record]) -> Result<Vec<Recorded>, StoreError> {
        self.bounded(self.backend.take_events(records)).await
    }

    /// Rows of the audit log behind `seq`, oldest first, at most [`Filter::limit`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit_since(
        &self,
        filter: &Filter,
        seq: i64,
    ) -> Result<Vec<Recorded>, StoreError> {
        self.bounded(self.backend.audit_since(filter, seq)).await
    }

    /// The number of the newest row of the audit log; 0 where there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit_newest(&self) -> Result<i64, StoreError> {
        self.bounded(self.backend.audit_newest()).await
    }

    /// Rows of the audit log, newest first, and how many match.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit(&self, filter: &Filter) -> Result<(Vec<Recorded>, u64), StoreError> {
        self.bounded(self.backend.audit(filter)).await
    }

    /// Deletes some audit rows that are older than `before_unix_ms`, or else the
    /// oldest while the store holds more than `bytes_max`. 0 = nothing is left to delete.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prune_audit(
        &self,
        before_unix_ms: Option<u64>,
        bytes_max: Option<u64>,
    ) -> Result<u64, StoreError> {
        self.bounded(self.backend.prune_audit(before_unix_ms, bytes_max))
            .await
    }

    /// Records when clusters and tokens were last used. Not part of the history.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touch(&self, touched: &[Touch]) -> Result<(), StoreError> {
        self.bounded(self.backend.touch(touched)).await
    }

    /// Records what is kept of the licence, with the row that says why.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn save_license(
        &self,
        record: &LicenseRecord,
        entry: Option<&Entry>,
    ) -> Result<(), StoreError> {
        self.bounded(self.backend.save_license(record, entry)).await
    }

    /// Every API token, by id; expired ones too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn api_tokens(&self) -> Result<Vec<ApiToken>, StoreError> {
        self.bounded(self.backend.api_tokens()).await
    }

    /// The API token of this digest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn api_token(&self, digest: &Digest) -> Result<Option<ApiToken>, StoreError> {
        self.bounded(self.backend.api_token(digest)).await
    }

    /// Adds an API token with the row that says who did it; expired ones go. Answers how many
    /// there are then: over `most` nothing was done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_api_token(
        &self,
        token: &ApiToken,
        most: u64,
        entry: &Entry,
    ) -> Result<u64, StoreError> {
        self.bounded(self.backend.add_api_token(token, most, entry))
            .await
    }

    /// Removes an API token; whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_api_token(&self, id: &str, entry: &Entry) -> Result<bool, StoreError> {
        self.bounded(self.backend.remove_api_token(id, entry)).await
    }

    /// Adds a request to connect; those that are long over go. Answers how many wait then, of its
    /// address and in all: over `most` nothing was done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_connect_request(
        &self,
        request: &ConnectRequest,
        most: (u64, u64),
    ) -> Result<(u64, u64), StoreError> {
        self.bounded(self.backend.add_connect_request(request, most))
            .await
    }

    /// The request to connect of this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connect_request(&self, id: &str) -> Result<Option<ConnectRequest>, StoreError> {
        self.bounded(self.backend.connect_request(id)).await
    }

    /// Requests to connect that are not over, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connect_requests(&self, now_ms: u64) -> Result<Vec<ConnectRequest>, StoreError> {
        self.bounded(self.backend.connect_requests(now_ms)).await
    }

    /// Sessions of `subject` below it are dead.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn session_epoch(&self, subject: &str) -> Result<u64, StoreError> {
        self.bounded(self.backend.session_epoch(subject)).await
    }

    /// Subjects whose sessions ended after `since_unix_ms`, with their epochs; the newest,
    /// and no more than are published.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ended_sessions(
        &self,
        since_unix_ms: u64,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        self.bounded(self.backend.ended_sessions(since_unix_ms))
            .await
    }

    /// The CAs of agents, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn agent_cas(&self) -> Result<Vec<AgentCa>, StoreError> {
        self.bounded(self.backend.agent_cas()).await
    }

    /// Notes that a CA signs a certificate that ends then. Whether it is still there: without
    /// it the certificate must not be given out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn agent_ca_signed(&self, id: &str, until_unix_s: u64) -> Result<bool, StoreError> {
        self.bounded(self.backend.agent_ca_signed(id, until_unix_s))
            .await
    }

    /// Adds a bootstrap token with the row that says who did it; expired ones go. Answers how
    /// many there are then: over `most` nothing was done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_enrol_token(
        &self,
        token: &EnrolToken,
        most: u64,
        entry: &Entry,
    ) -> Result<u64, StoreError> {
        self.bounded(self.backend.add_enrol_token(token, most, entry))
            .await
    }

    /// Takes a bootstrap token out, for whatever it is good: whoever gets it is the only one,
    /// over all processes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_enrol_token(
        &self,
        digest: &Digest,
    ) -> Result<Option<EnrolToken>, StoreError> {
        self.bounded(self.backend.take_enrol_token(digest)).await
    }

    /// Forgets bootstrap tokens that have ended; how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prune_enrol_tokens(&self, now_ms: u64) -> Result<u64, StoreError> {
        self.bounded(self.backend.prune_enrol_tokens(now_ms)).await
    }

    /// Closes the store; what was recorded is durable already.
    pub async fn close(&self) {
        self.backend.close().await;
    }

    /// The generation in the store, for a writer that does not know whether its last
    /// change was recorded.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn generation(&self) -> Result<Generation, StoreError> {
        self.bounded(self.backend.generation()).await
    }

    async fn bounded<T>(&self, call: Done<'_, T>) -> Result<T, StoreError> {
        match timeout(CALL_DEADLINE, call).await {
            Ok(done) => done.map_err(|why| why.at(&self.place)),
            Err(_) => Err(StoreError::Slow {
                path: self.place.clone().into(),
            }),
        }
    }
}

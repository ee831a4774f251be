//! What is recorded.

use std::fmt;

use culvert_proto::id::RequestId;

/// Groups of an actor that a record keeps.
pub const GROUPS_MAX: usize = 64;

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $code:literal, $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$what])* $variant,)* }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in rows, filters and metric labels.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The code in an encoded record; never used again for something else.
            #[must_use]
            pub fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)* }
            }

            /// The one of a code.
            #[must_use]
            pub fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words! {
    /// What a request does (P-19); what control itself does has words of its own.
    Verb {
        /// Something is written.
        Apply = 1, "apply",
        /// Something is deleted.
        Delete = 2, "delete",
        /// Something is set off: a `POST` to a subresource.
        Trigger = 3, "trigger",
        /// One Secret is read.
        SecretReveal = 4, "secret_reveal",
        /// An answer is larger than [`crate::BULK_BYTES`].
        BulkDownload = 5, "bulk_download",
        /// A way into a container opens.
        ExecOpen = 6, "exec_open",
        /// It ended.
        ExecClose = 7, "exec_close",
        /// A log is followed.
        LogOpen = 8, "log_open",
    }
}

words! {
    /// How it ended (P-19.1).
    Outcome {
        /// Done.
        Success = 1, "success",
        /// Refused: by the target with 401 or 403, or by a rule here.
        Denied = 2, "denied",
        /// It could not be done, or broke off.
        Failure = 3, "failure",
    }
}

/// Which record of an event: the store keeps one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Before it was forwarded.
    Attempted,
    /// Its result.
    Result,
    /// The end of what it opened.
    Close,
}

/// Names one audited request: a UUID, version 7, drawn by the data plane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub [u8; 16]);

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// Subject, or what stands for a machine.
    pub sub: String,
    /// Empty where there is none.
    pub email: String,
    /// At most [`GROUPS_MAX`] are kept.
    pub groups: Vec<String>,
}

/// What it is asked of; empty where a request names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of P-19.2")]
pub struct Resource {
    pub group: String,
    pub version: String,
    /// With the subresource, for example `pods/exec`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

/// A request that is about to be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// Which.
    pub id: EventId,
    /// Wall clock, ms.
    pub time_unix_ms: u64,
    /// The request's id.
    pub request_id: RequestId,
    /// What it does.
    pub verb: Verb,
    /// Who asks.
    pub actor: Actor,
    /// How it came in: `tunnel`, `browser`.
    pub transport: String,
    /// Method and path, without the query.
    pub route: String,
    /// Which cluster.
    pub cluster: String,
    /// What it is asked of.
    pub resource: Resource,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub id: EventId,
    /// Wall clock, ms.
    pub time_unix_ms: u64,
    /// As attempted, but for [`Verb::ExecClose`].
    pub verb: Verb,
    /// How.
    pub outcome: Outcome,
    /// What the client was answered; 0 = no head was sent.
    pub status: u16,
    /// The close reason's word.
    pub reason: String,
    /// Bytes of the body towards the service.
    pub to_service: u64,
    /// Bytes of the body towards the client.
    pub to_client: u64,
    /// From the attempt, ms.
    pub duration_ms: u64,
    /// [`Phase::Result`] of something that stays open: a [`Phase::Close`] follows.
    pub stays_open: bool,
}

/// One record of the spool.
#[expect(clippy::large_enum_variant, reason = "read and written one at a time")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A request is about to be forwarded.
    Attempted(Attempted),
    /// What became of it.
    Ended(Ended),
    /// At the begin of a segment: this event is open since an earlier one. Never shipped.
    Carried {
        /// Which.
        id: EventId,
        /// Its verb.
        verb: Verb,
        /// Its result is known, its end is not.
        has_result: bool,
    },
}

impl Ended {
    /// Which record of its event it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.verb {
            Verb::ExecClose => Phase::Close,
            _ => Phase::Result,
        }
    }
}

impl Record {
    /// Which event.
    #[must_use]
    pub fn id(&self) -> EventId {
        match self {
            Self::Attempted(attempted) => attempted.id,
            Self::Ended(ended) => ended.id,
            Self::Carried { id, .. } => *id,
        }
    }
}

impl Phase {
    /// The number in the store.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Attempted => 0,
            Self::Result => 1,
            Self::Close => 2,
        }
    }
}

impl EventId {
    /// A version 7 UUID from the wall clock and 10 random bytes.
    #[must_use]
    pub fn v7(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(RequestId::v7(unix_ms, random).0)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        RequestId(self.0).fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

//! What a person's token reaches in a cluster.

use culvert_proto::update::PersonalToken;

/// What a person's token reaches in one cluster, as control keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Personal {
    /// What data planes learn.
    pub token: PersonalToken,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
}

impl Personal {
    /// Whether it opens anything at `now_ms`.
    #[must_use]
    pub fn is_live(&self, now_ms: u64) -> bool {
        self.token.not_after_unix_ms.is_none_or(|end| now_ms < end)
    }
}

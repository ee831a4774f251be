//! How much somebody may do (P-18.1).

use serde::{Deserialize, Serialize};

/// Lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Sees.
    Read,
    /// Sees, and reads logs.
    Triage,
    /// Changes workloads.
    Write,
    /// Changes all of a cluster but rights.
    Maintain,
    /// Everything.
    Admin,
}

impl Tier {
    /// Every one, lowest first.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Triage,
        Self::Write,
        Self::Maintain,
        Self::Admin,
    ];

    /// The word in API, cookies and groups.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Triage => "triage",
            Self::Write => "write",
            Self::Maintain => "maintain",
            Self::Admin => "admin",
        }
    }

    /// The tier of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.as_str() == word)
    }

    /// The role that Radar connectors know for it (P-18.4).
    #[must_use]
    pub fn radar_role(self) -> &'static str {
        match self {
            Self::Admin | Self::Maintain => "owner",
            Self::Write | Self::Triage => "member",
            Self::Read => "viewer",
        }
    }
}

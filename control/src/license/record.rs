//! What the store keeps of the licence.

use culvert_licence::Ladder;

/// One row of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LicenseRecord {
    /// A renewed licence, used at the next boot.
    pub token: Option<String>,
    /// The time without a successful heartbeat.
    pub ladder: Ladder,
    /// The last success, milliseconds since 1970.
    pub last_success_unix_ms: Option<u64>,
}

//! Where audit records are kept until control has them.

use std::path::{Path, PathBuf};

use culvert_audit::SPOOL_BYTES_MIN;

use super::StateSource;
use crate::config::reader::Reader;
use crate::config::units;

/// Largest spool.
const SPOOL_BYTES_MAX: u64 = 1 << 40;

/// The audit spool.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// Its directory; `None` where there is no control that takes records, or no place.
    pub dir: Option<PathBuf>,
    /// Bytes that it may hold.
    pub spool_bytes: u64,
    /// What becomes of an audited request whose record cannot be kept.
    pub when_full: WhenFull,
}

/// What becomes of an audited request whose record cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused with 503.
    Refuse,
    /// It goes on, and is counted.
    Warn,
}

impl WhenFull {
    /// The words of the setting.
    const CHOICES: [(&'static str, Self); 2] = [("refuse", Self::Refuse), ("warn", Self::Warn)];
}

impl Reader<'_> {
    /// The spool; beside the copy of the state unless it has a place of its own.
    pub(super) fn audit(
        &mut self,
        state_dir: Option<&Path>,
        state: Option<&StateSource>,
    ) -> Option<AuditConfig> {
        let own = self.parse("audit-dir", |text| Ok(PathBuf::from(text)));
        let spool_bytes = self.parse("audit-spool-max", |text| match units::bytes(text)? {
            bytes if (SPOOL_BYTES_MIN..=SPOOL_BYTES_MAX).contains(&bytes) => Ok(bytes),
            _ => Err(format!("`{text}` is not from 8MiB to 1024GiB")),
        });
        let when_full = self.choice("audit-when-full", &WhenFull::CHOICES);
        let dir = own.or_else(|| state_dir.map(|dir| dir.join("audit")));
        let has_control = matches!(state, Some(StateSource::Control(_)));
        Some(AuditConfig {
            dir: dir.filter(|_| has_control),
            spool_bytes: spool_bytes?,
            when_full: when_full?,
        })
    }
}

//! The fields that every certificate of ours has.

use std::time::Duration;

use culvert_net::crypto::random_bytes;
use rcgen::{CertificateParams, DistinguishedName, DnType, SerialNumber, date_time_ymd};

/// Bytes of a random serial number.
const SERIAL_BYTES: usize = 16;
/// The last second that a certificate can name.
const LAST_S: u64 = 253_402_300_799;

/// A certificate of `subject` with a random serial number, valid as [`set_life`] says.
#[must_use]
pub fn params(subject: &str, now_unix_s: u64, backdate_s: u64, life_s: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    let mut serial = random_bytes::<SERIAL_BYTES>();
    // Positive, and of full length: some readers trim or sign-extend.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    set_life(&mut params, now_unix_s, backdate_s, life_s);
    params
}

/// Valid from `backdate_s` before now, since clocks differ, until `life_s` after it.
pub fn set_life(params: &mut CertificateParams, now_unix_s: u64, backdate_s: u64, life_s: u64) {
    let at = |unix_s: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_s.min(LAST_S));
    params.not_before = at(now_unix_s.saturating_sub(backdate_s));
    params.not_after = at(now_unix_s.saturating_add(life_s));
}

//! The vendor profile: every string of the vendor's that the contract fixes.
//! No other product code spells them.

/// `iss` of a licence.
pub const ISSUER: &str = "skyhook";
/// What `aud` of a licence includes.
pub const AUDIENCE: &str = "radar-hub";
/// The vendor's name of the setting that holds the licence.
pub const KEY_ENV: &str = "RADAR_HUB_LICENSE_KEY";
/// The vendor's name of the setting that holds the mode.
pub const MODE_ENV: &str = "RADAR_HUB_MODE";
/// The vendor's name of the setting that holds the organisation.
pub const ORG_ENV: &str = "RADAR_HUB_ORG_NAME";
/// Files that may hold the licence, the first that exists.
pub const FILES: [&str; 2] = ["/etc/radar-hub/license", "/etc/culvert/license"];
/// Where heartbeats go.
pub const HEARTBEAT_URL: &str = "https://api.radarhq.io/v1/license/heartbeat";
/// The mode that wants a licence.
pub const SELF_HOSTED: &str = "self-hosted";

/// The licence is good.
pub const LINE_VERIFIED: &str = "radar-hub: license verified";
/// It was good.
pub const LINE_EXPIRED: &str = "radar-hub: license is expired (warn-only - hub keeps serving)";
/// It is not believed.
pub const LINE_FAILED: &str = "radar-hub: license verification failed";
/// There is none.
pub const LINE_NONE: &str = "radar-hub: self-hosted mode but no RADAR_HUB_LICENSE_KEY (or \
     /etc/radar-hub/license) - running in unlicensed mode (warn-only banner)";
/// This build knows no key of the vendor's.
pub const LINE_PLACEHOLDER: &str = "radar-hub: embedded license public key is the all-zero \
     placeholder; rebuild with the real key before shipping to a customer";
/// The banner of a heartbeat that fails.
pub const BANNER_UNREACHABLE: &str = "Cannot reach license server";

//! What makers and readers of certificates share: keys of ECDSA on P-256, PEM, requests, and the
//! fields that every certificate of ours has.
//!
//! Floor 2. No I/O, no clock.
#![forbid(unsafe_code)]

mod key;
mod params;
mod pem;
mod request;

pub use key::{Key, KeyFault, is_p256};
pub use params::{params, set_life};
pub use pem::{base64, certificates, read_certificates};
pub use request::{CSR_BYTES_MAX, Request, RequestFault};

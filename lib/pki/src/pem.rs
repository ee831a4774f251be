//! PEM, as files and messages carry it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// Certificates in one text.
const CERTIFICATES_MAX: usize = 16;
const LINE_CHARACTERS: usize = 64;

/// Standard base64, as requests travel in JSON.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Certificates, one after the other.
#[must_use]
pub fn certificates<'a>(ders: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut out = String::new();
    for der in ders {
        write(&mut out, "CERTIFICATE", &STANDARD.encode(der));
    }
    out
}

/// All certificates of a text; `None` when one is damaged, there is none, or there are too many.
#[must_use]
pub fn read_certificates(text: &str) -> Option<Vec<Vec<u8>>> {
    let mut ders = Vec::new();
    for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
        if ders.len() == CERTIFICATES_MAX {
            return None;
        }
        ders.push(der.ok()?.to_vec());
    }
    Some(ders).filter(|ders| !ders.is_empty())
}

/// A private key, PKCS#8.
pub(crate) fn private_key(pkcs8: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(pkcs8));
    // Room for all of it: a text that grows leaves copies behind.
    let mut out = Zeroizing::new(String::with_capacity(encoded.len() * 2 + 64));
    write(&mut out, "PRIVATE KEY", &encoded);
    out
}

/// The private key of a text; `None` when there is none in PKCS#8.
pub(crate) fn read_private_key(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).ok()?;
    Some(Zeroizing::new(key.secret_pkcs8_der().to_vec()))
}

fn write(out: &mut String, label: &str, encoded: &str) {
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    let mut rest = encoded;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_CHARACTERS));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
}

//! PEM files: read whole, bounded, and refused with their name when they are not what they must be.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::error::TlsError;

/// Largest certificate, key or CA bundle file.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads a file that is meant to be PEM.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let file = File::open(path).map_err(|e| TlsError::read(path, e))?;
    let mut content = Zeroizing::new(Vec::new());
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut content)
        .map_err(|e| TlsError::read(path, e))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::bad(
            path,
            "larger than 4 MiB, which no PEM file is",
        ));
    }
    Ok(content)
}

/// All certificates of a PEM text, at least one.
pub(super) fn certificates(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(content)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TlsError::bad(path, e))?;
    if chain.is_empty() {
        return Err(TlsError::Empty {
            path: path.to_owned(),
            wanted: "certificate",
        });
    }
    Ok(chain)
}

/// The private key of a PEM text.
pub(super) fn private_key(path: &Path, content: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    use rustls::pki_types::pem::Error;
    PrivateKeyDer::from_pem_slice(content).map_err(|e| match e {
        Error::NoItemsFound => TlsError::Empty {
            path: path.to_owned(),
            wanted: "private key",
        },
        // The parser's words may quote the file; a key must not reach a log.
        _ => TlsError::bad(path, "no usable private key in it"),
    })
}

/// A store of the CA certificates of a PEM text, at least one.
pub(super) fn roots(path: &Path, content: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path, content)? {
        store.add(certificate).map_err(|e| TlsError::bad(path, e))?;
    }
    Ok(store)
}

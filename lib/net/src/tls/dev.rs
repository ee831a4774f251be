//! Certificates for development, tests and `quickstart`: a CA, servers, clients. Never for production.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("development certificate: {0}")]
pub struct DevError(#[from] rcgen::Error);

/// A certificate authority made on the spot (ECDSA P-256).
pub struct DevCa {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its private key, both PEM. No `Debug`: the key is a secret.
pub struct DevCert {
    /// The certificate followed by its CA.
    pub cert_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

impl DevCa {
    /// A new CA called `name`.
    ///
    /// # Errors
    /// When the key cannot be generated.
    pub fn new(name: &str) -> Result<DevCa, DevError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(DevCa {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// The CA certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server certificate for these DNS names and IP addresses.
    ///
    /// # Errors
    /// When a name is no DNS name.
    pub fn server(&self, names: &[&str]) -> Result<DevCert, DevError> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let common_name = names.first().cloned().unwrap_or_default();
        self.issue(names, &common_name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client certificate whose common name is `name`.
    ///
    /// # Errors
    /// When the key cannot be generated.
    pub fn client(&self, name: &str) -> Result<DevCert, DevError> {
        self.issue(Vec::new(), name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        names: Vec<String>,
        common_name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<DevCert, DevError> {
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(DevCert {
            cert_pem: format!("{}{}", cert.pem(), self.pem),
            key_pem: key.serialize_pem(),
        })
    }

    /// Writes `ca.crt` to `dir`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<PathBuf> {
        let path = dir.join("ca.crt");
        fs::write(&path, &self.pem)?;
        Ok(path)
    }
}

impl DevCert {
    /// Writes `<name>.crt` and `<name>.key` (mode 0600) to `dir`, replacing older ones.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> io::Result<(PathBuf, PathBuf)> {
        let (cert, key) = (
            dir.join(format!("{name}.crt")),
            dir.join(format!("{name}.key")),
        );
        fs::write(&cert, &self.cert_pem)?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&key)?;
        file.write_all(self.key_pem.as_bytes())?;
        Ok((cert, key))
    }
}

//! The listener that demands agents' certificates. Its own certificate and the CAs are replaced
//! while it runs; without both nobody gets in.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::error::TlsError;
use super::fresh::in_time;
use super::server::{ServerStream, TICKETS_MAX};
use super::verify::BoundedClientVerifier;
use super::{Ahead, MinVersion, Reloaded, files, provider, versions};

/// What such a listener shows.
pub enum Shown {
    /// Files in PEM.
    Files {
        /// Certificate chain, leaf first.
        cert: PathBuf,
        /// Private key.
        key: PathBuf,
    },
    /// What was made for it.
    Made {
        /// DER.
        certificate: Vec<u8>,
        /// PKCS#8.
        key: Zeroizing<Vec<u8>>,
    },
}

/// TLS of that listener. Share it by `Arc`.
pub struct AgentsTls {
    alpn: Vec<Vec<u8>>,
    config: ArcSwapOption<ServerConfig>,
    /// Of what the configuration was made.
    used: Mutex<[u8; 32]>,
}

impl AgentsTls {
    /// A listener that lets nobody in yet.
    #[must_use]
    pub fn new(alpn: Vec<Vec<u8>>) -> AgentsTls {
        AgentsTls {
            alpn,
            config: ArcSwapOption::empty(),
            used: Mutex::default(),
        }
    }

    /// Whether anybody can get in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.config.load().is_some()
    }

    /// Shows this certificate from now on, and lets in whose certificates these CAs (DER) signed.
    /// Without a CA nobody gets in.
    ///
    /// # Errors
    /// When a part is unusable: then nothing changes.
    pub fn replace(&self, shown: &Shown, cas: &[impl AsRef<[u8]>]) -> Result<Reloaded, TlsError> {
        let (chain, key) = match shown {
            Shown::Files { cert, key } => {
                let (chain, secret) = (files::read(cert)?, files::read(key)?);
                (
                    files::certificates(cert, &chain)?,
                    files::private_key(key, &secret)?,
                )
            }
            Shown::Made { certificate, key } => (
                vec![CertificateDer::from(certificate.clone())],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec())),
            ),
        };
        let mut parts: Vec<u8> = crate::crypto::sha256(key.secret_der()).to_vec();
        let ders = chain.iter().map(|der| &der[..]);
        for der in ders.chain(cas.iter().map(|ca| ca.as_ref())) {
            parts.extend_from_slice(&crate::crypto::sha256(der));
        }
        let digest = crate::crypto::sha256(&parts);
        let mut used = self.used.lock();
        if *used == digest {
            return Ok(Reloaded::Unchanged);
        }
        let config = match cas {
            [] => None,
            cas => Some(Arc::new(self.made(chain, key, cas)?)),
        };
        // A new configuration has new ticket keys: whom a CA let in that is gone cannot resume.
        self.config.store(config);
        *used = digest;
        Ok(Reloaded::Changed)
    }

    fn made(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        cas: &[impl AsRef<[u8]>],
    ) -> Result<ServerConfig, TlsError> {
        let failed = |why: &dyn std::fmt::Display| TlsError::Handshake(why.to_string());
        let mut roots = RootCertStore::empty();
        for ca in cas {
            let ca = CertificateDer::from(ca.as_ref().to_vec());
            roots.add(ca).map_err(|why| failed(&why))?;
        }
        let provider = provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|why| failed(&why))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(MinVersion::Tls13))
            .map_err(|why| failed(&why))?
            .with_client_cert_verifier(BoundedClientVerifier::new(verifier, false))
            .with_single_cert(chain, key)
            .map_err(|why| failed(&why))?;
        config.alpn_protocols.clone_from(&self.alpn);
        config.send_tls13_tickets = TICKETS_MAX;
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|why| failed(&why))?;
        Ok(config)
    }

    /// Does the handshake, within [`super::HANDSHAKE_MAX`].
    ///
    /// # Errors
    /// When the peer shows no certificate that is let in, is silent, or speaks no TLS 1.3; and
    /// while nobody can be let in.
    pub async fn accept<IO>(&self, io: IO) -> Result<ServerStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config.load_full().ok_or_else(|| {
            let why = "no certificate for this listener, or no agent CA, is known yet";
            TlsError::Handshake(why.to_owned())
        })?;
        in_time(TlsAcceptor::from(config).accept(Ahead::new(io))).await
    }
}

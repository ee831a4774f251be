//! Judges the certificate of the other side of a pair.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::error::Refused;
use super::{CHAIN_MAX, Side};

/// What makes a peer acceptable.
#[derive(Debug)]
pub(super) enum Trust {
    /// A chain to this CA alone, for the role of `peer`.
    Authority {
        roots: Arc<RootCertStore>,
        peer: Side,
    },
    /// That it holds the key of what it shows; the caller judges the key.
    Key,
}

/// Judges bridges and brokers alike.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    pub(super) fn new(trust: Trust, provider: Arc<CryptoProvider>) -> PeerVerifier {
        PeerVerifier { trust, provider }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.bounded(leaf, above).map_err(refuse)?;
        let Trust::Authority { roots, peer } = &self.trust else {
            return Ok(());
        };
        let chained = match peer {
            Side::Bridge => self.chained_server(roots, leaf, above, now),
            Side::Broker => self.chained_client(roots, leaf, above, now),
        };
        chained.map_err(|why| refuse(Refused::of(&why)))?;
        has_usage(leaf, *peer).map_err(refuse)
    }

    /// What it may cost before signatures are looked at.
    fn bounded(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
    ) -> Result<(), Refused> {
        let shown = above.len() + 1;
        if shown > CHAIN_MAX {
            return Err(Refused::Length(shown));
        }
        for der in std::iter::once(leaf).chain(above) {
            check_key(&parsed(der)?)?;
        }
        Ok(())
    }

    /// No name is compared: the CA is the name.
    fn chained_server(
        &self,
        roots: &RootCertStore,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, above, now, algorithms)
    }

    fn chained_client(
        &self,
        roots: &Arc<RootCertStore>,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        WebPkiClientVerifier::builder_with_provider(roots.clone(), self.provider.clone())
            .build()
            .map_err(|why| Error::General(why.to_string()))?
            .verify_client_cert(leaf, above, now)
            .map(|_| ())
    }

    fn signed(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn schemes() -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
        ]
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, above, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("a pair speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PeerVerifier::schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    /// The CA's name is not told to whoever asks.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, above, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("a pair speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PeerVerifier::schemes()
    }
}

/// ECDSA on P-256 or P-384, or Ed25519: keys of other kinds cost more to check than a stranger is
/// worth.
pub(super) fn check_key(certificate: &X509Certificate<'_>) -> Result<(), Refused> {
    let algorithm = &certificate.public_key().algorithm;
    if algorithm.algorithm == OID_SIG_ED25519 {
        return Ok(());
    }
    let curve = algorithm
        .parameters
        .as_ref()
        .and_then(|it| it.as_oid().ok());
    let is_ec = algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY;
    match curve {
        Some(curve) if is_ec && (curve == OID_EC_P256 || curve == OID_NIST_EC_P384) => Ok(()),
        _ => Err(Refused::Key),
    }
}

/// webpki lets a leaf without usages pass for any; here it has to name its own.
fn has_usage(leaf: &CertificateDer<'_>, peer: Side) -> Result<(), Refused> {
    let leaf = parsed(leaf)?;
    let usages = leaf
        .extended_key_usage()
        .map_err(|why| Refused::Other(why.to_string()))?;
    let named = usages.is_some_and(|usages| match peer {
        Side::Bridge => usages.value.server_auth,
        Side::Broker => usages.value.client_auth,
    });
    named.then_some(()).ok_or_else(|| Refused::usage(peer))
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refused> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(why) => Err(Refused::Other(format!("it cannot be read: {why}"))),
    }
}

fn refuse(why: Refused) -> Error {
    // The peer sees an alert that goes by the kind of error, where rustls has one.
    Error::InvalidCertificate(match why {
        Refused::OtherCa => CertificateError::UnknownIssuer,
        Refused::Time => CertificateError::Expired,
        why => CertificateError::Other(OtherError(Arc::new(why))),
    })
}

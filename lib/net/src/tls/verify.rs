//! Certificate verifiers: pins, named refusals, and a bounded check of client certificates.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::error::{Problem, SeenCertificate};

/// Certificates a client may show, leaf included (T23).
pub const CLIENT_CHAIN_MAX: usize = 5;
/// Largest RSA key of a client, where RSA is allowed at all.
const RSA_BITS_MAX: usize = 4096;

/// SHA-256 of the DER of a certificate's SubjectPublicKeyInfo; `None` when it does not parse.
#[must_use]
pub fn spki_sha256(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(crate::crypto::sha256(
        parsed.tbs_certificate.subject_pki.raw,
    ))
}

/// The hash of a public key, written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpkiPin(pub [u8; 32]);

impl fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pin is written sha256: and 64 hexadecimal digits")]
pub struct PinParseError;

impl FromStr for SpkiPin {
    type Err = PinParseError;

    fn from_str(text: &str) -> Result<SpkiPin, PinParseError> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or(PinParseError)?
            .as_bytes();
        if hex.len() != 64 {
            return Err(PinParseError);
        }
        let mut pin = [0; 32];
        for (byte, pair) in pin.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Ok(SpkiPin(pin))
    }
}

fn hex_digit(digit: u8) -> Result<u8, PinParseError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(PinParseError),
    }
}

/// Describes a refused chain so that an operator can act on it.
fn seen(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    problem: Problem,
) -> Error {
    let top = intermediates.last().unwrap_or(leaf);
    let text = |der: &CertificateDer<'_>, issuer: bool| match X509Certificate::from_der(der) {
        Ok((_, c)) if issuer => c.issuer().to_string(),
        Ok((_, c)) => c.subject().to_string(),
        Err(_) => "an unreadable certificate".to_owned(),
    };
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(
        SeenCertificate {
            problem,
            issuer: text(top, true),
            subject: text(leaf, false),
            spki: SpkiPin(spki_sha256(leaf).unwrap_or_default()),
            name: name.to_str().into_owned(),
        },
    ))))
}

fn problem(error: &Error) -> Problem {
    let Error::InvalidCertificate(error) = error else {
        return Problem::Other(error.to_string());
    };
    match error {
        CertificateError::UnknownIssuer => Problem::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Problem::Name
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Problem::Time,
        other => Problem::Other(other.to_string()),
    }
}

/// What makes a server's certificate acceptable.
#[derive(Debug)]
pub(super) enum Trust {
    /// A chain to one of these roots.
    Roots(Arc<WebPkiServerVerifier>),
    /// The pinned key; or, when a CA in the shown chain has it, any certificate that this CA signed
    /// for the dialled name.
    Pin(SpkiPin),
    /// Nothing is asked: `--insecure` towards an upstream.
    Anyone,
}

/// Judges servers; its refusals name issuer and key.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    pub(super) fn new(trust: Trust, provider: Arc<CryptoProvider>) -> ServerVerifier {
        ServerVerifier { trust, provider }
    }

    /// The verifier that the pin leads to; `None` when the leaf itself has it.
    fn pinned(
        &self,
        pin: SpkiPin,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Result<Option<Arc<WebPkiServerVerifier>>, Error> {
        let has_it = |der: &CertificateDer<'_>| spki_sha256(der).is_some_and(|hash| hash == pin.0);
        if has_it(leaf) {
            return Ok(None);
        }
        let Some(ca) = intermediates.iter().find(|der| has_it(der)) else {
            return Err(seen(leaf, intermediates, name, Problem::Pin(pin)));
        };
        let mut store = RootCertStore::empty();
        store.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), self.provider.clone())
            .build()
            .map(Some)
            .map_err(|e| Error::General(e.to_string()))
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = match &self.trust {
            Trust::Roots(chain) => Some(chain.clone()),
            Trust::Pin(pin) => self.pinned(*pin, leaf, intermediates, name)?,
            Trust::Anyone => None,
        };
        let Some(chain) = chain else {
            return Ok(ServerCertVerified::assertion());
        };
        chain
            .verify_server_cert(leaf, intermediates, name, ocsp, now)
            .map_err(|error| seen(leaf, intermediates, name, problem(&error)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Bounds what a client certificate may cost before webpki looks at it.
#[derive(Debug)]
pub(super) struct BoundedClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    rsa: bool,
}

impl BoundedClientVerifier {
    pub(super) fn new(inner: Arc<dyn ClientCertVerifier>, rsa: bool) -> Arc<BoundedClientVerifier> {
        Arc::new(BoundedClientVerifier { inner, rsa })
    }

    fn check_key(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let bad = Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad.clone())?;
        match parsed.public_key().parsed() {
            Ok(PublicKey::EC(point)) if point.key_size() <= 384 => Ok(()),
            Ok(PublicKey::RSA(key)) if self.rsa && key.key_size() <= RSA_BITS_MAX => Ok(()),
            // Ed25519: x509-parser knows no parsed form of it.
            Ok(PublicKey::Unknown(key)) if key.len() == 32 => Ok(()),
            _ => Err(Error::InvalidCertificate(CertificateError::BadSignature)),
        }
    }
}

impl ClientCertVerifier for BoundedClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if intermediates.len() + 1 > CLIENT_CHAIN_MAX {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        std::iter::once(leaf)
            .chain(intermediates)
            .try_for_each(|c| self.check_key(c))?;
        self.inner.verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

//! What proves a side at a relay.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use culvert_proto::pair::{
    LEAF_BYTES_MAX, Preface, ProofKind, RendezvousId, Role, X_BYTES_MAX, signed_bytes,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::crypto::{SIGNATURE_BYTES, random_bytes, sha256};

/// An ECDSA signature is as long as its numbers are; a half of all have this length. The preface
/// states the length and is signed with it, so signatures are made until one has it.
const ECDSA_BYTES: usize = 71;
/// A key that needs more tries is none.
const ECDSA_TRIES_MAX: usize = 128;

/// What proves a side. No `Debug`: it holds a key.
pub struct Credential {
    id: RendezvousId,
    proof: Proof,
}

enum Proof {
    Open,
    Key(Ed25519KeyPair),
    Certificate {
        ca: Vec<u8>,
        leaf: Vec<u8>,
        signer: Signer,
    },
}

enum Signer {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// What is given is no credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The key is of no kind that a relay takes.
    #[error(
        "the private key is neither ECDSA P-256 nor Ed25519 in PKCS#8: make the certificates anew with culvert pair"
    )]
    Key,
    /// The certificate is of another key, or none.
    #[error("the certificate is not of this private key: give the two that belong together")]
    Certificate,
    /// A relay takes no certificate of this size.
    #[error(
        "{what} of {bytes} bytes; a relay takes 2048 at most: use ECDSA or Ed25519 keys and short names"
    )]
    TooLong {
        /// Which of the two.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
}

impl Credential {
    /// Knows where to meet, and proves nothing.
    #[must_use]
    pub fn open(id: RendezvousId) -> Self {
        let proof = Proof::Open;
        Self { id, proof }
    }

    /// Holds the Ed25519 key of this seed.
    ///
    /// # Errors
    /// When the library makes no key of it.
    pub fn key(seed: [u8; 32]) -> Result<Self, CredentialError> {
        let seed = Zeroizing::new(seed);
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).map_err(|_| CredentialError::Key)?;
        Ok(Self {
            id: RendezvousId(sha256(pair.public_key().as_ref())),
            proof: Proof::Key(pair),
        })
    }

    /// Holds the key of `leaf`, which `ca` certified.
    ///
    /// # Errors
    /// When a relay could not take it.
    pub fn certificate(ca: &[u8], leaf: &[u8], key_pkcs8: &[u8]) -> Result<Self, CredentialError> {
        for (what, der, max) in [
            ("a CA certificate", ca, X_BYTES_MAX),
            ("a certificate", leaf, LEAF_BYTES_MAX),
        ] {
            let bytes = der.len();
            if bytes > max {
                return Err(CredentialError::TooLong { what, bytes });
            }
        }
        let signer = Signer::read(key_pkcs8)?;
        let read = X509Certificate::from_der(leaf).map_err(|_| CredentialError::Certificate)?;
        let certified = &read.1.public_key().subject_public_key.data;
        if certified.as_ref() != signer.public() {
            return Err(CredentialError::Certificate);
        }
        Ok(Self {
            id: RendezvousId(sha256(ca)),
            proof: Proof::Certificate {
                ca: ca.to_vec(),
                leaf: leaf.to_vec(),
                signer,
            },
        })
    }

    /// Where it is met.
    #[must_use]
    pub fn id(&self) -> RendezvousId {
        self.id
    }

    /// How it proves itself.
    #[must_use]
    pub fn kind(&self) -> ProofKind {
        match &self.proof {
            Proof::Open => ProofKind::Open,
            Proof::Key(_) => ProofKind::Key,
            Proof::Certificate { .. } => ProofKind::Certificate,
        }
    }

    /// A fresh preface that answers `challenge`.
    ///
    /// # Errors
    /// When the key does not sign.
    pub fn preface(&self, role: Role, challenge: &[u8; 32]) -> Result<Preface, CredentialError> {
        let (x, leaf) = match &self.proof {
            Proof::Open => (Vec::new(), Vec::new()),
            Proof::Key(pair) => (pair.public_key().as_ref().to_vec(), Vec::new()),
            Proof::Certificate { ca, leaf, .. } => (ca.clone(), leaf.clone()),
        };
        let mut preface = Preface {
            role,
            proof: self.kind(),
            id: self.id,
            nonce: random_bytes(),
            x,
            leaf,
            signature: Vec::new(),
        };
        let signed = |bytes| signed_bytes(challenge, &preface.head_for(bytes));
        preface.signature = match &self.proof {
            Proof::Open => Vec::new(),
            Proof::Key(pair) => pair.sign(&signed(SIGNATURE_BYTES)).as_ref().to_vec(),
            Proof::Certificate { signer, .. } => signer.sign(signed)?,
        };
        Ok(preface)
    }
}

impl Signer {
    fn read(pkcs8: &[u8]) -> Result<Self, CredentialError> {
        let ecdsa = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8);
        if let Ok(pair) = ecdsa {
            return Ok(Signer::Ecdsa(pair));
        }
        // Other makers leave the public half out.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8);
        pair.map(Signer::Ed25519).map_err(|_| CredentialError::Key)
    }

    fn public(&self) -> &[u8] {
        match self {
            Signer::Ecdsa(pair) => pair.public_key().as_ref(),
            Signer::Ed25519(pair) => pair.public_key().as_ref(),
        }
    }

    /// Over what has to be signed for a signature of so many bytes.
    fn sign(&self, signed: impl Fn(usize) -> Vec<u8>) -> Result<Vec<u8>, CredentialError> {
        let pair = match self {
            Signer::Ed25519(pair) => {
                return Ok(pair.sign(&signed(SIGNATURE_BYTES)).as_ref().to_vec());
            }
            Signer::Ecdsa(pair) => pair,
        };
        let signed = signed(ECDSA_BYTES);
        let random = SystemRandom::new();
        let tries = (0..ECDSA_TRIES_MAX).filter_map(|_| pair.sign(&random, &signed).ok());
        let mut fitting = tries.filter(|signature| signature.as_ref().len() == ECDSA_BYTES);
        let signature = fitting.next().ok_or(CredentialError::Key)?;
        Ok(signature.as_ref().to_vec())
    }
}

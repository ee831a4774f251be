//! What a side shows to be let in.

use alloc::vec::Vec;
use core::fmt;

use super::{ALPN_RELAY, ProofKind, RendezvousId, Role, VERSION};
use crate::wire::Reader;

/// Bytes of the fixed part.
pub const PREFACE_HEAD_BYTES: usize = 64;
/// Largest authority's certificate, in bytes.
pub const X_BYTES_MAX: usize = 2_048;
/// Largest leaf certificate, in bytes.
pub const LEAF_BYTES_MAX: usize = 2_048;
/// Largest signature, in bytes.
pub const SIGNATURE_BYTES_MAX: usize = 128;
/// Largest preface, in bytes.
pub const PREFACE_BYTES_MAX: usize =
    PREFACE_HEAD_BYTES + X_BYTES_MAX + LEAF_BYTES_MAX + SIGNATURE_BYTES_MAX;

const MAGIC: [u8; 4] = *b"CVRL";
const KEY_BYTES: usize = 32;
const KEY_SIGNATURE_BYTES: usize = 64;

/// What a side shows. The relay keeps none of it but role, kind and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preface {
    /// Which side this is.
    pub role: Role,
    /// How it proves that it may join.
    pub proof: ProofKind,
    /// Where it wants to be joined.
    pub id: RendezvousId,
    /// Fresh random bytes of this side.
    pub nonce: [u8; 16],
    /// The authority's certificate (DER), the public key, or nothing.
    pub x: Vec<u8>,
    /// This side's certificate (DER), or nothing.
    pub leaf: Vec<u8>,
    /// Over [`signed_bytes`].
    pub signature: Vec<u8>,
}

/// A part of variable length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The authority's certificate or the public key.
    X,
    /// The certificate.
    Leaf,
    /// The signature.
    Signature,
}

/// Bytes that are no preface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefaceError {
    /// They do not begin with "CVRL".
    #[error("a preface begins with \"CVRL\"; seen {0:#04x} at byte {1}")]
    Magic(u8, u8),
    /// A version that is not spoken here.
    #[error("preface of version {0}; version 1 is spoken here")]
    Version(u8),
    /// Neither bridge nor broker.
    #[error("role {0}; 1 (bridge) and 2 (broker) exist")]
    Role(u8),
    /// A proof that does not exist.
    #[error("proof {0}; 0 (open), 1 (key) and 2 (certificate) exist")]
    Proof(u8),
    /// A reserved byte is set.
    #[error("reserved byte {0} is not 0")]
    Reserved(u8),
    /// A length that does not go with the proof.
    #[error("{part} of {seen} bytes does not go with proof {}", proof.as_str())]
    Length {
        /// Of what.
        part: Part,
        /// The length.
        seen: u16,
        /// The kind of proof.
        proof: ProofKind,
    },
}

/// What the signature covers, for the fixed part `head` of the preface.
#[must_use]
pub fn signed_bytes(challenge: &[u8; 32], head: &[u8; PREFACE_HEAD_BYTES]) -> Vec<u8> {
    [ALPN_RELAY, &[0], challenge, head].concat()
}

impl Preface {
    /// The fixed part.
    #[must_use]
    pub fn head(&self) -> [u8; PREFACE_HEAD_BYTES] {
        self.head_for(self.signature.len())
    }

    /// The fixed part of the preface that will have a signature of so many bytes:
    /// the signature covers its own length.
    #[must_use]
    pub fn head_for(&self, signature_bytes: usize) -> [u8; PREFACE_HEAD_BYTES] {
        let mut out = [0; PREFACE_HEAD_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..7].copy_from_slice(&[VERSION, self.role as u8, self.proof as u8]);
        out[8..40].copy_from_slice(&self.id.0);
        out[40..56].copy_from_slice(&self.nonce);
        let lengths = [self.x.len(), self.leaf.len(), signature_bytes];
        for (at, length) in [56, 58, 60].into_iter().zip(lengths) {
            // What is longer than any preface may be is refused by whoever reads it.
            let length = u16::try_from(length).unwrap_or(u16::MAX);
            out[at..at + 2].copy_from_slice(&length.to_be_bytes());
        }
        out
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.head()[..], &self.x, &self.leaf, &self.signature].concat()
    }

    /// The preface that `bytes` are, all of them.
    ///
    /// # Errors
    /// What is wrong with them; `None` when they are fewer or more.
    pub fn decode(bytes: &[u8]) -> Result<Self, Option<PrefaceError>> {
        let Some((head, rest)) = bytes.split_first_chunk() else {
            return Err(check_begin(bytes).err());
        };
        let shape = Shape::of(head).map_err(Some)?;
        shape.fill(head, rest).ok_or(None)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::X => "a certificate authority or key",
            Part::Leaf => "a certificate",
            Part::Signature => "a signature",
        })
    }
}

/// What a complete head says of the rest.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    role: Role,
    proof: ProofKind,
    lengths: [u16; 3],
}

impl Shape {
    pub(super) fn of(head: &[u8; PREFACE_HEAD_BYTES]) -> Result<Self, PrefaceError> {
        check_begin(head)?;
        let role = Role::from_u8(head[5]).ok_or(PrefaceError::Role(head[5]))?;
        let proof = ProofKind::from_u8(head[6]).ok_or(PrefaceError::Proof(head[6]))?;
        let lengths = [56, 58, 60].map(|at| u16::from_be_bytes([head[at], head[at + 1]]));
        for (part, seen) in [Part::X, Part::Leaf, Part::Signature]
            .into_iter()
            .zip(lengths)
        {
            if !allowed(proof, part).contains(&usize::from(seen)) {
                return Err(PrefaceError::Length { part, seen, proof });
            }
        }
        Ok(Shape {
            role,
            proof,
            lengths,
        })
    }

    /// Bytes behind the head.
    pub(super) fn rest_bytes(&self) -> usize {
        self.lengths.into_iter().map(usize::from).sum()
    }

    /// `None` unless `rest` has exactly the length announced.
    pub(super) fn fill(&self, head: &[u8; PREFACE_HEAD_BYTES], rest: &[u8]) -> Option<Preface> {
        let mut fixed = Reader::new(&head[8..]);
        let (id, nonce) = (fixed.array().ok()?, fixed.array().ok()?);
        let mut rest = Reader::new(rest);
        let [x, leaf, signature] = self.lengths.map(usize::from);
        let preface = Preface {
            role: self.role,
            proof: self.proof,
            id: RendezvousId(id),
            nonce,
            x: rest.take(x).ok()?.to_vec(),
            leaf: rest.take(leaf).ok()?.to_vec(),
            signature: rest.take(signature).ok()?.to_vec(),
        };
        rest.is_empty().then_some(preface)
    }
}

/// The lengths that go with a proof.
fn allowed(proof: ProofKind, part: Part) -> core::ops::RangeInclusive<usize> {
    const LEAST: usize = 1;
    match (proof, part) {
        (ProofKind::Open, _) | (ProofKind::Key, Part::Leaf) => 0..=0,
        (ProofKind::Key, Part::X) => KEY_BYTES..=KEY_BYTES,
        (ProofKind::Key, Part::Signature) => KEY_SIGNATURE_BYTES..=KEY_SIGNATURE_BYTES,
        (ProofKind::Certificate, Part::X) => LEAST..=X_BYTES_MAX,
        (ProofKind::Certificate, Part::Leaf) => LEAST..=LEAF_BYTES_MAX,
        (ProofKind::Certificate, Part::Signature) => LEAST..=SIGNATURE_BYTES_MAX,
    }
}

/// What the first bytes of a head give away already.
pub(super) fn check_begin(begin: &[u8]) -> Result<(), PrefaceError> {
    for (at, byte) in (0u8..).zip(begin.iter().copied()).take(PREFACE_HEAD_BYTES) {
        match at {
            0..=3 if byte != MAGIC[usize::from(at)] => return Err(PrefaceError::Magic(byte, at)),
            4 if byte != VERSION => return Err(PrefaceError::Version(byte)),
            5 if Role::from_u8(byte).is_none() => return Err(PrefaceError::Role(byte)),
            6 if ProofKind::from_u8(byte).is_none() => return Err(PrefaceError::Proof(byte)),
            7 | 62 | 63 if byte != 0 => return Err(PrefaceError::Reserved(at)),
            _ => {}
        }
    }
    Ok(())
}

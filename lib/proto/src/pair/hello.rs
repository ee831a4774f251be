//! What a relay says first.

use super::VERSION;

/// Bytes of the relay's hello.
pub const HELLO_BYTES: usize = 40;
const MAGIC: [u8; 4] = *b"CVRH";
const FLAG_OPEN: u8 = 1;

/// Opens every connection at a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayHello {
    /// Sides that only know the id are let in.
    pub accepts_open: bool,
    /// Fresh random bytes, which the preface's signature covers.
    pub challenge: [u8; 32],
}

/// Bytes that are no hello of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayHelloError {
    /// They do not begin with "CVRH".
    #[error(
        "a relay begins with \"CVRH\"; seen {0:02x?}: this is no Culvert relay, check the address"
    )]
    Magic([u8; 4]),
    /// A version that is not spoken here.
    #[error("relay of version {0}; version 1 is spoken here")]
    Version(u8),
}

impl RelayHello {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = if self.accepts_open { FLAG_OPEN } else { 0 };
        out[8..].copy_from_slice(&self.challenge);
        out
    }

    /// From the bytes. Flags and reserved bytes that are not known are left alone:
    /// a later relay may use them.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, RelayHelloError> {
        let [a, b, c, d, version, flags, _, _, challenge @ ..] = *bytes;
        if [a, b, c, d] != MAGIC {
            return Err(RelayHelloError::Magic([a, b, c, d]));
        }
        if version != VERSION {
            return Err(RelayHelloError::Version(version));
        }
        Ok(RelayHello {
            accepts_open: flags & FLAG_OPEN != 0,
            challenge,
        })
    }
}

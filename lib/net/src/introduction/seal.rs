//! The sending half of a TLS 1.3 connection that waits: a key and a counter.
//!
//! A waiter hears a record of 30 bytes every 15 s and says nothing; a whole rustls connection would
//! cost some 10 KiB for that. What is written here is what rustls would have written.

use std::io;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce,
    UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ServerConnection};

const APPLICATION_DATA: u8 = 0x17;
const TAG_BYTES: usize = 16;

/// Writes records where a rustls connection left off. The key is forgotten when it is dropped.
pub(super) struct Sealer {
    sequence: u64,
    secrets: ConnectionTrafficSecrets,
}

impl Sealer {
    /// Takes over from a connection that has nothing to send.
    pub(super) fn take(connection: ServerConnection) -> io::Result<Self> {
        let secrets = connection.dangerous_extract_secrets();
        let (sequence, secrets) = secrets.map_err(io::Error::other)?.tx;
        Ok(Self { sequence, secrets })
    }

    /// One record with `text` as application data.
    pub(super) fn record(&mut self, text: &[u8]) -> io::Result<Vec<u8>> {
        let refused = |_| io::Error::other("a record cannot be sealed");
        let (algorithm, key, iv) = self.parts()?;
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).map_err(refused)?);
        let mut nonce = <[u8; NONCE_LEN]>::try_from(iv).map_err(io::Error::other)?;
        for (byte, number) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.sequence.to_be_bytes())
        {
            *byte ^= number;
        }
        self.sequence += 1;
        let length = u16::try_from(text.len() + 1 + TAG_BYTES).map_err(io::Error::other)?;
        let [high, low] = length.to_be_bytes();
        let head = [APPLICATION_DATA, 3, 3, high, low];
        let mut body = [text, &[APPLICATION_DATA]].concat();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(head),
            &mut body,
        )
        .map_err(refused)?;
        Ok([&head[..], &body].concat())
    }

    fn parts(&self) -> io::Result<(&'static Algorithm, &[u8], &[u8])> {
        use ConnectionTrafficSecrets as Secrets;
        Ok(match &self.secrets {
            Secrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key.as_ref(), iv.as_ref()),
            Secrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key.as_ref(), iv.as_ref()),
            Secrets::Chacha20Poly1305 { key, iv } => {
                (&CHACHA20_POLY1305, key.as_ref(), iv.as_ref())
            }
            _ => return Err(io::Error::other("a cipher that is not known here")),
        })
    }
}

//! Encoding of rotations. They hold a token, so their bytes are wiped.

use alloc::sync::Arc;
use alloc::vec::Vec;

use zeroize::Zeroizing;

use super::Rotation;
use super::codec::{DecodeError, Fields, Writer};
use crate::token::TokenText;

pub(super) const ROTATION_DOMAIN: &[u8] = b"culvert-rotation/1\0";

/// Room for any rotation, so that no half-written copy is left behind by growing.
const ENCODED_BYTES_MAX: usize = 1_024;

mod field {
    pub(super) const CLUSTER: u8 = 1;
    pub(super) const TOKEN_ID: u8 = 2;
    pub(super) const NOT_BEFORE: u8 = 3;
    pub(super) const TOKEN: u8 = 4;
}

impl Rotation {
    /// The bytes to sign and to send; they hold the token.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Writer::with_capacity(ROTATION_DOMAIN, ENCODED_BYTES_MAX);
        out.text(field::CLUSTER, self.cluster.as_str());
        out.text(field::TOKEN_ID, &self.token_id);
        out.u64(field::NOT_BEFORE, self.not_before_unix_s);
        out.text(field::TOKEN, self.token.expose());
        Zeroizing::new(out.finish())
    }

    /// Reads a rotation. Verify the signature over `body` first.
    pub fn decode(body: &[u8]) -> Result<Rotation, DecodeError> {
        let mut fields = Fields::open("rotation", field::TOKEN, ROTATION_DOMAIN, body)?;
        let (mut cluster, mut token, mut token_id) = (None, None, Arc::from(""));
        let mut not_before_unix_s = 0;
        while let Some((field, value)) = fields.next(&[])? {
            match field {
                field::CLUSTER => cluster = Some(fields.cluster_id(field, value)?),
                field::TOKEN_ID => token_id = fields.text(field, value)?,
                field::NOT_BEFORE => not_before_unix_s = fields.u64(field, value)?,
                field::TOKEN => token = TokenText::new(fields.str(field, value)?).ok(),
                _ => {}
            }
        }
        let cluster = cluster.ok_or(fields.error(field::CLUSTER))?;
        let token = token.ok_or(fields.error(field::TOKEN))?;
        Ok(Rotation {
            cluster,
            token_id,
            not_before_unix_s,
            token,
        })
    }
}

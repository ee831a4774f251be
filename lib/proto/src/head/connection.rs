//! `Connection`: parsed once, obeyed, and never passed on.

use alloc::string::String;
use alloc::vec::Vec;

use super::HeadError;
use super::names::{CONNECTION_OPTIONS, is_protected, matches, normal};
use crate::text;

const TOKENS_MAX: usize = 32;

/// What all `Connection` lines of a head say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionTokens {
    /// `close` is named.
    pub close: bool,
    /// `upgrade` is named.
    pub upgrade: bool,
    named: Vec<String>,
}

impl ConnectionTokens {
    /// Reads every `Connection` line. Naming a protected field, or one that frames or routes the
    /// message, is an attack and an error.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, HeadError> {
        let mut tokens = ConnectionTokens::default();
        let mut count = 0;
        for line in lines {
            for raw in line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if raw.is_empty() {
                    continue;
                }
                count += 1;
                if count > TOKENS_MAX || !raw.iter().all(is_token_byte) {
                    return Err(HeadError::Connection);
                }
                tokens.take(raw.iter().map(|byte| char::from(normal(byte))).collect())?;
            }
        }
        Ok(tokens)
    }

    fn take(&mut self, token: String) -> Result<(), HeadError> {
        self.close |= token == "close";
        self.upgrade |= token == "upgrade";
        if matches(CONNECTION_OPTIONS, &token) {
            return Ok(());
        }
        let framing = matches!(
            token.as_str(),
            "content-length" | "transfer-encoding" | "host" | "connection"
        );
        if framing || is_protected(&token) {
            return Err(HeadError::ConnectionNames(text::clip(&token, 64).into()));
        }
        self.named.push(token);
        Ok(())
    }

    /// Whether `Connection` removes this field.
    pub fn names(&self, field: &str) -> bool {
        self.named
            .iter()
            .any(|token| token.bytes().eq(field.as_bytes().iter().map(normal)))
    }
}

fn is_token_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

//! The words that people copy: a prefix, then base64url of version, content and CRC-32.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

/// Why a text is no usable word of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// Another kind of word.
    #[error("a {what} starts with {prefix}")]
    Prefix {
        /// What was expected.
        what: &'static str,
        /// How it starts.
        prefix: &'static str,
    },
    /// Longer than any word of its kind.
    #[error("a {what} has at most {characters_max} characters")]
    TooLong {
        /// What was expected.
        what: &'static str,
        /// Its bound.
        characters_max: usize,
    },
    /// A character was changed or lost.
    #[error("the {what} is damaged; copy it again as a whole")]
    Damaged {
        /// What was expected.
        what: &'static str,
    },
    /// Made by a later version.
    #[error("{what} of format {seen}; this version reads format {known}: upgrade")]
    Version {
        /// What was expected.
        what: &'static str,
        /// The format seen.
        seen: u8,
        /// The format known.
        known: u8,
    },
    /// A field is missing, repeated or impossible.
    #[error("the {what} lacks a usable {field}")]
    Field {
        /// What was expected.
        what: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// One kind of word.
pub(crate) struct Kind {
    pub(crate) what: &'static str,
    pub(crate) prefix: &'static str,
    pub(crate) version: u8,
    pub(crate) characters_max: usize,
}

impl Kind {
    /// The word around `content`.
    pub(crate) fn seal(&self, content: &[u8]) -> Result<Zeroizing<String>, WordError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(content.len() + 5));
        bytes.push(self.version);
        bytes.extend_from_slice(content);
        let crc = crc32(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        let length = self.prefix.len() + bytes.len().div_ceil(3) * 4;
        let mut word = Zeroizing::new(String::with_capacity(length));
        word.push_str(self.prefix);
        URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut word);
        if word.len() > self.characters_max {
            return Err(self.too_long());
        }
        Ok(word)
    }

    /// What the word holds; white space around it is ignored.
    pub(crate) fn open(&self, word: &str) -> Result<Zeroizing<Vec<u8>>, WordError> {
        let (what, prefix) = (self.what, self.prefix);
        let word = word.trim();
        if word.len() > self.characters_max {
            return Err(self.too_long());
        }
        let encoded = word
            .strip_prefix(prefix)
            .ok_or(WordError::Prefix { what, prefix })?;
        let bytes = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| self.damaged())?;
        let bytes = Zeroizing::new(bytes);
        let (body, crc) = bytes.split_last_chunk().ok_or_else(|| self.damaged())?;
        if crc32(body) != u32::from_be_bytes(*crc) {
            return Err(self.damaged());
        }
        match body.split_first() {
            Some((seen, content)) if *seen == self.version => Ok(Zeroizing::new(content.to_vec())),
            Some((&seen, _)) => Err(WordError::Version {
                what,
                seen,
                known: self.version,
            }),
            None => Err(self.damaged()),
        }
    }

    pub(crate) fn damaged(&self) -> WordError {
        WordError::Damaged { what: self.what }
    }

    pub(crate) fn field(&self, field: &'static str) -> WordError {
        WordError::Field {
            what: self.what,
            field,
        }
    }

    fn too_long(&self) -> WordError {
        WordError::TooLong {
            what: self.what,
            characters_max: self.characters_max,
        }
    }
}

/// CRC-32 (IEEE 802.3), against typing and copying mistakes only.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIND: Kind = Kind {
        what: "test word",
        prefix: "cvx_",
        version: 1,
        characters_max: 100,
    };

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_word_of_another_version_says_so() {
        let later = Kind { version: 2, ..KIND };
        let word = later.seal(b"x").unwrap();
        assert_eq!(
            KIND.open(&word).unwrap_err().to_string(),
            "test word of format 2; this version reads format 1: upgrade"
        );
    }

    proptest! {
        #[test]
        fn a_word_opens_to_what_was_sealed(content in prop::collection::vec(any::<u8>(), 0..60)) {
            let word = KIND.seal(&content).unwrap();
            let opened = KIND.open(&format!(" {}\n", *word)).unwrap();
            prop_assert_eq!(opened.as_slice(), &content[..]);
        }

        #[test]
        fn a_word_with_one_other_character_is_refused(
            content in prop::collection::vec(any::<u8>(), 0..60), at: prop::sample::Index, to in "[A-Za-z0-9_-]"
        ) {
            let word = KIND.seal(&content).unwrap();
            let at = at.index(word.len());
            let mut damaged = String::from(word.as_str());
            damaged.replace_range(at..=at, &to);
            prop_assume!(damaged != word.as_str());
            prop_assert!(KIND.open(&damaged).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = KIND.open(&text);
            let _ = KIND.open(&format!("cvx_{text}"));
        }
    }
}

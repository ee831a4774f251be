//! What is wrong with a clusters file: all of it, with its place.

use std::fmt;

/// Problems that are kept; a file with more names their number.
const PROBLEMS_MAX: usize = 50;

/// Everything that is wrong with a file.
#[derive(Debug, Default)]
pub struct Problems {
    said: Vec<String>,
    more: usize,
}

impl Problems {
    /// One more: `why` follows the name of the field. Never holds a token.
    pub(super) fn say(&mut self, line: u64, cluster: &str, field: &str, why: impl fmt::Display) {
        if self.said.len() == PROBLEMS_MAX {
            self.more += 1;
            return;
        }
        let said = format!("line {line}: cluster {cluster:?}: {field} {why}");
        self.said.push(said);
    }

    /// `value`, unless something is wrong.
    pub(super) fn none_or<T>(self, value: T) -> Result<T, Self> {
        if self.said.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }

    /// The file as a whole is wrong.
    pub(super) fn whole(why: String) -> Self {
        Self {
            said: vec![why],
            more: 0,
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said.join("; "))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, "; and {more} more problems"),
        }
    }
}

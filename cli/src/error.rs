//! Errors of the command line: a code, what was seen, whose side, one fix.

use std::fmt;

/// A failure as a person reads it; `Display` prints all of it.
#[derive(Debug)]
pub struct CliError {
    /// A stable word.
    pub code: Box<str>,
    /// What failed, in one line.
    pub what: Box<str>,
    /// What was observed.
    pub seen: Box<str>,
    /// Which side caused it: cli, control, dataplane, agent, upstream, path.
    pub side: Box<str>,
    /// The one thing to do.
    pub fix: Box<str>,
    usage: bool,
}

impl CliError {
    /// A failure with all its parts.
    pub fn new(code: &str, what: &str, seen: impl fmt::Display, side: &str, fix: &str) -> Self {
        let seen = seen.to_string().into();
        let [code, what, side, fix] = [code, what, side, fix].map(Box::from);
        Self {
            code,
            what,
            seen,
            side,
            fix,
            usage: false,
        }
    }

    /// Input that cannot be right; exit code 2.
    pub fn usage(what: &str, seen: impl fmt::Display, fix: &str) -> Self {
        Self {
            usage: true,
            ..Self::new("usage", what, seen, "cli", fix)
        }
    }

    /// 2 for wrong input, else 1.
    pub fn exit_code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            what,
            seen,
            side,
            fix,
            ..
        } = self;
        writeln!(
            f,
            "error[{code}]: {what}\n  seen  {seen}\n  side  {side}\n  fix   {fix}"
        )
    }
}

impl std::error::Error for CliError {}

/// The result of a verb.
pub type Result<T> = std::result::Result<T, CliError>;

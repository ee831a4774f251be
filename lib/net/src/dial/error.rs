//! Why a dial failed: at which step, at which address, and whose side that is.

use std::fmt;

/// Where a connection attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Resolving the name.
    Dns,
    /// The TCP connection.
    Tcp,
    /// The outbound proxy.
    Proxy,
    /// The TLS handshake.
    Tls,
    /// The deadline over all addresses.
    Deadline,
}

impl Step {
    /// One word for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Dns => "dns",
            Step::Tcp => "tcp",
            Step::Proxy => "proxy",
            Step::Tls => "tls",
            Step::Deadline => "deadline",
        }
    }
}

/// One failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialFailure {
    /// What was dialled: a URL, and the address where one was known.
    pub target: String,
    /// Where it failed.
    pub step: Step,
    /// What was seen, and what to do.
    pub problem: String,
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): {}",
            self.target,
            self.step.as_str(),
            self.problem
        )
    }
}

/// No address could be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialError {
    /// Every attempt, in the order they failed; at least one.
    pub failures: Vec<DialFailure>,
}

impl DialError {
    pub(super) fn one(failure: DialFailure) -> DialError {
        DialError {
            failures: vec![failure],
        }
    }

    /// The step of the attempt that came furthest.
    #[must_use]
    pub fn step(&self) -> Step {
        let rank = |step: Step| match step {
            Step::Deadline => 0,
            Step::Dns => 1,
            Step::Tcp => 2,
            Step::Proxy => 3,
            Step::Tls => 4,
        };
        self.failures
            .iter()
            .map(|f| f.step)
            .max_by_key(|s| rank(*s))
            .unwrap_or(Step::Deadline)
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, failure) in self.failures.iter().enumerate() {
            write!(
                f,
                "{}{failure}",
                if i == 0 {
                    "cannot reach the hub: "
                } else {
                    "; "
                }
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for DialError {}

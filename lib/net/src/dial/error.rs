//! Why a dial failed: at which step, at which address, and whose side that is.

use std::fmt;

use culvert_proto::close::CloseReason;

/// Where a connection attempt failed, in the order of the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The deadline over all addresses.
    Deadline,
    /// Resolving the name.
    Dns,
    /// The TCP connection.
    Tcp,
    /// The outbound proxy.
    Proxy,
    /// The TLS handshake.
    Tls,
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
    /// The word for it in logs, metrics and reports.
    pub reason: CloseReason,
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

    /// The attempt that came furthest: the one to mend first.
    fn furthest(&self) -> Option<&DialFailure> {
        self.failures.iter().max_by_key(|failure| failure.step)
    }

    /// The step of the attempt that came furthest.
    #[must_use]
    pub fn step(&self) -> Step {
        self.furthest()
            .map_or(Step::Deadline, |failure| failure.step)
    }

    /// The reason of the attempt that came furthest.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        self.furthest()
            .map_or(CloseReason::HubTimeout, |failure| failure.reason)
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

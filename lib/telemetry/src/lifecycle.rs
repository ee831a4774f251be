//! Start and stop of a process: signals, phases and exit codes.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Exit code of a process that could not start or failed.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code of a process whose configuration was refused.
pub const EXIT_USAGE: u8 = 2;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Refuses new work, finishes what it has, at most for its grace.
    Draining,
    /// What is left is cut.
    Stopped,
}

/// Tells every part of a process when to drain and when to stop.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<Phase>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Running))
    }
}

impl Shutdown {
    /// The present phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Moves on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// Resolves once `phase` or a later one is reached.
    pub async fn reached(&self, phase: Phase) {
        // `self` holds the sender, so the channel cannot close while we wait.
        let _ = self.0.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Drains, waits until `idle` resolves or `grace` is over, then stops.
    /// Returns `true` when everything finished inside the grace.
    pub async fn drain(&self, grace: Duration, idle: impl Future<Output = ()>) -> bool {
        self.advance(Phase::Draining);
        let finished = tokio::select! {
            () = idle => true,
            () = tokio::time::sleep(grace) => false,
            () = self.reached(Phase::Stopped) => false,
        };
        self.advance(Phase::Stopped);
        finished
    }
}

/// Installs the handlers of SIGTERM and SIGINT: the first starts draining, the
/// second stops at once. SIGPIPE is ignored by the Rust runtime already.
///
/// # Errors
/// The operating system's, when a handler cannot be installed.
pub fn signals() -> std::io::Result<Shutdown> {
    let shutdown = Shutdown::default();
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let told = shutdown.clone();
    tokio::spawn(async move {
        for phase in [Phase::Draining, Phase::Stopped] {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
            };
            tracing::info!(signal = name, ?phase, "signal received");
            told.advance(phase);
        }
    });
    Ok(shutdown)
}

/// Keeps secrets in memory from leaving it: no core file, and no other process
/// of the same user may read this one.
///
/// # Errors
/// The operating system's, when a limit cannot be set.
pub fn forbid_dumps() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_ends_with_the_work() {
        let shutdown = Shutdown::default();
        assert!(shutdown.drain(Duration::from_secs(30), async {}).await);
        assert_eq!(shutdown.phase(), Phase::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn drain_ends_with_the_grace() {
        let shutdown = Shutdown::default();
        let before = tokio::time::Instant::now();
        assert!(
            !shutdown
                .drain(Duration::from_secs(30), std::future::pending())
                .await
        );
        assert_eq!(before.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_phase_never_goes_back() {
        let shutdown = Shutdown::default();
        shutdown.advance(Phase::Stopped);
        shutdown.advance(Phase::Draining);
        assert_eq!(shutdown.phase(), Phase::Stopped);
        shutdown.reached(Phase::Draining).await;
    }
}

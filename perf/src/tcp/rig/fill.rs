//! Readers that stall: a stage begins once their sockets are full.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Rig, idle_plan};
use crate::tcp::Plan;
use crate::tcp::books::Books;
use crate::tcp::serve::End;

/// The sockets are full when no source could send for this long.
const FULL_AFTER: Duration = Duration::from_millis(500);
/// Longest wait for it.
const FILL_MAX: Duration = Duration::from_secs(60);

impl Rig {
    /// Waits until nothing more goes towards the readers that stall: what fills their sockets is
    /// bulk, and another stage measures that.
    pub(super) fn fill(&mut self, plan: &Plan) -> Result<()> {
        let (start, mut sent, mut last) = (Instant::now(), 0, Instant::now());
        let mut books = Books::new(&idle_plan(), Duration::ZERO, Vec::new());
        while last.elapsed() < FULL_AFTER {
            self.turn(plan, &mut books)?;
            let text = books.first_error.clone().unwrap_or_default();
            ensure!(books.errors == 0, "filling sockets: {text}");
            ensure!(start.elapsed() < FILL_MAX, "filling sockets: too slow");
            let now = self.sent();
            if now != sent {
                (sent, last) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Bytes that the service's sources have sent.
    pub(super) fn sent(&self) -> u64 {
        let ends = self.places.iter().flatten().map(|place| &place.end);
        ends.map(|end| match end {
            End::Source { position, .. } => *position,
            _ => 0,
        })
        .sum()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn nothing_moves_towards_readers_that_stall_once_a_stage_begins() {
        let mut rig = Rig::new(TcpListener::bind(("127.0.0.1", 0)).unwrap()).unwrap();
        let plan = Plan {
            entry: rig.listener().local_addr().unwrap(),
            stalled_beside: 3,
            ..idle_plan()
        };
        rig.set_up(&plan).unwrap();
        let sent = rig.sent();
        assert!(sent > 0);
        let mut books = Books::new(&idle_plan(), Duration::ZERO, Vec::new());
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            rig.turn(&plan, &mut books).unwrap();
        }
        assert_eq!(rig.sent(), sent);
    }
}

//! Whether the peer of a leg is gone, or alive and merely not reading.
//!
//! Pure: `TCP_INFO` in, verdict out (security.md 3.4). A deadline on
//! acknowledgements alone (`TCP_USER_TIMEOUT`) would cut readers that pause: a
//! pager closes the window for minutes and still answers every probe.

use std::time::Duration;

use crate::listen::Progress;

/// How often a leg that waits for its peer is looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes are on the way and the window is open: longest silence, ms.
const SILENCE_OPEN_MAX_MS: u64 = 10_000;
/// The window is shut, and probes back off to two minutes: longest silence, ms.
const SILENCE_SHUT_MAX_MS: u64 = 130_000;
/// The same where probes are at most 5 s apart.
const SILENCE_PROBED_MAX_MS: u64 = 11_000;

/// What a look at a leg showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Nothing waits for the peer: no reason to look again until a write.
    Quiet,
    /// Bytes wait for it, and it lives as far as can be told.
    Waiting,
    /// It is gone.
    Dead,
}

/// Follows one leg.
#[derive(Debug)]
pub struct Watch {
    probed: bool,
    /// When the present wait was first seen, and what was seen.
    since: Option<(u64, Progress)>,
}

impl Watch {
    /// `probed` when the kernel keeps the leg's probes at most 5 s apart.
    pub fn new(probed: bool) -> Self {
        let since = None;
        Self { probed, since }
    }

    /// Takes a look at `now_ms`.
    pub fn look(&mut self, now_ms: u64, now: Progress) -> Life {
        if !waits(&now) {
            self.since = None;
            return Life::Quiet;
        }
        match &self.since {
            Some((since_ms, first)) if first.bytes_acked == now.bytes_acked => {
                let waited_ms = now_ms.saturating_sub(*since_ms);
                match is_gone(&now, waited_ms, self.probed) {
                    true => Life::Dead,
                    false => Life::Waiting,
                }
            }
            _ => {
                self.since = Some((now_ms, now));
                Life::Waiting
            }
        }
    }
}

fn waits(progress: &Progress) -> bool {
    progress.segments_unacked > 0 || progress.bytes_unsent > 0
}

/// Nothing was acknowledged for `waited_ms`. The last ACK may be older than the
/// wait: before it, there was nothing to acknowledge.
fn is_gone(now: &Progress, waited_ms: u64, probed: bool) -> bool {
    let silence_ms = u64::from(now.last_ack_ms).min(waited_ms);
    let open = now.segments_unacked > 0 && now.window_bytes > 0;
    silence_ms
        >= match (open, probed) {
            (true, _) => SILENCE_OPEN_MAX_MS,
            (false, true) => SILENCE_PROBED_MAX_MS,
            (false, false) => SILENCE_SHUT_MAX_MS,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Progress = Progress {
        segments_unacked: 3,
        bytes_unsent: 70_000,
        bytes_acked: 1_000,
        window_bytes: 64_000,
        last_ack_ms: 0,
    };
    const SHUT: Progress = Progress {
        segments_unacked: 0,
        window_bytes: 0,
        ..OPEN
    };

    /// Looks every 5 s at a peer whose ACKs are as old as `ack_ms` says, and
    /// gives the time of its death within 20 minutes.
    fn death(probed: bool, seen: Progress, ack_ms: impl Fn(u64) -> u64) -> Option<u64> {
        let mut watch = Watch::new(probed);
        (0..1_200_000).step_by(5_000).find(|now_ms| {
            let last_ack_ms = u32::try_from(ack_ms(*now_ms)).unwrap();
            let seen = Progress {
                last_ack_ms,
                ..seen
            };
            watch.look(*now_ms, seen) == Life::Dead
        })
    }

    #[test]
    fn a_vanished_reader_is_found_after_10_s_even_when_the_leg_had_been_idle() {
        for idle_ms in [0, 200, 3_600_000] {
            for probed in [false, true] {
                assert_eq!(death(probed, OPEN, |now| now + idle_ms), Some(10_000));
            }
        }
    }

    #[test]
    fn a_pausing_reader_lives_as_long_as_it_answers_probes() {
        assert_eq!(death(true, SHUT, |now| now % 5_200), None);
        assert_eq!(death(false, SHUT, |now| now % 120_300), None);
        // In flight when the window closed: not a window that is open.
        let shrunk = Progress {
            segments_unacked: 2,
            ..SHUT
        };
        assert_eq!(death(true, shrunk, |now| now % 5_200), None);
    }

    #[test]
    fn a_pausing_reader_that_vanishes_is_found() {
        assert_eq!(death(true, SHUT, |now| now), Some(15_000));
        assert_eq!(death(false, SHUT, |now| now), Some(130_000));
        let behind = |now: u64| if now < 60_000 { 100 } else { now - 60_000 };
        assert_eq!(death(true, SHUT, behind), Some(75_000));
    }

    #[test]
    fn any_progress_begins_the_wait_anew() {
        let mut watch = Watch::new(true);
        for round in 0..100 {
            let seen = Progress {
                bytes_acked: round,
                last_ack_ms: 9_999,
                ..OPEN
            };
            assert_eq!(watch.look(round * 5_000, seen), Life::Waiting);
        }
    }

    #[test]
    fn a_leg_without_bytes_is_quiet_and_starts_afresh() {
        let idle = Progress {
            segments_unacked: 0,
            bytes_unsent: 0,
            last_ack_ms: 9_000_000,
            ..OPEN
        };
        let mut watch = Watch::new(true);
        assert_eq!(watch.look(0, OPEN), Life::Waiting);
        assert_eq!(watch.look(5_000, idle), Life::Quiet);
        let late = Progress {
            last_ack_ms: 9_000_000,
            ..OPEN
        };
        assert_eq!(watch.look(20_000, late), Life::Waiting, "a new wait");
        assert_eq!(watch.look(29_999, late), Life::Waiting);
        assert_eq!(watch.look(30_000, late), Life::Dead);
    }
}

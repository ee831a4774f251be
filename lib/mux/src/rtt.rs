//! Our own pings and the round trips they measure, and the peer's that wait for their answer.

/// Round trips that the minimum is taken of.
const SAMPLES: usize = 8;
/// Age from which window tuning wants a new sample.
const PROBE_INTERVAL_MS: u64 = 10_000;

/// One ping at a time; answers to any other value are ignored (they may be late, or a lie).
#[derive(Debug, Default)]
pub(crate) struct Pinger {
    next_value: u32,
    wanted: bool,
    in_flight: Option<(u32, u64)>,
    /// Ring of the newest round trips, milliseconds.
    samples: [Option<u64>; SAMPLES],
    newest: usize,
    sampled_ms: Option<u64>,
}

impl Pinger {
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// A ping for window tuning, if the last sample is old and none is on its way.
    pub(crate) fn probe(&mut self, now_ms: u64) {
        let fresh = self
            .sampled_ms
            .is_some_and(|at| now_ms.saturating_sub(at) < PROBE_INTERVAL_MS);
        if self.in_flight.is_none() && !fresh {
            self.wanted = true;
        }
    }

    pub(crate) fn wants_transmit(&self) -> bool {
        self.wanted
    }

    /// The value of the ping that leaves now.
    pub(crate) fn transmit(&mut self, now_ms: u64) -> Option<u32> {
        if !core::mem::take(&mut self.wanted) {
            return None;
        }
        let value = self.next_value;
        self.next_value = value.wrapping_add(1);
        self.in_flight = Some((value, now_ms));
        Some(value)
    }

    /// The round trip, if `value` is the one awaited.
    pub(crate) fn answer(&mut self, value: u32, now_ms: u64) -> Option<u64> {
        let (_, sent_ms) = self.in_flight.filter(|(awaited, _)| *awaited == value)?;
        self.in_flight = None;
        let rtt_ms = now_ms.saturating_sub(sent_ms);
        self.sample(rtt_ms);
        self.sampled_ms = Some(now_ms);
        Some(rtt_ms)
    }

    pub(crate) fn sample(&mut self, rtt_ms: u64) {
        self.newest = (self.newest + 1) % SAMPLES;
        self.samples[self.newest] = Some(rtt_ms);
    }

    /// Queues inflate a round trip, nothing shortens it: the smallest recent one is the path's.
    pub(crate) fn rtt_ms(&self) -> Option<u64> {
        self.samples.iter().flatten().min().copied()
    }
}

/// Pings of the peer that wait for their answer.
pub(crate) const PONGS_MAX: usize = 8;

/// Answers on their way out, oldest first. hashicorp/yamux waits for the answer to each of its
/// pings, and has several under way; only a peer that never waits loses the oldest.
#[derive(Debug, Default)]
pub(crate) struct Pongs {
    values: [u32; PONGS_MAX],
    count: usize,
}

impl Pongs {
    pub(crate) fn push(&mut self, value: u32) {
        if self.count == PONGS_MAX {
            self.pop();
        }
        self.values[self.count] = value;
        self.count += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<u32> {
        let first = (self.count > 0).then_some(self.values[0])?;
        self.values.rotate_left(1);
        self.count -= 1;
        Some(first)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_awaited_answer_counts() {
        let mut pinger = Pinger::default();
        assert_eq!(pinger.answer(0, 5), None);
        pinger.want();
        assert_eq!(pinger.transmit(10), Some(0));
        assert_eq!(pinger.transmit(10), None);
        assert_eq!(pinger.answer(7, 12), None);
        assert_eq!(pinger.answer(0, 30), Some(20));
        assert_eq!(pinger.answer(0, 31), None);
        pinger.sample(15);
        pinger.sample(40);
        assert_eq!(pinger.rtt_ms(), Some(15));
    }

    #[test]
    fn probes_once_per_interval() {
        let mut pinger = Pinger::default();
        pinger.probe(0);
        assert_eq!(pinger.transmit(0), Some(0));
        pinger.probe(1);
        assert!(!pinger.wants_transmit());
        assert_eq!(pinger.answer(0, 3), Some(3));
        pinger.probe(10_002);
        assert!(!pinger.wants_transmit());
        pinger.probe(10_003);
        assert!(pinger.wants_transmit());
    }
}

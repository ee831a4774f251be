//! The channels of one form that wait for clients.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::task::noop_waker_ref;
use tokio::io::{AsyncRead as _, ReadBuf};

use culvert_proto::channel::{CHANNELS_PARKED_MAX, Demand};
use culvert_proto::limits::CHANNEL_IDLE_TIMEOUT_MS;
use culvert_telemetry::metrics::IntGauge;

use super::{Channel, ChannelIo};

/// Without routes, channels wait for this long after the last client, ms.
const REMEMBERED_MS: u64 = 60_000;
/// Between two looks at those that wait, ms.
const LOOK_MS: u64 = 900;
/// A target is good for this long, ms.
const TARGET_MS: u64 = 20;
/// After a failure none is asked for during this time, doubled up to the last, ms.
const PAUSE_MS: u64 = 1_000;
const PAUSE_MAX_MS: u64 = 60_000;

/// Channels that wait.
pub struct Pool {
    /// The cluster has routes for them.
    pub is_routed: bool,
    parked: VecDeque<(u64, Channel)>,
    /// Tickets the agent has for more.
    asked: usize,
    demand: Demand,
    wanted_ms: Option<u64>,
    failures: u32,
    paused_until_ms: u64,
    /// The last look at those that wait.
    looked_ms: u64,
    /// The last target, and when it was found: a sort of a thousand opens.
    target: (u64, usize),
    gauge: IntGauge,
}

impl Pool {
    pub fn new(gauge: IntGauge) -> Self {
        Self {
            is_routed: false,
            parked: VecDeque::new(),
            asked: 0,
            demand: Demand::default(),
            wanted_ms: None,
            failures: 0,
            paused_until_ms: 0,
            looked_ms: 0,
            target: (0, 0),
            gauge,
        }
    }

    /// A client wants one.
    pub fn claim(&mut self, now_ms: u64) -> Option<Channel> {
        self.demand.opened(now_ms);
        self.wanted_ms = Some(now_ms);
        self.take()
    }

    /// The youngest that is well.
    pub fn take(&mut self) -> Option<Channel> {
        while let Some((_, mut channel)) = self.parked.pop_back() {
            self.gauge.dec();
            if channel.is_well() {
                return Some(channel);
            }
        }
        None
    }

    pub fn park(&mut self, now_ms: u64, channel: Channel) {
        self.parked.push_back((now_ms, channel));
        self.gauge.inc();
    }

    pub fn is_full(&self) -> bool {
        self.parked.len() >= CHANNELS_PARKED_MAX
    }

    /// The agent has this many more tickets.
    pub fn asked(&mut self, tickets: usize) {
        self.asked += tickets;
    }

    /// A ticket led to a channel.
    pub fn came(&mut self) {
        self.asked = self.asked.saturating_sub(1);
        self.failures = 0;
    }

    /// A ticket led to nothing.
    pub fn failed(&mut self, now_ms: u64) {
        self.asked = self.asked.saturating_sub(1);
        self.pause(now_ms);
    }

    /// Channels do not come through: asks for none for a while.
    pub fn pause(&mut self, now_ms: u64) {
        if now_ms >= self.paused_until_ms {
            let pause_ms = PAUSE_MS.saturating_mul(1 << self.failures.min(10));
            self.paused_until_ms = now_ms + pause_ms.min(PAUSE_MAX_MS);
            self.failures += 1;
        }
    }

    /// Whether time changes it.
    pub fn is_used(&self, now_ms: u64) -> bool {
        !self.parked.is_empty() || self.is_wanted(now_ms)
    }

    fn is_wanted(&self, now_ms: u64) -> bool {
        let lately = |at_ms| now_ms < at_ms + REMEMBERED_MS;
        self.is_routed || self.wanted_ms.is_some_and(lately)
    }

    fn target(&mut self, now_ms: u64) -> usize {
        if !self.is_wanted(now_ms) {
            return 0;
        }
        let (found_ms, target) = self.target;
        if target == 0 || now_ms >= found_ms + TARGET_MS {
            self.target = (now_ms, self.demand.target(now_ms));
        }
        self.target.1
    }

    /// How many to ask for. Once in a while it discards what is not well.
    pub fn missing(&mut self, now_ms: u64) -> usize {
        let target = self.target(now_ms);
        if now_ms >= self.looked_ms + LOOK_MS {
            self.looked_ms = now_ms;
            self.look(now_ms, target);
        }
        match now_ms < self.paused_until_ms {
            true => 0,
            false => target.saturating_sub(self.parked.len() + self.asked),
        }
    }

    fn look(&mut self, now_ms: u64, target: usize) {
        let before = self.parked.len();
        self.parked.retain_mut(|(since_ms, channel)| {
            now_ms < *since_ms + CHANNEL_IDLE_TIMEOUT_MS && channel.is_well()
        });
        // The oldest leave first where too many wait for a quieter time.
        while self.parked.len() > 2 * target {
            self.parked.pop_front();
        }
        let gone = before - self.parked.len();
        self.gauge.sub(i64::try_from(gone).unwrap_or(0));
    }

    pub fn clear(&mut self) -> VecDeque<(u64, Channel)> {
        self.gauge
            .sub(i64::try_from(self.parked.len()).unwrap_or(0));
        std::mem::take(&mut self.parked)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Channel {
    /// A channel that waits is silent: a byte, an end or an error is a defect.
    fn is_well(&mut self) -> bool {
        let mut byte = [0];
        match &mut self.io {
            ChannelIo::Plain(plain) => {
                let peeked = plain.stream.peek(&mut byte);
                peeked.is_err_and(|why| why.kind() == io::ErrorKind::WouldBlock)
            }
            ChannelIo::Tls(channel) => {
                let mut cx = Context::from_waker(noop_waker_ref());
                let read = Pin::new(&mut *channel.stream);
                matches!(
                    read.poll_read(&mut cx, &mut ReadBuf::new(&mut byte)),
                    Poll::Pending
                )
            }
        }
    }
}

//! The generator: HTTP/1.1 on keep-alive connections, by a constant or Poisson schedule (open
//! loop), or as fast as answers come (closed loop).
//!
//! Latency counts from the **intended** time of a request, so a relay that stalls is charged for
//! every request that should have been sent meanwhile. Bytes are counted and compared where they
//! arrive. One thread, one busy loop, which also drives the [service](crate::service).

mod client;
mod engine;
mod schedule;

use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;

pub use engine::Engine;
pub(crate) use schedule::Schedule;

/// Shortest latency told apart, and longest one recorded, in microseconds.
const LATENCY_US: (u64, u64) = (1, 60_000_000);

/// When requests are due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Each connection asks again as soon as it has its answer.
    Closed,
    /// One every `1 / rate` seconds.
    Constant(f64),
    /// Exponential times between requests, seeded; mean `1 / rate` seconds.
    Poisson(f64),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// 1 KiB, with a unique id that must come back.
    Small,
    /// So many bytes of the pattern.
    Big(u64),
}

/// One measurement.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom to ask.
    pub entry: SocketAddr,
    /// What precedes the service's own path.
    pub prefix: String,
    /// Lines that each request carries beside its own.
    pub fields: String,
    /// Keep-alive connections.
    pub connections: usize,
    /// When requests are due.
    pub arrivals: Arrivals,
    /// What is asked.
    pub body: Body,
    /// How long requests are sent; answers still under way are waited for.
    pub window: Duration,
    /// End earlier, after so many answers.
    pub answers_max: u64,
}

/// What a measurement gave.
#[derive(Debug, Clone)]
pub struct Measured {
    /// From the first request to the last answer, seconds.
    pub seconds: f64,
    /// Right answers that arrived whole.
    pub answers: u64,
    /// Body bytes that arrived and were as they should be.
    pub bytes: u64,
    /// Refused, broken, wrong, or never answered.
    pub errors: u64,
    /// In words, the first of them.
    pub first_error: Option<String>,
    /// Intended time to last byte, microseconds.
    pub latency: Histogram<u64>,
    /// How late the generator itself was, microseconds.
    pub lateness: Histogram<u64>,
}

impl Measured {
    /// Right answers for each second.
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        {
            self.answers as f64 / self.seconds
        }
    }

    /// Share of requests that the generator itself sent more than 100 us late.
    pub fn late_share(&self) -> f64 {
        1.0 - self.lateness.percentile_below(100) / 100.0
    }
}

/// At least 1: the resolution of the histograms.
pub(crate) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_US.0, LATENCY_US.1, 3).expect("the bounds are constants")
}

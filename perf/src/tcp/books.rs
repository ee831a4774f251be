//! The books of one phase: what was due, what came back, how late.

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::load::{Arrivals, Measured, Schedule, microseconds};

use super::{Plan, Work};

/// Longest wait for what is still under way behind a window.
pub(super) const TAIL_MAX: Duration = Duration::from_secs(5);
/// A load that fails so often is given up.
const ERRORS_MAX: u64 = 1_000;
/// Longest burst.
const BURST_MAX: Duration = Duration::from_secs(30);

pub(super) struct Books {
    pub start: Instant,
    pub schedule: Option<Schedule>,
    /// Client connections without a message under way.
    pub free: Vec<usize>,
    pub asked: u64,
    pub answers: u64,
    pub errors: u64,
    /// At the receivers of bulk, or echoed and unchanged.
    pub bytes: u64,
    pub first_error: Option<String>,
    work: Work,
    connections: u64,
    window: Duration,
    last_answer: Instant,
    latency: Histogram<u64>,
}

impl Books {
    pub fn new(plan: &Plan, window: Duration, free: Vec<usize>) -> Books {
        let start = Instant::now();
        let schedule = match plan.work {
            Work::Messages { arrivals, .. } if arrivals != Arrivals::Closed => {
                Some(Schedule::new(arrivals, start, window))
            }
            _ => None,
        };
        Books {
            start,
            schedule,
            free,
            asked: 0,
            answers: 0,
            errors: 0,
            bytes: 0,
            first_error: None,
            work: plan.work,
            connections: plan.connections as u64,
            window,
            last_answer: start,
            latency: crate::load::histogram(),
        }
    }

    /// Whether another message may be sent or another connection opened.
    pub fn sending(&self) -> bool {
        match (&self.schedule, self.work) {
            (Some(schedule), _) => schedule.lasts(),
            (None, Work::Burst { .. }) => self.asked < self.connections,
            (None, _) => self.start.elapsed() < self.window,
        }
    }

    pub fn over(&self) -> bool {
        let waiting = match &self.schedule {
            Some(schedule) => schedule.waiting(),
            None => 0,
        };
        let under_way = self.asked.saturating_sub(self.answers + self.errors);
        let limit = match self.work {
            Work::Burst { .. } => BURST_MAX,
            _ => self.window + TAIL_MAX,
        };
        match self.work {
            _ if self.errors > ERRORS_MAX => true,
            Work::Bulk(_) => !self.sending(),
            _ => !self.sending() && under_way == 0 && waiting == 0 || self.start.elapsed() > limit,
        }
    }

    /// How long the loop may block: never where a schedule is kept.
    pub fn patience(&self) -> Duration {
        if self.schedule.is_some() {
            Duration::ZERO
        } else {
            Duration::from_millis(5)
        }
    }

    /// A free connection and the time its message was due.
    pub fn next(&mut self) -> Result<Option<(usize, Instant)>> {
        let due = match &mut self.schedule {
            Some(schedule) => {
                schedule.note()?;
                schedule.front()
            }
            None => self.sending().then(Instant::now),
        };
        let (Some(due), Some(index)) = (due, self.free.last().copied()) else {
            return Ok(None);
        };
        self.free.pop();
        if let Some(schedule) = &mut self.schedule {
            schedule.pop();
        }
        self.asked += 1;
        Ok(Some((index, due)))
    }

    pub fn answered(&mut self, since: Instant, bytes: usize) {
        self.last_answer = Instant::now();
        let took = self.last_answer.duration_since(since);
        self.latency.saturating_record(microseconds(took));
        self.answers += 1;
        self.bytes += bytes as u64;
    }

    pub fn failed(&mut self, text: String) {
        self.errors += 1;
        self.first_error.get_or_insert(text);
    }

    pub fn finish(self) -> Measured {
        let bulk = matches!(self.work, Work::Bulk(_));
        let waiting = self.schedule.as_ref().map_or(0, Schedule::waiting);
        let lost = self.asked.saturating_sub(self.answers + self.errors) + waiting;
        let end = if bulk {
            Instant::now()
        } else {
            self.last_answer
        };
        Measured {
            seconds: end.duration_since(self.start).as_secs_f64(),
            answers: self.answers,
            bytes: self.bytes,
            errors: self.errors + lost,
            first_error: self
                .first_error
                .or_else(|| (lost > 0).then(|| format!("{lost} without an answer"))),
            latency: self.latency,
            lateness: self
                .schedule
                .map_or_else(crate::load::histogram, Schedule::lateness),
        }
    }
}

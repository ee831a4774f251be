//! One engine thread: its pairs, their turns and their times. No future, no
//! lock and no allocation for a byte.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use culvert_proto::close::CloseReason;

use crate::flow::{COPY_BYTES, Env, Rests, THIN_BYTES};
use crate::hop::{DOORS, Doors};
use crate::inbox::{Arrival, Command, Inbox, Live, Place, Summary};
use crate::kernel::Linux;
use crate::pair::{Limits, Outcome, Pair, Side};
use crate::pipe::Pool;
use crate::poll::{EVENTS_MAX, Event, Poll};
use crate::slab::{Id, Slab, Times};
use crate::spin::Spin;
use culvert_net::peer::LOOK_INTERVAL;

/// The token of the bell.
const BELL: u64 = u64::MAX;
/// First and longest wait before a pair tries again by itself, ms.
const LATER_MS: u64 = 1;
const LATER_MAX_MS: u64 = 64;

/// What one thread may use.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Pipes.
    pub pipes_max: usize,
    /// Bytes read and not sent.
    pub rest_bytes_max: usize,
    /// A CPU is there for the thread, and none is taken from others.
    pub spins: bool,
    /// What ends pairs that only wait.
    pub limits: Limits,
}

struct Entry {
    pair: Pair<Linux>,
    cluster: u32,
    began_ms: u64,
    /// It is in the run queue.
    queued: bool,
    /// A look is set.
    watched: bool,
    /// The next wait before it tries again by itself.
    later_ms: u64,
    live: Arc<Live>,
    ended: Option<oneshot::Sender<Summary>>,
    _place: Place,
}

/// A thread at work.
pub struct Worker {
    inbox: Arc<Inbox>,
    poll: Poll,
    shared: Shared,
    pairs: Slab<Box<Entry>>,
    queue: VecDeque<Id>,
    doors: Doors,
    arrivals: Vec<Arrival>,
    /// When to look at pairs, and when to let them try again.
    looks: Times,
    laters: Times,
    limits: Limits,
    spin: Spin,
    clock: Instant,
    /// Bytes delivered, and those of them spliced.
    moved: (u64, u64),
}

/// What all pairs of the thread use.
struct Shared {
    kernel: Linux,
    pool: Pool<<Linux as crate::kernel::Kernel>::Pipe>,
    rests: Rests,
    scratch: Box<[u8]>,
    now_ms: u64,
}

impl Shared {
    fn env(&mut self, cluster: u32) -> Env<'_, Linux> {
        Env {
            kernel: &mut self.kernel,
            pool: &mut self.pool,
            rests: &mut self.rests,
            scratch: &mut self.scratch,
            cluster,
            now_ms: self.now_ms,
        }
    }
}

impl Worker {
    /// For the thread that calls.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn new(inbox: Arc<Inbox>, uring: bool, share: &Share) -> io::Result<Self> {
        let mut poll = Poll::new(uring)?;
        poll.add(inbox.bell.as_fd(), BELL)?;
        Ok(Self {
            inbox,
            poll,
            shared: Shared {
                kernel: Linux,
                pool: Pool::new(share.pipes_max),
                rests: Rests::new(share.rest_bytes_max),
                scratch: vec![0; COPY_BYTES].into(),
                now_ms: 0,
            },
            pairs: Slab::default(),
            queue: VecDeque::new(),
            doors: Doors::default(),
            arrivals: Vec::new(),
            looks: Times::default(),
            laters: Times::default(),
            limits: share.limits,
            spin: Spin::new(share.spins),
            clock: Instant::now(),
            moved: (0, 0),
        })
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// What the poll says; every pair is then reset.
    pub fn run(mut self) -> io::Result<()> {
        let mut told = Vec::with_capacity(EVENTS_MAX);
        loop {
            told.clear();
            let timeout = self.timeout();
            self.poll.wait(timeout, &mut told)?;
            self.shared.now_ms = millis(self.clock.elapsed());
            for event in &told {
                if event.token == BELL {
                    if event.ended {
                        self.poll.add(self.inbox.bell.as_fd(), BELL)?;
                    }
                    if !self.obey()? {
                        return Ok(());
                    }
                } else if event.token >= DOORS {
                    self.doors.knock(event, &mut self.poll)?;
                } else {
                    self.heed(event)?;
                }
            }
            self.admit()?;
            self.keep_time()?;
            self.work()?;
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        // As old as the last round: a look may come that much late.
        let now_ms = self.shared.now_ms;
        let doors = self.doors.wants(now_ms);
        if doors.is_ok() || !self.queue.is_empty() || self.spins() {
            return Some(Duration::ZERO);
        }
        let pairs = self.looks.next().into_iter().chain(self.laters.next());
        let next = pairs.chain(doors.err().flatten()).min()?;
        Some(Duration::from_millis(next.saturating_sub(now_ms)))
    }

    fn spins(&mut self) -> bool {
        self.spin.is_on() && self.spin.polls_on(micros(self.clock.elapsed()))
    }

    /// Whether it goes on.
    fn obey(&mut self) -> io::Result<bool> {
        for command in self.inbox.take() {
            match command {
                Command::Join(arrival) => self.join(*arrival)?,
                Command::Open(door) => self.doors.open(*door, &mut self.poll)?,
                Command::Cut(live, reason) => {
                    let (id, _) = Id::of(live.place.load(Ordering::Relaxed));
                    self.end(id, reason)?;
                }
                Command::Stop => {
                    for id in self.pairs.ids() {
                        self.end(id, CloseReason::Shutdown)?;
                    }
                    self.doors.close(&mut self.poll)?;
                    // A ring lets go of its files when it has heard of it.
                    self.poll.wait(Some(Duration::ZERO), &mut Vec::new())?;
                    return Ok(false);
                }
            }
        }
        self.tell_gauges();
        Ok(true)
    }

    fn join(&mut self, arrival: Arrival) -> io::Result<()> {
        let Arrival {
            sockets,
            early,
            probed,
            cluster,
            live,
            ended,
            place,
        } = arrival;
        let mut env = self.shared.env(cluster);
        let pair = Pair::join(sockets, early, probed, &mut env);
        let entry = Entry {
            pair,
            cluster,
            began_ms: self.shared.now_ms,
            queued: false,
            watched: false,
            later_ms: LATER_MS,
            live: live.clone(),
            ended,
            _place: place,
        };
        let Ok(id) = self.pairs.insert(Box::new(entry)) else {
            return Ok(());
        };
        live.place.store(id.token(Side::Client), Ordering::Relaxed);
        for side in [Side::Client, Side::Service] {
            if self.watch(id, side).is_err() {
                // Without news of it, it would hang.
                return self.end(id, CloseReason::Overload);
            }
        }
        Ok(())
    }

    fn admit(&mut self) -> io::Result<()> {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let now_ms = self.shared.now_ms;
        self.doors.admit(now_ms, &mut self.poll, &mut arrivals)?;
        for arrival in arrivals.drain(..) {
            self.join(arrival)?;
        }
        self.arrivals = arrivals;
        let refused = &self.inbox.gauges.hops_refused;
        refused.store(self.doors.refused(), Ordering::Relaxed);
        Ok(())
    }

    fn watch(&mut self, id: Id, side: Side) -> io::Result<()> {
        let Some(entry) = self.pairs.get(id) else {
            return Ok(());
        };
        let socket = entry.pair.socket(side).as_fd();
        self.poll.add(socket, id.token(side))
    }

    fn heed(&mut self, event: &Event) -> io::Result<()> {
        let (id, side) = Id::of(event.token);
        let Some(entry) = self.pairs.get(id) else {
            return Ok(());
        };
        entry.pair.ready(side, event.told);
        if !std::mem::replace(&mut entry.queued, true) {
            self.queue.push_back(id);
        }
        if event.ended {
            self.watch(id, side)?;
        }
        Ok(())
    }

    fn keep_time(&mut self) -> io::Result<()> {
        let now_ms = self.shared.now_ms;
        while let Some(id) = self.laters.due(now_ms) {
            if let Some(entry) = self.pairs.get(id)
                && !std::mem::replace(&mut entry.queued, true)
            {
                self.queue.push_back(id);
            }
        }
        while let Some(id) = self.looks.due(now_ms) {
            let Some(entry) = self.pairs.get(id) else {
                continue;
            };
            let mut env = self.shared.env(entry.cluster);
            let look_ms = millis(LOOK_INTERVAL);
            match guarded(|| entry.pair.look(&self.limits, look_ms, &mut env)) {
                Some(Ok(Some(due_ms))) => self.looks.set(due_ms.max(now_ms + 1), id),
                Some(Ok(None)) => entry.watched = false,
                Some(Err(reason)) => self.end(id, reason)?,
                None => self.panicked(id)?,
            }
        }
        Ok(())
    }

    /// One turn for everyone in the queue.
    fn work(&mut self) -> io::Result<()> {
        let turns = self.queue.len();
        let (before, mut bulk) = (self.moved.0, false);
        for _ in 0..turns {
            let Some(id) = self.queue.pop_front() else {
                break;
            };
            let Some(entry) = self.pairs.get(id) else {
                continue;
            };
            let mut env = self.shared.env(entry.cluster);
            let (all, spliced) = total(&entry.pair);
            let outcome = guarded(|| turn(&mut entry.pair, &mut env));
            let now = total(&entry.pair);
            self.moved.0 += now.0 - all;
            self.moved.1 += now.1 - spliced;
            bulk |= entry.pair.is_splicing();
            count(&entry.pair, &entry.live);
            let Some(outcome) = outcome else {
                self.panicked(id)?;
                continue;
            };
            if outcome != Outcome::Later {
                entry.later_ms = LATER_MS;
            }
            match outcome {
                Outcome::Again => self.queue.push_back(id),
                Outcome::Waits => entry.queued = false,
                Outcome::Later => {
                    entry.queued = false;
                    self.laters.set(self.shared.now_ms + entry.later_ms, id);
                    entry.later_ms = (entry.later_ms * 2).min(LATER_MAX_MS);
                }
                Outcome::Ended(reason) => {
                    self.end(id, reason)?;
                    continue;
                }
            }
            if !std::mem::replace(&mut entry.watched, true) {
                let due_ms = self.shared.now_ms + millis(LOOK_INTERVAL);
                self.looks.set_behind(due_ms, id);
            }
        }
        if turns > 0 {
            self.tell_gauges();
            let moved = self.moved.0 - before;
            let small = moved > 0 && moved < THIN_BYTES as u64 && !bulk;
            if self.spin.is_allowed() {
                self.spin.worked(micros(self.clock.elapsed()), small);
            }
        }
        Ok(())
    }

    /// A defect of ours: it costs the pair that showed it, and is told.
    fn panicked(&mut self, id: Id) -> io::Result<()> {
        tracing::error!("the turn of a pair panicked; it is reset, the others live on");
        let panics = &self.inbox.gauges.panics;
        panics.fetch_add(1, Ordering::Relaxed);
        self.end(id, CloseReason::Internal)
    }

    fn end(&mut self, id: Id, reason: CloseReason) -> io::Result<()> {
        let Some(mut entry) = self.pairs.remove(id) else {
            return Ok(());
        };
        for side in [Side::Client, Side::Service] {
            self.poll.remove(id.token(side))?;
        }
        entry.pair.release(&mut self.shared.env(entry.cluster));
        count(&entry.pair, &entry.live);
        let Entry {
            pair,
            began_ms,
            live,
            ended,
            _place: place,
            ..
        } = *entry;
        drop(pair);
        let summary = Summary {
            reason,
            to_service: live.to_service.load(Ordering::Relaxed),
            to_client: live.to_client.load(Ordering::Relaxed),
            spliced: live.spliced.load(Ordering::Relaxed),
            life_ms: self.shared.now_ms - began_ms,
        };
        // Before the summary: who hears of the end finds the place free.
        drop(place);
        self.tell_gauges();
        match ended {
            // Nobody has to wait for it.
            Some(ended) => drop(ended.send(summary)),
            None => tracing::debug!(?summary, "a pair of a hop ended"),
        }
        Ok(())
    }

    fn tell_gauges(&self) {
        let gauges = &self.inbox.gauges;
        let Shared { pool, rests, .. } = &self.shared;
        gauges.pairs.store(self.pairs.len(), Ordering::Relaxed);
        gauges.bytes.store(self.moved.0, Ordering::Relaxed);
        gauges.spliced_bytes.store(self.moved.1, Ordering::Relaxed);
        gauges.pipes.store(pool.lent(), Ordering::Relaxed);
        gauges
            .pipes_exhausted
            .store(pool.exhausted(), Ordering::Relaxed);
        gauges.rest_bytes.store(rests.held(), Ordering::Relaxed);
        gauges.spun_us.store(self.spin.spun_us(), Ordering::Relaxed);
    }
}

/// `None` when `work` panicked.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn turn(pair: &mut Pair<Linux>, env: &mut Env<'_, Linux>) -> Outcome {
    #[cfg(test)]
    assert_ne!(env.cluster, tests::POISONED, "wanted by the test");
    pair.turn(env)
}

/// Bytes delivered both ways, and those of them spliced.
fn total(pair: &Pair<Linux>) -> (u64, u64) {
    let (up, down) = (pair.counts(Side::Client), pair.counts(Side::Service));
    (up.0 + down.0, up.1 + down.1)
}

fn count(pair: &Pair<Linux>, live: &Live) {
    let (to_service, up) = pair.counts(Side::Client);
    let (to_client, down) = pair.counts(Side::Service);
    live.to_service.store(to_service, Ordering::Relaxed);
    live.to_client.store(to_client, Ordering::Relaxed);
    live.spliced.store(up + down, Ordering::Relaxed);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use crate::{Engine, IoEngine, Join, Settings, probe};

    use super::*;

    /// Every turn of its pairs panics.
    pub const POISONED: u32 = 666;

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_panic_in_one_pairs_turn_costs_that_pair_only() {
        let limits = Limits {
            idle_max_ms: 0,
            half_closed_max_ms: 0,
            stalled_max_ms: 0,
            starved_max_ms: 0,
        };
        let engine = Engine::start(&Settings {
            threads: 1,
            backend: probe(IoEngine::Auto).unwrap(),
            pairs_max: 2,
            cluster_pairs_max: 1,
            share: Share {
                pipes_max: 1,
                rest_bytes_max: 1 << 20,
                spins: false,
                limits,
            },
        })
        .unwrap();
        let join = |cluster| {
            let (client, near) = connection();
            let (far, service) = connection();
            let joined = engine.join(Join {
                client: near.into(),
                service: far.into(),
                from_client: Vec::new(),
                from_service: Vec::new(),
                cluster,
            });
            (client, service, joined.ok().unwrap())
        };
        let (mut client, mut service, healthy) = join(1);
        let (mut lost, _other, poisoned) = join(POISONED);
        let summary = poisoned.ended.blocking_recv().unwrap();
        assert_eq!(summary.reason, CloseReason::Internal);
        let read = lost.read(&mut [0]).unwrap_err();
        assert_eq!(read.kind(), ErrorKind::ConnectionReset);

        client.write_all(b"alive").unwrap();
        let mut got = [0; 5];
        service.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"alive");
        let panics = |gauges: &crate::Gauges| gauges.panics.load(Ordering::Relaxed);
        assert_eq!(engine.gauges().map(panics).sum::<u64>(), 1);
        drop(healthy);
    }
}

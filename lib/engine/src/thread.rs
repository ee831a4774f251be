//! One engine thread: its pairs, their turns and their times. No future, no
//! lock and no allocation for a byte.

mod show;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
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
use crate::observe::{Observe, Visit};
use crate::pair::{Limits, Outcome, Pair, Side};
use crate::pipe::Pool;
use crate::poll::{EVENTS_MAX, Event, Poll};
use crate::slab::{Id, Slab, Times};
use crate::spin::Spin;
use crate::tally::{Stalls, Tally, micros, millis, nanos};
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
    began_ns: u64,
    /// When it was told to have a turn, or had its last one.
    ready_ns: u64,
    stalls: Stalls,
    /// It is in the run queue.
    queued: bool,
    /// A look is set.
    watched: bool,
    /// The next wait before it tries again by itself.
    later_ms: u64,
    live: Arc<Live>,
    ended: Option<oneshot::Sender<Summary>>,
    observer: Option<Box<dyn Observe>>,
    _place: Place,
}

impl Entry {
    fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [Side::Client, Side::Service].map(|side| self.pair.socket(side).as_fd())
    }
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
    /// When to show pairs to who watches them, and who asked to be shown one.
    samples: Times,
    visits: VecDeque<Visit>,
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
    now_ns: u64,
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
                now_ns: 0,
                now_ms: 0,
            },
            pairs: Slab::default(),
            queue: VecDeque::new(),
            doors: Doors::default(),
            arrivals: Vec::new(),
            looks: Times::default(),
            laters: Times::default(),
            samples: Times::default(),
            visits: VecDeque::new(),
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
            let now = self.clock.elapsed();
            (self.shared.now_ns, self.shared.now_ms) = (nanos(now), millis(now));
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
            self.show();
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        // As old as the last round: a look may come that much late.
        let now_ms = self.shared.now_ms;
        let doors = self.doors.wants(now_ms);
        let busy = !self.queue.is_empty() || !self.visits.is_empty();
        if doors.is_ok() || busy || self.spins() {
            return Some(Duration::ZERO);
        }
        let times = [&self.looks, &self.laters, &self.samples];
        let pairs = times.into_iter().filter_map(Times::next);
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
                Command::Visit(visit) => self.visits.push_back(visit),
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
            observer,
        } = arrival;
        let mut env = self.shared.env(cluster);
        let pair = Pair::join(sockets, early, probed, &mut env);
        let entry = Entry {
            pair,
            cluster,
            began_ns: self.shared.now_ns,
            ready_ns: self.shared.now_ns,
            stalls: Stalls::default(),
            queued: false,
            watched: false,
            later_ms: LATER_MS,
            live: live.clone(),
            ended,
            observer,
            _place: place,
        };
        let Ok(id) = self.pairs.insert(Box::new(entry)) else {
            return Ok(());
        };
        self.show_first(id);
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
        if !entry.queued {
            entry.ready_ns = self.shared.now_ns;
        }
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
            let look_ms = millis(LOOK_INTERVAL);
            let tally = Tally::of(&entry.pair);
            entry.stalls.seen(&tally, self.shared.now_ns, &entry.live);
            let mut env = self.shared.env(entry.cluster);
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
        if turns == 0 {
            return Ok(());
        }
        let (before, mut bulk) = (self.moved.0, false);
        for _ in 0..turns {
            let Some(id) = self.queue.pop_front() else {
                break;
            };
            if let Some((outcome, splices)) = self.take_turn(id)? {
                bulk |= splices;
                self.follow_up(id, outcome)?;
            }
        }
        self.tell_gauges();
        let ended = self.clock.elapsed();
        let took_ns = nanos(ended).saturating_sub(self.shared.now_ns);
        self.inbox.gauges.turns.round(took_ns);
        let moved = self.moved.0 - before;
        let small = moved > 0 && moved < THIN_BYTES as u64 && !bulk;
        if self.spin.is_allowed() {
            self.spin.worked(micros(ended), small);
        }
        Ok(())
    }

    /// The turn of a pair, and whether it moves bulk; nothing when it is gone.
    fn take_turn(&mut self, id: Id) -> io::Result<Option<(Outcome, bool)>> {
        let Some(entry) = self.pairs.get(id) else {
            return Ok(None);
        };
        let mut env = self.shared.env(entry.cluster);
        let before = Tally::of(&entry.pair);
        let outcome = guarded(|| turn(&mut entry.pair, &mut env));
        let after = Tally::of(&entry.pair);
        let now_ns = nanos(self.clock.elapsed());
        let took_ns = now_ns.saturating_sub(entry.ready_ns);
        self.inbox.gauges.turns.turned(&before, &after, took_ns);
        // Of whoever goes on, the next turn has been due since now.
        entry.ready_ns = now_ns;
        entry.stalls.seen(&after, now_ns, &entry.live);
        if after.answered(&before) {
            let first = now_ns.saturating_sub(entry.began_ns).max(1);
            entry.live.first_byte_ns.store(first, Ordering::Relaxed);
        }
        after.tell(&entry.live);
        let ((all, spliced), (all_before, spliced_before)) = (after.total(), before.total());
        self.moved.0 += all - all_before;
        self.moved.1 += spliced - spliced_before;
        match outcome {
            Some(outcome) => Ok(Some((outcome, after.is_splicing()))),
            None => self.panicked(id).map(|()| None),
        }
    }

    /// What comes of a turn.
    fn follow_up(&mut self, id: Id, outcome: Outcome) -> io::Result<()> {
        let now_ms = self.shared.now_ms;
        let Some(entry) = self.pairs.get(id) else {
            return Ok(());
        };
        if outcome != Outcome::Later {
            entry.later_ms = LATER_MS;
        }
        match outcome {
            Outcome::Again => self.queue.push_back(id),
            Outcome::Waits => entry.queued = false,
            Outcome::Later => {
                entry.queued = false;
                self.laters.set(now_ms + entry.later_ms, id);
                entry.later_ms = (entry.later_ms * 2).min(LATER_MAX_MS);
            }
            Outcome::Ended(reason) => return self.end(id, reason),
        }
        if !std::mem::replace(&mut entry.watched, true) {
            self.looks.set_behind(now_ms + millis(LOOK_INTERVAL), id);
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
        let tally = Tally::of(&entry.pair);
        entry.stalls.seen(&tally, self.shared.now_ns, &entry.live);
        tally.tell(&entry.live);
        if let Some(mut observer) = entry.observer.take() {
            observer.ended(entry.sockets(), reason);
        }
        entry.pair.release(&mut self.shared.env(entry.cluster));
        let Entry {
            pair,
            began_ns,
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
            life_ms: self.shared.now_ns.saturating_sub(began_ns) / 1_000_000,
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
        gauges.pipes_idle.store(pool.idle(), Ordering::Relaxed);
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

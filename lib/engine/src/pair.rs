//! Two sockets joined: a direction each way, honest ends, and what is known when
//! it is over. A state machine over [`Kernel`]: it never waits and reads no
//! clock.

use rustix::io::Errno;

use culvert_proto::close::CloseReason;

use crate::flow::{Env, Flow, Turn};
use crate::kernel::Kernel;
use culvert_net::peer::{Life, Watch};

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who asked.
    Client = 0,
    /// Who answers: the agent's leg.
    Service = 1,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Service,
            Self::Service => Self::Client,
        }
    }
}

/// What a poll said of one socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Bytes or an end may be read.
    pub readable: bool,
    /// Bytes may be written.
    pub writable: bool,
    /// The peer sent FIN.
    pub hup: bool,
    /// Something broke.
    pub error: bool,
}

/// What becomes of a pair after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for readiness.
    Waits,
    /// Its share is used up: to the tail of the queue.
    Again,
    /// It tries again soon: the kernel is short of memory, or the last bytes
    /// and FINs are not acknowledged yet.
    Later,
    /// It is over.
    Ended(CloseReason),
}

/// What ends a pair that only waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// No byte either way, ms; 0 is for ever.
    pub idle_max_ms: u64,
    /// One direction ended and no byte in the other, ms; 0 is for ever.
    pub half_closed_max_ms: u64,
    /// Bytes wait for a peer whose window stays shut, ms; 0 is for ever.
    pub stalled_max_ms: u64,
    /// The kernel stays short of memory, ms.
    pub starved_max_ms: u64,
}

/// Two joined sockets.
pub struct Pair<K: Kernel> {
    sockets: [K::Socket; 2],
    /// `flows[side]` reads `sockets[side]`.
    flows: [Flow<K::Pipe>; 2],
    watches: [Watch; 2],
    broken: bool,
    starved_since_ms: Option<u64>,
    /// Bytes moved at the last look, and when that last changed.
    seen: u64,
    seen_ms: u64,
}

impl<K: Kernel> Pair<K> {
    /// Joins two sockets; `early[side]` was read from that side before and is
    /// delivered first. Both are armed already: any end but a clean one is RST.
    /// Nothing is tried before a poll tells of them; one may be connecting.
    pub fn join(
        sockets: [K::Socket; 2],
        early: [Vec<u8>; 2],
        probed: [bool; 2],
        env: &mut Env<'_, K>,
    ) -> Self {
        Self {
            sockets,
            flows: early.map(|early| Flow::new(early, env.rests)),
            watches: probed.map(Watch::new),
            broken: false,
            starved_since_ms: None,
            seen: 0,
            seen_ms: env.now_ms,
        }
    }

    /// The socket of a side.
    pub fn socket(&self, side: Side) -> &K::Socket {
        &self.sockets[side as usize]
    }

    /// Bytes delivered that came from a side, and those of them spliced.
    pub fn counts(&self, from: Side) -> (u64, u64) {
        let flow = &self.flows[from as usize];
        (flow.moved(), flow.spliced())
    }

    /// Whether it moves bulk: what comes from the client, and from the service.
    pub fn splicing(&self) -> [bool; 2] {
        self.flows.each_ref().map(Flow::is_splicing)
    }

    /// Whether bytes wait for room: what comes from the client, and from the
    /// service.
    pub fn waits_for_room(&self) -> [bool; 2] {
        self.flows.each_ref().map(Flow::waits_for_room)
    }

    /// A poll told of `side`.
    pub fn ready(&mut self, side: Side, told: Readiness) {
        let own = &mut self.flows[side as usize];
        own.readable |= told.readable || told.hup || told.error;
        own.hup |= told.hup || told.error;
        let towards = &mut self.flows[side.other() as usize];
        towards.writable |= told.writable || told.error;
        self.broken |= told.error;
    }

    /// Moves what can be moved.
    pub fn turn(&mut self, env: &mut Env<'_, K>) -> Outcome {
        if std::mem::take(&mut self.broken)
            && let Some(reason) = self.why_broken(env)
        {
            return Outcome::Ended(reason);
        }
        let mut turns = [Turn::Waits; 2];
        for from in [Side::Client, Side::Service] {
            let (source, sink) = (self.socket_at(from), from.other() as usize);
            let answered = self.flows[sink].is_done();
            let flow = &mut self.flows[source];
            flow.answered = answered;
            let turn = flow.turn(&self.sockets[source], &self.sockets[sink], env);
            turns[from as usize] = turn;
            match turn {
                Turn::SourceBroke(why) => return Outcome::Ended(reason(from, why)),
                Turn::SinkBroke(why) => return Outcome::Ended(reason(from.other(), why)),
                _ => {}
            }
        }
        if turns.contains(&Turn::Starved) {
            self.starved_since_ms.get_or_insert(env.now_ms);
            return Outcome::Later;
        }
        self.starved_since_ms = None;
        if turns.contains(&Turn::Again) {
            return Outcome::Again;
        }
        match turns {
            [Turn::Done, Turn::Done] => self.settle(env),
            _ => Outcome::Waits,
        }
    }

    fn socket_at(&self, side: Side) -> usize {
        side as usize
    }

    fn why_broken(&self, env: &mut Env<'_, K>) -> Option<CloseReason> {
        [Side::Client, Side::Service].into_iter().find_map(|side| {
            let why = env.kernel.error(self.socket(side))?;
            Some(reason(side, why))
        })
    }

    /// Both directions ended. Once their last bytes and FINs are acknowledged the
    /// sockets are closed in all but name: no RST comes of that any more.
    fn settle(&mut self, env: &mut Env<'_, K>) -> Outcome {
        for side in [Side::Client, Side::Service] {
            let socket = self.socket(side);
            if env.kernel.unacked(socket).is_some_and(|bytes| bytes > 0) {
                return match env.kernel.error(socket) {
                    Some(why) => Outcome::Ended(reason(side, why)),
                    None => Outcome::Later,
                };
            }
        }
        Outcome::Ended(CloseReason::Finished)
    }

    /// Looks at what only time can end. Returns when to look again, in ms of
    /// the clock; `None` while there is nothing to wait for.
    ///
    /// # Errors
    /// Why the pair is over.
    pub fn look(
        &mut self,
        limits: &Limits,
        look_ms: u64,
        env: &mut Env<'_, K>,
    ) -> Result<Option<u64>, CloseReason> {
        let now_ms = env.now_ms;
        let moved = self.flows[0].moved() + self.flows[1].moved();
        let active = moved != self.seen;
        if active {
            (self.seen, self.seen_ms) = (moved, now_ms);
        }
        let mut waiting = false;
        for side in [Side::Client, Side::Service] {
            let Some(progress) = env.kernel.progress(&self.sockets[side as usize]) else {
                continue;
            };
            match self.watches[side as usize].look(now_ms, progress) {
                Life::Dead => return Err(reason(side, Errno::TIMEDOUT)),
                life => waiting |= life == Life::Waiting,
            }
        }
        let quiet_ms = now_ms.saturating_sub(self.seen_ms);
        let pending = self.flows.iter().any(|flow| flow.pending() > 0);
        let half = self.flows[0].is_done() || self.flows[1].is_done();
        let starved = self
            .starved_since_ms
            .map(|since| now_ms.saturating_sub(since));
        if starved.is_some_and(|starved| starved >= limits.starved_max_ms) {
            return Err(CloseReason::Overload);
        }
        let mut next = (active || waiting || pending || starved.is_some())
            .then_some(now_ms.saturating_add(look_ms));
        for (holds, limit, reason) in [
            (
                pending || waiting,
                limits.stalled_max_ms,
                CloseReason::StreamStalled,
            ),
            (half, limits.half_closed_max_ms, CloseReason::ClientIdle),
            (true, limits.idle_max_ms, CloseReason::ClientIdle),
        ] {
            if !holds || limit == 0 {
                continue;
            }
            if quiet_ms >= limit {
                return Err(reason);
            }
            let due = self.seen_ms.saturating_add(limit);
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        Ok(next)
    }

    /// Gives back what it holds. Dropped then, its sockets end as they are armed.
    pub fn release(&mut self, env: &mut Env<'_, K>) {
        for flow in &mut self.flows {
            flow.release(env);
        }
    }
}

/// The reason for an error of `side`.
fn reason(side: Side, why: Errno) -> CloseReason {
    match (side, why) {
        (Side::Client, Errno::TIMEDOUT | Errno::HOSTUNREACH) => CloseReason::ClientDead,
        (Side::Client, _) => CloseReason::ClientReset,
        (Side::Service, Errno::CONNREFUSED) => CloseReason::DialRefused,
        (Side::Service, Errno::NETUNREACH) => CloseReason::DialUnreachable,
        (Side::Service, Errno::TIMEDOUT | Errno::HOSTUNREACH) => CloseReason::CarrierDead,
        (Side::Service, _) => CloseReason::UpstreamReset,
    }
}

//! The peers at both ends of a pair, and what they do by themselves.

use std::cell::RefCell;
use std::rc::Rc;

use rustix::io::Errno;

use crate::pair::{Readiness, Side};

/// xorshift: the same seed, the same world.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What the peer on a side will do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Plan {
    Clean,
    /// Resets once it has sent so many bytes.
    Resets(usize),
    /// Neither sends nor acknowledges once it has sent so many bytes.
    Vanishes(usize),
}

/// One peer and the socket towards it.
pub struct Peer {
    pub plan: Plan,
    pub total: usize,
    pub window: usize,
    pub sent: usize,
    pub taken: usize,
    pub fin: bool,
    pub fin_read: bool,
    pub reset: bool,
    /// The kernel told of the reset already, to nobody.
    pub unheard: bool,
    /// Its connection stands; until then nothing can be read or written.
    pub stands: bool,
    /// It refuses the connection.
    pub refuses: bool,
    /// Bytes the engine wrote, those acknowledged, room for more.
    pub accepted: usize,
    pub acked: usize,
    pub room: usize,
    pub finished: bool,
    pub fin_acked: bool,
    pub no_space: bool,
    pub edges: Readiness,
    /// The engine closed the socket: with RST, or with nothing left to say.
    pub closed: Option<bool>,
    pub last_ack_ms: u64,
}

impl Peer {
    pub fn is_gone(&self) -> bool {
        matches!(self.plan, Plan::Vanishes(at) if self.sent >= at)
    }

    /// Bytes that it has not acknowledged, FIN counted as one.
    pub fn unacked(&self) -> usize {
        self.accepted - self.acked + usize::from(self.finished && !self.fin_acked)
    }

    /// What `SO_ERROR` says.
    pub fn broken(&self) -> Option<Errno> {
        let why = match self.stands {
            true => Errno::CONNRESET,
            false => Errno::CONNREFUSED,
        };
        (self.reset && !self.unheard).then_some(why)
    }

    fn may_reset(&self) -> bool {
        matches!(self.plan, Plan::Resets(at) if self.sent >= at) && !self.fin_acked
    }

    /// Resets, if it may, in the middle of a splice that has sent something: the error is spent
    /// on the rest of it.
    pub fn resets_unheard(&mut self) {
        if self.may_reset() && !self.reset {
            (self.reset, self.unheard) = (true, true);
            (self.edges.readable, self.edges.writable, self.edges.hup) = (true, true, true);
        }
    }

    pub fn has_edge(&self) -> bool {
        self.edges != Readiness::default()
    }
}

pub struct World {
    pub random: Random,
    pub peers: [Peer; 2],
    /// Which calls fail now and then.
    pub faults: usize,
    pub unspliceable: bool,
    pub pipes: usize,
    pub now_ms: u64,
    pub full_pipe: usize,
}

/// The world of one interleaving, shared by its sockets and pipes.
pub type Shared = Rc<RefCell<World>>;

impl World {
    /// Bytes that a read of at most `max` gives, or why none.
    pub fn take(&mut self, side: usize, max: usize, short_tells: bool) -> Result<usize, Errno> {
        let faults = self.faults;
        let peer = &mut self.peers[side];
        let waits = peer.sent - peer.taken;
        if !peer.stands {
            return Err(peer.broken().unwrap_or(Errno::AGAIN));
        }
        if peer.unheard && waits == 0 {
            return Ok(0);
        }
        if peer.reset && !peer.unheard && (waits == 0 || self.random.one_in(2)) {
            return Err(Errno::CONNRESET);
        }
        if waits == 0 {
            if peer.fin {
                peer.fin_read = true;
                return Ok(0);
            }
            return Err(Errno::AGAIN);
        }
        if self.random.one_in(faults) {
            // It came just after the call.
            peer.edges.readable = true;
            return Err(Errno::AGAIN);
        }
        if self.random.one_in(faults * 4) {
            return Err(Errno::NOBUFS);
        }
        let most = waits.min(max);
        let got = match self.random.below(4) {
            0 => 1 + self.random.below(most),
            _ => most,
        };
        // A short read means that no more was there: the rest came later, and is
        // told. A short splice means nothing.
        peer.edges.readable |= short_tells && got < max && got < waits;
        peer.taken += got;
        Ok(got)
    }

    pub fn give(&mut self, side: usize, bytes: usize) -> Result<usize, Errno> {
        let faults = self.faults;
        let peer = &mut self.peers[side];
        assert!(!peer.finished, "bytes after FIN");
        if !peer.stands {
            return Err(peer.broken().unwrap_or(Errno::AGAIN));
        }
        if peer.reset {
            let why = if self.random.one_in(2) {
                Errno::PIPE
            } else {
                Errno::CONNRESET
            };
            return Err(why);
        }
        let room = peer.room - (peer.accepted - peer.acked);
        // Linux says so only while something waits to be acknowledged.
        if room == 0 || peer.accepted > peer.acked && self.random.one_in(faults) {
            peer.no_space = true;
            return Err(Errno::AGAIN);
        }
        if self.random.one_in(faults * 4) {
            return Err(Errno::NOBUFS);
        }
        let most = bytes.min(room);
        let sent = match self.random.below(3) {
            0 => 1 + self.random.below(most),
            _ => most,
        };
        peer.accepted += sent;
        Ok(sent)
    }

    /// One peer does something, if it can.
    pub fn peer_acts(&mut self, side: usize) {
        let now_ms = self.now_ms;
        let (random, peer) = (&mut self.random, &mut self.peers[side]);
        if peer.reset || peer.is_gone() {
            return;
        }
        if !peer.stands {
            peer.reset = peer.refuses;
            peer.stands = !peer.refuses;
            peer.edges.error = peer.refuses;
            peer.edges.writable = true;
            return;
        }
        match random.below(3) {
            0 => {
                let room = peer.window - (peer.sent - peer.taken);
                let most = room.min(peer.total - peer.sent);
                if most > 0 {
                    peer.sent += 1 + random.below(most);
                    peer.edges.readable = true;
                }
            }
            1 => {
                let most = peer.accepted - peer.acked;
                peer.acked += random.below(most + 1);
                peer.last_ack_ms = now_ms;
                peer.fin_acked = peer.finished && peer.acked == peer.accepted;
                if peer.no_space {
                    peer.no_space = false;
                    peer.edges.writable = true;
                }
            }
            _ => {
                if peer.sent == peer.total && !peer.fin {
                    peer.fin = true;
                    peer.edges.readable = true;
                    peer.edges.hup = true;
                }
            }
        }
        if peer.may_reset() {
            peer.reset = true;
            peer.edges.error = true;
        }
    }

    /// Whether the peers can still change anything.
    pub fn is_alive(&self) -> bool {
        self.peers.iter().any(|peer| {
            let idle = peer.stands
                && peer.fin
                && peer.acked == peer.accepted
                && peer.fin_acked == peer.finished
                && !peer.no_space;
            // A peer with a shut window waits for the engine.
            let blocked =
                peer.stands && peer.sent - peer.taken == peer.window && peer.acked == peer.accepted;
            !(idle || peer.reset || peer.is_gone() || blocked && !peer.no_space)
        })
    }
}

/// The world of a seed.
pub fn world(seed: u64) -> Shared {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    random.next();
    let peer = |random: &mut Random| {
        let sizes = [1, 40, 3_000, 70_000, 400_000];
        let most = sizes[random.below(sizes.len())];
        let total = random.below(most);
        let plan = match random.below(10) {
            0 | 1 => Plan::Resets(random.below(total + 1)),
            2 => Plan::Vanishes(random.below(total + 1)),
            _ => Plan::Clean,
        };
        Peer {
            plan,
            total,
            window: 1 + random.below(200_000),
            sent: 0,
            taken: 0,
            fin: false,
            fin_read: false,
            reset: false,
            unheard: false,
            stands: true,
            refuses: false,
            accepted: 0,
            acked: 0,
            room: 1 + random.below(150_000),
            finished: false,
            fin_acked: false,
            no_space: false,
            edges: Readiness::default(),
            closed: None,
            last_ack_ms: 0,
        }
    };
    let mut peers = [peer(&mut random), peer(&mut random)];
    for side in [0, 1] {
        // A window of two bytes is for short streams: the others take for ever.
        let other = peers[1 - side].total;
        let peer = &mut peers[side];
        peer.window = peer.window.max(peer.total / 2_000);
        peer.room = peer.room.max(other / 2_000);
    }
    let service = &mut peers[Side::Service as usize];
    service.stands = !random.one_in(5);
    service.refuses = !service.stands && random.one_in(3);
    for peer in &mut peers {
        peer.edges.writable = peer.stands;
    }
    let faults = [5, 20, 200, 1 << 30][random.below(4)];
    let unspliceable = random.one_in(10);
    let full_pipe = 1 + random.below(300_000);
    Rc::new(RefCell::new(World {
        random,
        peers,
        faults,
        unspliceable,
        pipes: 0,
        now_ms: 0,
        full_pipe,
    }))
}

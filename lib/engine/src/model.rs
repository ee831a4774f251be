//! A kernel that answers as it likes, within what Linux may answer, and the
//! interleavings that it is asked in. Every byte is known by its position, so a
//! lost, doubled, changed or overtaken one is seen at once.
//!
//! `CULVERT_ENGINE_SEEDS` sets how many interleavings are run,
//! `CULVERT_ENGINE_SEED_FIRST` with which one they begin.

use std::cell::RefCell;
use std::rc::Rc;

use rustix::io::Errno;

use culvert_net::listen::Progress;
use culvert_proto::close::CloseReason;

use crate::flow::{COPY_BYTES, Env, Rests};
use crate::kernel::Kernel;
use crate::pair::{Limits, Outcome, Pair, Readiness, Side};
use crate::pipe::Pool;

/// xorshift: the same seed, the same world.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What the peer on a side will do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plan {
    Clean,
    /// Resets once it has sent so many bytes.
    Resets(usize),
    /// Neither sends nor acknowledges once it has sent so many bytes.
    Vanishes(usize),
}

/// One peer and the socket towards it.
struct Peer {
    plan: Plan,
    total: usize,
    window: usize,
    sent: usize,
    taken: usize,
    fin: bool,
    fin_read: bool,
    reset: bool,
    /// Bytes the engine wrote, those acknowledged, room for more.
    accepted: usize,
    acked: usize,
    room: usize,
    finished: bool,
    fin_acked: bool,
    no_space: bool,
    edges: Readiness,
    armed: bool,
    closed: Option<bool>,
    last_ack_ms: u64,
}

impl Peer {
    fn is_gone(&self) -> bool {
        matches!(self.plan, Plan::Vanishes(at) if self.sent >= at)
    }

    fn has_edge(&self) -> bool {
        self.edges != Readiness::default()
    }
}

struct World {
    random: Random,
    peers: [Peer; 2],
    /// Which calls fail now and then.
    faults: usize,
    unspliceable: bool,
    pipes: usize,
    now_ms: u64,
    full_pipe: usize,
}

type Shared = Rc<RefCell<World>>;

struct Socket(Shared, usize);

impl Drop for Socket {
    fn drop(&mut self) {
        let peer = &mut self.0.borrow_mut().peers[self.1];
        peer.closed = Some(peer.armed);
    }
}

/// Which bytes of which source it holds: first position and count.
struct ModelPipe(Shared, RefCell<(usize, usize, usize)>);

impl Drop for ModelPipe {
    fn drop(&mut self) {
        self.0.borrow_mut().pipes -= 1;
    }
}

fn pattern(source: usize, at: usize) -> u8 {
    let mixed = (at as u64 ^ (source as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

struct Model(Shared);

impl World {
    /// Bytes that a read of at most `max` gives, or why none.
    fn take(&mut self, side: usize, max: usize, short_tells: bool) -> Result<usize, Errno> {
        let faults = self.faults;
        let peer = &mut self.peers[side];
        let waits = peer.sent - peer.taken;
        if peer.reset && (waits == 0 || self.random.one_in(2)) {
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

    fn give(&mut self, side: usize, bytes: usize) -> Result<usize, Errno> {
        let faults = self.faults;
        let peer = &mut self.peers[side];
        assert!(!peer.finished, "bytes after FIN");
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
    fn peer_acts(&mut self, side: usize) {
        let now_ms = self.now_ms;
        let (random, peer) = (&mut self.random, &mut self.peers[side]);
        if peer.reset || peer.is_gone() {
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
        if matches!(peer.plan, Plan::Resets(at) if peer.sent >= at) && !peer.fin_acked {
            peer.reset = true;
            peer.edges.error = true;
        }
    }

    /// Whether the peers can still change anything.
    fn is_alive(&self) -> bool {
        self.peers.iter().any(|peer| {
            let idle = peer.fin
                && peer.acked == peer.accepted
                && peer.fin_acked == peer.finished
                && !peer.no_space;
            // A peer with a shut window waits for the engine.
            let blocked = peer.sent - peer.taken == peer.window && peer.acked == peer.accepted;
            !(idle || peer.reset || peer.is_gone() || blocked && !peer.no_space)
        })
    }
}

impl Kernel for Model {
    type Socket = Socket;
    type Pipe = ModelPipe;

    fn recv(&mut self, from: &Socket, into: &mut [u8]) -> Result<usize, Errno> {
        let mut world = self.0.borrow_mut();
        let at = world.peers[from.1].taken;
        let got = world.take(from.1, into.len(), true)?;
        for (offset, byte) in into[..got].iter_mut().enumerate() {
            *byte = pattern(from.1, at + offset);
        }
        Ok(got)
    }

    fn send(&mut self, to: &Socket, data: &[u8]) -> Result<usize, Errno> {
        assert!(!data.is_empty(), "an empty send");
        let mut world = self.0.borrow_mut();
        let at = world.peers[to.1].accepted;
        for (offset, byte) in data.iter().enumerate() {
            assert_eq!(
                *byte,
                pattern(1 - to.1, at + offset),
                "byte {}",
                at + offset
            );
        }
        world.give(to.1, data.len())
    }

    fn pipe(&mut self, bytes: usize) -> Result<(ModelPipe, usize), Errno> {
        let mut world = self.0.borrow_mut();
        let faults = world.faults;
        if world.random.one_in(faults) {
            return Err(Errno::MFILE);
        }
        world.pipes += 1;
        let little = world.random.one_in(faults);
        let size = if little { 8 << 10 } else { bytes };
        Ok((ModelPipe(self.0.clone(), RefCell::default()), size))
    }

    fn splice_in(&mut self, from: &Socket, into: &ModelPipe, bytes: usize) -> Result<usize, Errno> {
        let mut world = self.0.borrow_mut();
        if world.unspliceable {
            return Err(Errno::INVAL);
        }
        let mut held = into.1.borrow_mut();
        assert_eq!(held.2, 0, "spliced into a pipe that holds bytes");
        // Slots run out before bytes do.
        let slots = world.full_pipe;
        let at = world.peers[from.1].taken;
        let got = world.take(from.1, bytes.min(slots), false)?;
        *held = (from.1, at, got);
        Ok(got)
    }

    fn splice_out(&mut self, from: &ModelPipe, to: &Socket, bytes: usize) -> Result<usize, Errno> {
        let mut world = self.0.borrow_mut();
        let mut held = from.1.borrow_mut();
        assert_eq!(held.2, bytes, "the pipe's own count");
        assert_eq!(
            (held.0, held.1),
            (1 - to.1, world.peers[to.1].accepted),
            "order"
        );
        let sent = world.give(to.1, bytes)?;
        held.1 += sent;
        held.2 -= sent;
        Ok(sent)
    }

    fn finish(&mut self, socket: &Socket) -> Result<(), Errno> {
        let mut world = self.0.borrow_mut();
        let source = &world.peers[1 - socket.1];
        assert!(
            source.fin_read && source.taken == source.total,
            "a FIN nobody sent"
        );
        let whole = source.total;
        let peer = &mut world.peers[socket.1];
        assert_eq!(peer.accepted, whole, "FIN before the last byte");
        if peer.reset {
            return Err(Errno::NOTCONN);
        }
        peer.finished = true;
        Ok(())
    }

    fn arm(&mut self, socket: &Socket, armed: bool) -> Result<(), Errno> {
        let mut world = self.0.borrow_mut();
        let peer = &mut world.peers[socket.1];
        assert!(
            armed || peer.fin_acked,
            "disarmed before the end was acknowledged"
        );
        peer.armed = armed;
        Ok(())
    }

    fn error(&mut self, socket: &Socket) -> Option<Errno> {
        self.0.borrow().peers[socket.1]
            .reset
            .then_some(Errno::CONNRESET)
    }

    fn progress(&mut self, socket: &Socket) -> Option<Progress> {
        let world = self.0.borrow();
        let peer = &world.peers[socket.1];
        let unacked = peer.accepted - peer.acked + usize::from(peer.finished && !peer.fin_acked);
        let silence_ms = match peer.is_gone() {
            true => world.now_ms - peer.last_ack_ms,
            false => 0,
        };
        Some(Progress {
            segments_unacked: u32::try_from(unacked).unwrap(),
            bytes_unsent: 0,
            bytes_acked: peer.acked as u64,
            window_bytes: 1,
            last_ack_ms: u32::try_from(silence_ms).unwrap(),
        })
    }
}

const LIMITS: Limits = Limits {
    idle_max_ms: 0,
    half_closed_max_ms: 0,
    stalled_max_ms: 0,
    starved_max_ms: u64::MAX,
};

fn world(seed: u64) -> Shared {
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
            accepted: 0,
            acked: 0,
            room: 1 + random.below(150_000),
            finished: false,
            fin_acked: false,
            no_space: false,
            edges: Readiness::default(),
            armed: false,
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

/// Runs one interleaving to its end and says how it ended; `None` when a peer
/// that vanished left nothing to find it by.
fn run(seed: u64) -> Option<CloseReason> {
    let shared = world(seed);
    let mut model = Model(shared.clone());
    let few = shared.borrow_mut().random.one_in(4);
    let mut pool = Pool::new(if few { 1 } else { 8 });
    let mut rests = Rests::new(if few { 0 } else { 1 << 20 });
    let mut scratch = vec![0; COPY_BYTES];
    let mut env = Env {
        kernel: &mut model,
        pool: &mut pool,
        rests: &mut rests,
        scratch: &mut scratch,
        cluster: 7,
        now_ms: 0,
    };
    let early = [0, 1].map(|side| {
        let mut world = shared.borrow_mut();
        let total = world.peers[side].total.min(5_000);
        let early = world.random.below(total + 1);
        let peer = &mut world.peers[side];
        (peer.sent, peer.taken) = (early, early);
        (0..early).map(|at| pattern(side, at)).collect::<Vec<u8>>()
    });
    let sockets = [0, 1].map(|side| Socket(shared.clone(), side));
    let mut pair = Pair::join(sockets, early, [true; 2], &mut env).unwrap();
    let ended = drive(&shared, &mut pair, &mut env);
    pair.release(&mut env);
    drop(pair);
    assert_eq!((env.pool.lent(), env.rests.held()), (0, 0), "given back");
    drop(pool);
    judge(&shared.borrow(), ended);
    ended
}

fn drive(shared: &Shared, pair: &mut Pair<Model>, env: &mut Env<'_, Model>) -> Option<CloseReason> {
    let (mut queued, mut later) = (true, false);
    for _ in 0..5_000_000 {
        let mut world = shared.borrow_mut();
        let side = world.random.below(2);
        let choice = world.random.below(8);
        let edge = world.peers[side].has_edge();
        let idle = !queued && !later && !world.is_alive();
        let no_edge = world.peers.iter().all(|peer| !peer.has_edge());
        if idle && no_edge {
            // Only time can tell now: of peers that are gone, or of nothing.
            world.now_ms += 5_000;
            env.now_ms = world.now_ms;
            let gone = world.peers.iter().any(Peer::is_gone);
            assert!(gone, "nobody moves, and all bytes did not arrive");
            drop(world);
            match pair.look(&LIMITS, 5_000, env) {
                Ok(Some(_)) => continue,
                Ok(None) => return None,
                Err(why) => return Some(why),
            }
        }
        match choice {
            0..=2 => world.peer_acts(side),
            3 if edge => {
                let told = std::mem::take(&mut world.peers[side].edges);
                let side = if side == 0 {
                    Side::Client
                } else {
                    Side::Service
                };
                pair.ready(side, told);
                queued = true;
            }
            4 if later => (queued, later) = (true, false),
            5 => {
                // Looks at any time harm nobody who lives.
                world.now_ms += 1;
                env.now_ms = world.now_ms;
                drop(world);
                if let Err(why) = pair.look(&LIMITS, 5_000, env) {
                    return Some(why);
                }
            }
            _ if queued => {
                drop(world);
                match pair.turn(env) {
                    Outcome::Again => {}
                    Outcome::Waits => queued = false,
                    Outcome::Later => (queued, later) = (false, true),
                    Outcome::Ended(reason) => return Some(reason),
                }
            }
            _ => {}
        }
    }
    let world = shared.borrow();
    let [client, service] = world.peers.each_ref().map(|peer| {
        let Peer {
            plan,
            total,
            window,
            sent,
            room,
            accepted,
            acked,
            ..
        } = peer;
        format!("{plan:?} {sent}/{total} window {window} room {room} got {accepted} acked {acked}")
    });
    panic!("no end: client {client}; service {service}");
}

fn judge(world: &World, ended: Option<CloseReason>) {
    let [client, service] = &world.peers;
    assert_eq!(world.pipes, 0, "pipes leak");
    let clean = ended == Some(CloseReason::Finished);
    for (peer, other) in [(client, service), (service, client)] {
        assert_eq!(peer.closed, Some(!clean), "RST unless all is well");
        if clean {
            assert_eq!(peer.acked, other.total, "every byte arrived");
            assert!(peer.fin_acked && peer.fin_read && !peer.reset);
        }
    }
    let blamed = match ended {
        Some(CloseReason::Finished) | None => return,
        Some(CloseReason::ClientReset) => client.reset,
        Some(CloseReason::UpstreamReset) => service.reset,
        Some(CloseReason::ClientDead) => client.is_gone(),
        Some(CloseReason::CarrierDead) => service.is_gone(),
        Some(_) => false,
    };
    assert!(blamed, "{ended:?}");
}

#[test]
fn every_byte_order_and_end_is_right_in_any_interleaving() {
    let seeds = std::env::var("CULVERT_ENGINE_SEEDS");
    let seeds: u64 = seeds.map_or(20_000, |text| text.parse().unwrap());
    let mut ends = std::collections::BTreeMap::<&str, u64>::new();
    let first = std::env::var("CULVERT_ENGINE_SEED_FIRST");
    let first: u64 = first.map_or(1, |text| text.parse().unwrap());
    for seed in first..first + seeds {
        let ended = std::panic::catch_unwind(|| run(seed));
        let ended = ended.unwrap_or_else(|_| panic!("seed {seed}"));
        *ends
            .entry(ended.map_or("quiet", CloseReason::as_str))
            .or_default() += 1;
    }
    println!("{seeds} interleavings: {ends:?}");
    for reason in [
        "finished",
        "client_reset",
        "upstream_reset",
        "client_dead",
        "carrier_dead",
    ] {
        assert!(
            ends.contains_key(reason),
            "{reason} never happened: {ends:?}"
        );
    }
}

//! The interleavings in which a pair is driven over a kernel that answers as it
//! likes. Every byte is known by its position, so a lost, doubled, changed or
//! overtaken one is seen at once.
//!
//! `CULVERT_ENGINE_SEEDS` sets how many interleavings are run (`cargo xtask
//! soak` runs millions), `CULVERT_ENGINE_SEED_FIRST` with which one they begin.

mod kernel;
mod world;

use culvert_proto::close::CloseReason;

use self::kernel::{Model, Socket, pattern};
use self::world::{Peer, Shared, World, world};
use crate::flow::{COPY_BYTES, Env, Rests};
use crate::pair::{Limits, Outcome, Pair, Side};
use crate::pipe::Pool;

const LIMITS: Limits = Limits {
    idle_max_ms: 0,
    half_closed_max_ms: 0,
    stalled_max_ms: 0,
    starved_max_ms: u64::MAX,
};

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
        let total = match world.peers[side].stands {
            true => world.peers[side].total.min(5_000),
            false => 0,
        };
        let early = world.random.below(total + 1);
        let peer = &mut world.peers[side];
        (peer.sent, peer.taken) = (early, early);
        (0..early).map(|at| pattern(side, at)).collect::<Vec<u8>>()
    });
    let sockets = [0, 1].map(|side| Socket(shared.clone(), side));
    let mut pair = Pair::join(sockets, early, [true; 2], &mut env);
    let ended = drive(&shared, &mut pair, &mut env);
    pair.release(&mut env);
    drop(pair);
    assert_eq!((env.pool.lent(), env.rests.held()), (0, 0), "given back");
    drop(pool);
    judge(&shared.borrow(), ended);
    ended
}

fn drive(shared: &Shared, pair: &mut Pair<Model>, env: &mut Env<'_, Model>) -> Option<CloseReason> {
    let (mut queued, mut later) = (false, false);
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
        let whole = peer.fin_acked && peer.acked == other.total;
        assert!(
            peer.closed == Some(true) && !clean || peer.closed == Some(false) && whole,
            "RST unless all is well"
        );
        if clean {
            assert_eq!(peer.acked, other.total, "every byte arrived");
            assert!(peer.fin_acked && peer.fin_read && !peer.reset);
        }
    }
    let blamed = match ended {
        Some(CloseReason::Finished) | None => return,
        Some(CloseReason::ClientReset) => client.reset,
        Some(CloseReason::UpstreamReset) => service.reset && service.stands,
        Some(CloseReason::DialRefused) => service.refuses,
        Some(CloseReason::ClientDead) => client.is_gone(),
        Some(CloseReason::CarrierDead) => service.is_gone(),
        Some(_) => false,
    };
    assert!(blamed, "{ended:?}");
}

#[test]
fn every_byte_order_and_end_is_right_in_any_interleaving() {
    let seeds = std::env::var("CULVERT_ENGINE_SEEDS");
    let seeds: u64 = seeds.map_or(5_000, |text| text.parse().unwrap());
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
        "dial_refused",
        "client_dead",
        "carrier_dead",
    ] {
        assert!(
            ends.contains_key(reason),
            "{reason} never happened: {ends:?}"
        );
    }
}

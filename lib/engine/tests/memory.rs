//! What an idle pair costs in user memory.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on panics, and says what it measured"
)]

use std::alloc::System;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use culvert_engine::{Engine, IoEngine, Join, Joined, Limits, Settings, Share, probe};
use rustix::process::{Resource, getrlimit, setrlimit};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Of each measurement; twice as many come after.
const PAIRS: usize = 1_000;
/// All of it: slot, pair, counters, the way to hear of its end.
const PAIR_BYTES_MAX: usize = 1_024;

fn settings(engine: IoEngine) -> Settings {
    Settings {
        threads: 1,
        backend: probe(engine).unwrap(),
        pairs_max: 4 * PAIRS,
        cluster_pairs_max: 4 * PAIRS,
        share: Share {
            pipes_max: 8,
            rest_bytes_max: 1 << 20,
            spins: false,
            limits: Limits {
                idle_max_ms: 3_600_000,
                half_closed_max_ms: 60_000,
                stalled_max_ms: 60_000,
                starved_max_ms: 10_000,
            },
        },
    }
}

/// A pair that has moved a message each way.
fn pair(engine: &Engine, listener: &TcpListener) -> (TcpStream, TcpStream, Joined) {
    let connection = || {
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (far, listener.accept().unwrap().0)
    };
    let ((mut client, near), (mut service, far)) = (connection(), connection());
    let joined = engine.join(Join {
        client: near.into(),
        service: far.into(),
        from_client: b"early".to_vec(),
        from_service: Vec::new(),
        cluster: 1,
    });
    let mut got = [0; 64];
    service.read_exact(&mut got[..5]).unwrap();
    service.write_all(&got).unwrap();
    client.read_exact(&mut got).unwrap();
    (client, service, joined.ok().unwrap())
}

#[test]
fn an_idle_pair_owns_no_buffer_and_under_a_kibibyte() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for kind in [IoEngine::Auto, IoEngine::Epoll] {
        let settings = settings(kind);
        let engine = Engine::start(&settings).unwrap();
        let mut held = Vec::with_capacity(3 * PAIRS);
        held.push(pair(&engine, &listener));
        let mut each = Vec::new();
        for count in [PAIRS, 2 * PAIRS] {
            let region = Region::new(HEAP);
            held.extend((0..count).map(|_| pair(&engine, &listener)));
            // The engine has nothing left to do for them.
            std::thread::sleep(Duration::from_millis(100));
            let change = region.change();
            each.push((change.bytes_allocated - change.bytes_deallocated) / count);
        }
        let name = settings.backend.name();
        println!(
            "{name}: {} and {} bytes of heap for an idle pair",
            each[0], each[1]
        );
        // With the slack of vectors that have just doubled.
        assert!(
            each.iter().all(|bytes| *bytes <= PAIR_BYTES_MAX),
            "{name}: {each:?}"
        );
    }
}

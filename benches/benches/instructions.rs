//! Instructions of the hot steps: what our own code executes, whatever the
//! machine is busy with. Valgrind counts; `instructions.txt` says how many there
//! may be, and two percent more than that fail.
//!
//! The kernel under the engine is a script, and the mux has no carrier.
#![allow(
    missing_docs,
    unused_qualifications,
    clippy::unwrap_used,
    reason = "the harness's macros generate what they like; a bench that cannot go on panics"
)]

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use culvert_engine::step::{
    COPY_BYTES, Env, Kernel, Outcome, Pair, Pool, Progress, Readiness, Rests, Side,
};
use culvert_mux::{Budget, Config, Mux, Role, StreamId};
use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use rustix::io::Errno;

/// How often each step runs in one measurement.
const STEPS: usize = 1_000;

/// What a step may cost: the count in `instructions.txt`, and two percent.
fn limit(step: &str) -> LibraryBenchmarkConfig {
    let lines = include_str!("../instructions.txt").lines();
    let mut words = lines.filter_map(|line| line.split_once(' '));
    let (_, count) = words.find(|(name, _)| *name == step).unwrap();
    let count: u64 = count.trim().parse().unwrap();
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, count + count / 50)]));
    config
}

/// A kernel whose sockets have so many bytes, and take all.
struct Script {
    /// What each side's next read gives.
    bytes: [usize; 2],
    /// A read is the last one before FIN.
    fin: bool,
}

impl Kernel for Script {
    type Socket = usize;
    type Pipe = ();

    fn recv(&mut self, from: &usize, into: &mut [u8]) -> Result<usize, Errno> {
        let got = self.bytes[*from].min(into.len());
        if self.fin {
            self.bytes[*from] = 0;
        }
        Ok(got)
    }
    fn send(&mut self, _: &usize, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
    fn pipe(&mut self, bytes: usize) -> Result<((), usize), Errno> {
        Ok(((), bytes))
    }
    fn splice_in(&mut self, from: &usize, _: &(), bytes: usize) -> Result<usize, Errno> {
        Ok(self.bytes[*from].min(bytes))
    }
    fn splice_out(&mut self, _: &(), _: &usize, bytes: usize) -> Result<usize, Errno> {
        Ok(bytes)
    }
    fn fin_came(&mut self, _: &usize) -> bool {
        true
    }
    fn finish(&mut self, _: &usize) -> Result<(), Errno> {
        Ok(())
    }
    fn unacked(&mut self, _: &usize) -> Option<u32> {
        Some(0)
    }
    fn error(&mut self, _: &usize) -> Option<Errno> {
        None
    }
    fn progress(&mut self, _: &usize) -> Option<Progress> {
        None
    }
}

struct Thread {
    kernel: Script,
    pool: Pool<()>,
    rests: Rests,
    scratch: Vec<u8>,
}

impl Thread {
    fn new(bytes: usize, fin: bool) -> Thread {
        Thread {
            kernel: Script {
                bytes: [bytes; 2],
                fin,
            },
            pool: Pool::new(8),
            rests: Rests::new(1 << 20),
            scratch: vec![0; COPY_BYTES],
        }
    }

    fn env(&mut self) -> Env<'_, Script> {
        Env {
            kernel: &mut self.kernel,
            pool: &mut self.pool,
            rests: &mut self.rests,
            scratch: &mut self.scratch,
            cluster: 1,
            now_ms: 0,
        }
    }

    fn pair(&mut self) -> Pair<Script> {
        let mut pair = Pair::join([0, 1], [Vec::new(), Vec::new()], [true; 2], &mut self.env());
        pair.ready(Side::Service, WRITABLE);
        pair.ready(Side::Client, WRITABLE);
        pair
    }
}

const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    hup: false,
    error: false,
};
const WRITABLE: Readiness = Readiness {
    readable: false,
    writable: true,
    ..READABLE
};

fn joined(bytes: usize) -> (Thread, Pair<Script>) {
    let mut thread = Thread::new(bytes, false);
    let mut pair = thread.pair();
    // Bulk is spliced from its second read on.
    pair.ready(Side::Client, READABLE);
    pair.turn(&mut thread.env());
    (thread, pair)
}

// A message that was told of: read, written, done.
#[library_benchmark]
#[bench::of_64_bytes(args = (64), setup = joined, config = limit("small_message"))]
fn small_message((mut thread, mut pair): (Thread, Pair<Script>)) -> (Thread, Pair<Script>) {
    for _ in 0..STEPS {
        pair.ready(Side::Client, black_box(READABLE));
        black_box(pair.turn(&mut thread.env()));
    }
    (thread, pair)
}

// A whole turn of splices.
#[library_benchmark]
#[bench::of_splices(args = (1 << 20), setup = joined, config = limit("bulk_turn"))]
fn bulk_turn((mut thread, mut pair): (Thread, Pair<Script>)) -> (Thread, Pair<Script>) {
    for _ in 0..STEPS {
        black_box(pair.turn(&mut thread.env()));
    }
    assert!(pair.splicing().contains(&true));
    (thread, pair)
}

// A pair that is joined, moves a message each way and ends.
#[library_benchmark]
#[bench::of_a_message(args = (1_024, true), setup = Thread::new, config = limit("short_pair"))]
fn short_pair(mut thread: Thread) -> Thread {
    for _ in 0..STEPS {
        let mut pair = thread.pair();
        thread.kernel.bytes = [1_024; 2];
        let mut ended = Outcome::Waits;
        // A message each way, then a FIN each way.
        for side in [Side::Client, Side::Service, Side::Client, Side::Service] {
            pair.ready(side, READABLE);
            ended = pair.turn(&mut thread.env());
        }
        assert!(matches!(ended, Outcome::Ended(_)));
        pair.release(&mut thread.env());
    }
    thread
}

fn muxes() -> [Mux; 2] {
    [Role::Client, Role::Server]
        .map(|role| Mux::new(Config::new(role), Arc::new(Budget::new(1 << 30))))
}

/// A sender with an open stream.
fn sender() -> (Mux, StreamId) {
    let [mut mux, _] = muxes();
    let id = mux.open(0).unwrap();
    mux.transmit(0, &mut Vec::new(), 64 << 10);
    (mux, id)
}

/// A receiver, and the frames that it hears, each in a buffer of its own.
fn receiver(frames: usize) -> (Mux, StreamId, Vec<Bytes>) {
    let [mut from, mut to] = muxes();
    let id = from.open(0).unwrap();
    let wire = |from: &mut Mux| {
        let (mut out, mut wire) = (Vec::new(), BytesMut::new());
        from.transmit(0, &mut out, 64 << 10);
        out.iter().for_each(|part| wire.extend_from_slice(part));
        wire.freeze()
    };
    to.receive(0, wire(&mut from)).unwrap();
    while to.next_event().is_some() {}
    let heard = (0..frames).map(|_| {
        assert_eq!(from.write_slice(id, &[7; 64]), Ok(64));
        wire(&mut from)
    });
    let heard = heard.collect();
    (to, id, heard)
}

// One frame of 64 bytes written and handed to the carrier.
#[library_benchmark]
#[bench::of_64_bytes(args = (), setup = sender, config = limit("mux_frame_out"))]
fn mux_frame_out((mut mux, id): (Mux, StreamId)) -> (Mux, Vec<Bytes>) {
    let mut out = Vec::new();
    for _ in 0..STEPS {
        out.clear();
        assert_eq!(mux.write_slice(id, black_box(&[7; 64])), Ok(64));
        mux.transmit(0, &mut out, 64 << 10);
    }
    (mux, out)
}

// One frame of 64 bytes heard from the carrier and read.
#[library_benchmark]
#[bench::of_64_bytes(args = (STEPS), setup = receiver, config = limit("mux_frame_in"))]
fn mux_frame_in((mut mux, id, heard): (Mux, StreamId, Vec<Bytes>)) -> (Mux, [u8; 64]) {
    let mut buffer = [0; 64];
    for frame in heard {
        assert!(mux.receive(0, frame).is_ok());
        while mux.next_event().is_some() {}
        assert_eq!(mux.read_buf(id, &mut &mut buffer[..]), Ok(Some(64)));
    }
    (mux, buffer)
}

library_benchmark_group!(
    name = engine,
    benchmarks = [small_message, bulk_turn, short_pair]
);
library_benchmark_group!(name = mux, benchmarks = [mux_frame_out, mux_frame_in]);
gungraun::main!(library_benchmark_groups = engine, mux);

//! What streams cost, counted by the allocator.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test may stop where it stands; the rig is shared"
)]

#[path = "rig/wire.rs"]
mod wire;

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use culvert_mux::frame::{Kind, SYN};
use culvert_mux::{Config, Mux, Read, Role, StreamId, Write};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use wire::{T0, data, events, frame, said, server};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The allocator counts for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that are allocated since the region began.
fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}

fn pair(window_initial: u32) -> [Mux; 2] {
    [Role::Client, Role::Server].map(|role| {
        let budget = std::sync::Arc::new(culvert_mux::Budget::new(4 << 30));
        Mux::new(
            Config {
                window_initial,
                opens_per_second_max: 4_000,
                ..Config::new(role)
            },
            budget,
        )
    })
}

/// Hands over what one has to say, buffer by buffer, without a copy.
fn carry(pair: &mut [Mux; 2], from: usize, out: &mut Vec<Bytes>) -> usize {
    let mut count = 0;
    while pair[from].wants_transmit() {
        count += pair[from].transmit(T0, out, 256 << 10);
        for part in out.drain(..) {
            pair[1 - from]
                .receive(T0, part)
                .expect("both keep the rules");
        }
    }
    count
}

/// Carries as a socket does: through a read buffer that is a copy of its own.
fn carry_copied(pair: &mut [Mux; 2], from: usize) {
    while pair[from].wants_transmit() {
        let mut out = Vec::new();
        pair[from].transmit(T0, &mut out, 64 << 10);
        let read = Bytes::from(out.concat());
        drop(out);
        pair[1 - from]
            .receive(T0, read)
            .expect("both keep the rules");
    }
}

/// Opens streams and fills them both ways; nobody reads.
fn stall(pair: &mut [Mux; 2], streams: usize, both_ways: bool, piece: usize) {
    let piece = vec![0x5a; piece];
    let ids: Vec<StreamId> = (0..streams).map(|_| pair[0].open(T0).unwrap()).collect();
    carry_copied(pair, 0);
    carry_copied(pair, 1);
    events(&mut pair[1]);
    let sides: &[usize] = if both_ways { &[0, 1] } else { &[1] };
    for side in sides {
        loop {
            let mut moved = 0;
            for id in &ids {
                while let Ok(taken) = pair[*side].write_slice(*id, &piece)
                    && taken > 0
                {
                    moved += taken;
                }
            }
            carry_copied(pair, *side);
            carry_copied(pair, 1 - *side);
            if moved == 0 {
                break;
            }
        }
    }
}

#[test]
fn a_thousand_stalled_streams_between_our_own_ends() {
    let _alone = alone();
    for piece in [16 << 10, 1_000] {
        let region = Region::new(ALLOCATOR);
        let mut pair = pair(32 << 10);
        stall(&mut pair, 1_000, true, piece);
        let stats = pair.each_ref().map(Mux::stats);
        assert_eq!(stats.map(|s| s.unread_bytes), [1_000 * (32 << 10); 2]);
        assert_eq!(stats.map(|s| s.queued_bytes), [1_000 * (32 << 10); 2]);
        assert_eq!(stats.map(|s| s.streams_stalled), [1_000; 2]);
        let held = held(&region);
        let told = stats.iter().map(|s| s.memory_bytes).sum::<u64>();
        println!("pieces of {piece}: {held} bytes for both ends, {told} told");
        assert!(
            held <= 2 * (64 << 20),
            "both ways stalled at both ends: {held}"
        );
        let told = usize::try_from(told).unwrap();
        assert!(
            told >= held * 9 / 10 && told <= held * 12 / 10,
            "told {told}, held {held}"
        );
    }
}

#[test]
fn a_window_costs_its_bytes_towards_foreign_peers() {
    let _alone = alone();
    let region = Region::new(ALLOCATOR);
    let mut pair = pair(256 << 10);
    stall(&mut pair, 100, false, 16 << 10);
    assert_eq!(pair[0].stats().unread_bytes, 100 * (256 << 10));
    let held = held(&region);
    assert!(
        held <= 100 * (288 << 10) + (512 << 10),
        "{held} for 100 windows and send gates"
    );
}

#[test]
fn one_byte_frames_do_not_amplify() {
    let _alone = alone();
    let one = data(0, 1, b"x");
    let stream = one.repeat(262_144);
    let mut mux = server();
    wire::hear(&mut mux, &wire::credit(SYN, 1, 0));
    let region = Region::new(ALLOCATOR);
    for part in stream.chunks(64 << 10) {
        mux.receive(T0, Bytes::copy_from_slice(part)).unwrap();
    }
    let (held, count) = (held(&region), region.change().allocations);
    assert_eq!(mux.stats().unread_bytes, 262_144);
    assert!(
        held <= 262_144 + 32_768,
        "{held} bytes for a window of 262,144"
    );
    assert!(count <= 300, "{count} allocations for 262,144 frames");
    let mut read = 0;
    while let Ok(Read::Data(part)) = mux.read(StreamId(1), 1 << 20) {
        read += part.len();
    }
    assert_eq!(read, 262_144);
}

#[test]
fn a_declared_length_allocates_nothing() {
    let _alone = alone();
    let mut mux = server();
    wire::hear(&mut mux, &wire::credit(SYN, 1, 0));
    said(&mut mux, T0);
    let header = Bytes::from(frame(Kind::Data, 0, 1, 262_144));
    let unknown = Bytes::from(frame(Kind::Data, 0, 3, 1 << 20));
    let region = Region::new(ALLOCATOR);
    mux.receive(T0, header).unwrap();
    assert_eq!(region.change().bytes_allocated, 0);
    let mut other = server();
    other.receive(T0, unknown).unwrap();
    let skipped = Bytes::from(vec![0; 60_000]);
    let region = Region::new(ALLOCATOR);
    other.receive(T0, skipped).unwrap();
    assert_eq!(
        region.change().bytes_allocated,
        0,
        "a stranger's body is skipped"
    );
}

#[test]
fn an_idle_stream_costs_less_than_a_kibibyte() {
    let _alone = alone();
    let mut pair = pair(256 << 10);
    let mut out = Vec::with_capacity(4_096);
    let region = Region::new(ALLOCATOR);
    let ids: Vec<StreamId> = (0..1_024).map(|_| pair[0].open(T0).unwrap()).collect();
    for id in &ids {
        pair[0].write_slice(*id, &[1; 64]).unwrap();
        carry(&mut pair, 0, &mut out);
        assert!(matches!(pair[1].read(*id, 64), Ok(Read::Data(_))));
        pair[1].write_slice(*id, &[2; 64]).unwrap();
        carry(&mut pair, 1, &mut out);
        assert!(matches!(pair[0].read(*id, 64), Ok(Read::Data(_))));
    }
    events(&mut pair[1]);
    let each_end = held(&region) / 2 / ids.len();
    println!("{each_end} bytes for an idle stream at each end");
    assert!(
        each_end <= 1_024,
        "{each_end} bytes for an idle stream at each end"
    );
}

/// Allocations of `rounds` rounds, after as many to warm up.
fn allocations(rounds: usize, mut round: impl FnMut()) -> usize {
    (0..rounds).for_each(|_| round());
    let region = Region::new(ALLOCATOR);
    (0..rounds).for_each(|_| round());
    region.change().allocations
}

#[test]
fn the_steady_state_allocates_nothing_per_frame() {
    let _alone = alone();
    let mut pair = pair(256 << 10);
    let mut out = Vec::with_capacity(4_096);
    let id = pair[0].open(T0).unwrap();
    let mut buf = [0; 64];
    let small = allocations(10_000, || {
        for side in [0, 1] {
            assert_eq!(pair[side].write_slice(id, &[7; 64]), Ok(64));
            carry(&mut pair, side, &mut out);
            events(&mut pair[1 - side]);
            assert_eq!(pair[1 - side].read_buf(id, &mut &mut buf[..]), Ok(Some(64)));
        }
    });
    assert!(small <= 20, "{small} allocations for 20,000 small frames");

    let block = Bytes::from(vec![7; 16 << 10]);
    let mut read = 0;
    let bulk = allocations(2_000, || {
        for _ in 0..2 {
            assert_eq!(pair[0].write(id, block.clone()), Ok(Write::Accepted));
        }
        carry(&mut pair, 0, &mut out);
        while let Ok(Read::Data(part)) = pair[1].read(id, 1 << 20) {
            read += part.len();
        }
        carry(&mut pair, 1, &mut out);
    });
    assert_eq!(read, 4_000 * (32 << 10));
    assert!(bulk <= 20, "{bulk} allocations for 4,000 frames of 16 KiB");
}

/// A session of an idle agent: one control stream, a message each way every few seconds.
#[test]
fn a_session_that_waits_owns_no_buffer() {
    let _alone = alone();
    let mut pair = pair(32 << 10);
    let id = pair[0].open(T0).unwrap();
    carry_copied(&mut pair, 0);
    carry_copied(&mut pair, 1);
    for end in &mut pair {
        events(end);
    }
    let mut region = Region::new(ALLOCATOR);
    for beat in 1..1_000 {
        if beat == 10 {
            region = Region::new(ALLOCATOR);
        }
        let now_ms = T0 + beat * 5_000;
        for from in [0, 1] {
            pair[from].write_slice(id, b"a beat of 12").unwrap();
            let mut out = Vec::new();
            pair[from].transmit(now_ms, &mut out, 64 << 10);
            let read = Bytes::from(out.concat());
            pair[1 - from].receive(now_ms, read).unwrap();
            let Ok(Read::Data(beat)) = pair[1 - from].read(id, 64) else {
                panic!("a beat comes");
            };
            assert_eq!(&beat[..], b"a beat of 12");
            drop(beat);
            // What the driver does at the end of every visit.
            for end in &mut pair {
                end.transmit(now_ms, &mut Vec::new(), 64 << 10);
            }
        }
        for end in &mut pair {
            events(end);
        }
    }
    let grown = held(&region);
    let memory = pair.each_ref().map(|end| end.stats().memory_bytes);
    println!("two waiting ends hold {memory:?} bytes, {grown} more than at the 10th beat");
    assert!(grown <= 512 && memory.iter().all(|bytes| *bytes <= 4 << 10));
}

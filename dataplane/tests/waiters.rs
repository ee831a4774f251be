//! What a waiter and an idle pair cost a relay in user memory.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on panics, and says what it measured"
)]

#[path = "relay/rig.rs"]
#[allow(dead_code, reason = "this test needs a part of it")]
mod rig;

use std::alloc::System;

use culvert_net::introduction::{Credential, Outer, introduce};
use culvert_proto::pair::Role;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::sync::oneshot;

use rig::Rig;

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Of each measurement.
const SIDES: usize = 300;
/// Socket, timer, seat, task, and the key of what is said to it.
const WAITER_BYTES_MAX: usize = 4_096;
/// Slot of the engine and the task that hears of its end.
const PAIR_BYTES_MAX: usize = 2_048;

fn key(number: usize) -> Credential {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    Credential::key(seed).unwrap()
}

/// A side that holds its socket and nothing else: what it had for TLS is given back.
async fn side(rig: &Rig, role: Role, number: usize) -> std::net::TcpStream {
    let from = number / 300 + if role == Role::Bridge { 1 } else { 11 };
    let stream = rig.dial_from(from as u8).await.into_std().unwrap();
    let held = stream.try_clone().unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let (told, waits) = oneshot::channel();
    let credential = key(number);
    let waiting = move || {
        let _ = told.send(());
    };
    let joined = introduce(stream, &rig.client, "localhost", role, &credential, waiting);
    tokio::select! {
        link = joined => drop(link.unwrap()),
        _ = waits => {}
    }
    held
}

async fn measure(outer: Outer) -> [usize; 2] {
    let flags = ["--connections-per-minute=1000", "--source-waiters-max=320"];
    let rig = Rig::outer(outer, &flags);
    let mut held = Vec::with_capacity(4 * SIDES);
    // What comes once: buffers of threads, tables that have grown.
    for number in 0..SIDES {
        held.push(side(&rig, Role::Bridge, number).await);
    }
    rig.until("culvert_pair_waiting", SIDES as f64).await;
    let region = Region::new(HEAP);
    for number in SIDES..2 * SIDES {
        held.push(side(&rig, Role::Bridge, number).await);
    }
    rig.until("culvert_pair_waiting", 2.0 * SIDES as f64).await;
    let waiting = region.change();
    for number in 0..2 * SIDES {
        held.push(side(&rig, Role::Broker, number).await);
    }
    rig.until("culvert_pair_live", 2.0 * SIDES as f64).await;
    let base = Region::new(HEAP);
    held.clear();
    rig.until("culvert_pair_live", 0.0).await;
    let pairs = base.change();
    let waiter = (waiting.bytes_allocated - waiting.bytes_deallocated) / SIDES;
    let pair = (pairs.bytes_deallocated - pairs.bytes_allocated) / (2 * SIDES);
    [waiter, pair]
}

#[tokio::test]
async fn a_waiter_costs_at_most_four_kibibytes_and_an_idle_pair_two() {
    for outer in [
        Outer::Plain,
        Outer::Tls { keep: false },
        Outer::Tls { keep: true },
    ] {
        let [waiter, pair] = soon_enough(measure(outer)).await;
        println!("{outer:?}: {waiter} bytes of heap for a waiter, {pair} for an idle pair");
        if outer == (Outer::Tls { keep: true }) {
            continue; // Both hold a TLS connection: its price is only told.
        }
        assert!(waiter <= WAITER_BYTES_MAX, "{outer:?}: {waiter}");
        assert!(pair <= PAIR_BYTES_MAX, "{outer:?}: {pair}");
    }
}

/// Hundreds of handshakes on a busy host.
async fn soon_enough<F: Future>(work: F) -> F::Output {
    let long = std::time::Duration::from_secs(300);
    tokio::time::timeout(long, work).await.unwrap()
}

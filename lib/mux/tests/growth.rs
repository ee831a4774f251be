//! How fast a bulk transfer leaves its first window, in virtual time.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test may stop where it stands; the rig is shared"
)]

#[path = "rig/wire.rs"]
mod wire;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use culvert_mux::{Budget, Config, Mux, Read, Role, StreamId, WIRE_WINDOW_BYTES};

const OWN_WINDOW_BYTES: u32 = 32 << 10;

/// Two ends, `delay_ms` apart each way, on a path without a limit to its rate.
struct Path {
    ends: [Mux; 2],
    /// What is on its way to each end, with the time of its arrival.
    flying: [VecDeque<(u64, Bytes)>; 2],
    budgets: [Arc<Budget>; 2],
    delay_ms: u64,
    now_ms: u64,
}

impl Path {
    fn new(window_initial: u32, rtt_ms: u64) -> Path {
        let budgets = [(); 2].map(|()| Arc::new(Budget::new(1 << 30)));
        let mut roles = [Role::Client, Role::Server].into_iter();
        let ends = budgets.clone().map(|budget| {
            let config = Config {
                window_initial,
                ..Config::new(roles.next().unwrap())
            };
            Mux::new(config, budget)
        });
        Path {
            ends,
            flying: Default::default(),
            budgets,
            delay_ms: rtt_ms / 2,
            now_ms: 0,
        }
    }

    /// One millisecond: the client writes what it may, the server reads what there is. Returns
    /// how many bytes were read.
    fn tick(&mut self, id: StreamId) -> usize {
        self.now_ms += 1;
        let now_ms = self.now_ms;
        let mut read = 0;
        for side in [0, 1] {
            while self.flying[side]
                .front()
                .is_some_and(|(at, _)| *at <= now_ms)
            {
                let (_, data) = self.flying[side].pop_front().unwrap();
                self.ends[side].receive(now_ms, data).unwrap();
                while side == 1
                    && let Ok(Read::Data(data)) = self.ends[1].read(id, 1 << 20)
                {
                    read += data.len();
                }
            }
            loop {
                let wrote = side == 0 && self.ends[0].write_slice(id, &[7; 32 << 10]).unwrap() > 0;
                let mut out = Vec::new();
                let sent = self.ends[side].transmit(now_ms, &mut out, 256 << 10);
                let at = now_ms + self.delay_ms;
                self.flying[1 - side].extend(out.into_iter().map(|data| (at, data)));
                if !wrote && sent == 0 {
                    break;
                }
            }
            wire::events(&mut self.ends[side]);
        }
        read
    }
}

/// Milliseconds until the receiver has granted a window of 4 MiB, and until 64 MiB were read.
fn bulk(window_initial: u32, rtt_ms: u64) -> (u64, u64) {
    let mut path = Path::new(window_initial, rtt_ms);
    let id = path.ends[0].open(0).unwrap();
    let (mut grown_ms, mut read) = (None, 0);
    while read < 64 << 20 {
        read += path.tick(id);
        if path.budgets[1].used() >= u64::from((4 << 20) - window_initial) {
            grown_ms.get_or_insert(path.now_ms);
        }
        assert!(path.now_ms < 100 * rtt_ms, "{read} bytes after 100 RTTs");
    }
    (grown_ms.unwrap(), path.now_ms)
}

#[test]
fn four_mebibytes_are_reached_by_doubling_in_each_round_trip() {
    for rtt_ms in [4, 20, 100] {
        let (small_ms, small_all_ms) = bulk(OWN_WINDOW_BYTES, rtt_ms);
        let (wire_ms, wire_all_ms) = bulk(WIRE_WINDOW_BYTES, rtt_ms);
        println!(
            "RTT {rtt_ms} ms: 4 MiB after {small_ms} ms from 32 KiB, {wire_ms} ms from 256 KiB; 64 MiB in {small_all_ms} and {wire_all_ms} ms"
        );
        // 32 KiB -> 256 KiB -> 512 KiB -> 1 MiB -> 2 MiB -> 4 MiB, and half a trip to begin with.
        assert!(small_ms <= 6 * rtt_ms, "{small_ms} ms at RTT {rtt_ms} ms");
        // Never slower than the large start by more than the one round trip that it saves.
        assert!(small_ms <= wire_ms + rtt_ms);
        assert!(small_all_ms <= wire_all_ms + rtt_ms);
    }
}

//! A peer that lies: no panic, no memory beyond the formula, and the right violation.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test may stop where it stands; the rig is shared"
)]

#[path = "rig/wire.rs"]
mod wire;

use bytes::Bytes;
use culvert_mux::frame::{ACK, FIN, Header, Kind, RST, SYN};
use culvert_mux::{Budget, Config, End, Event, Mux, OpenError, Read, Role, StreamId, Violation};
use proptest::prelude::*;
use std::sync::Arc;
use wire::{T0, client, credit, data, events, frame, headers, hear, said, server};

/// After any input: counts agree with each other, and what is held is bounded.
fn check(mux: &mut Mux, budget: &Budget) {
    let stats = mux.stats();
    assert!(stats.streams_live <= 8);
    assert!(stats.unread_bytes <= 16 * 262_144 + u64::from(stats.streams_live));
    assert!(
        stats.memory_bytes <= 24 << 20,
        "{} bytes of memory",
        stats.memory_bytes
    );
    assert!(budget.used() <= 24 << 20);
}

fn small(role: Role, accept_streams: bool) -> (Mux, Arc<Budget>) {
    let budget = Arc::new(Budget::new(1 << 30));
    let config = Config {
        streams_max: 8,
        accept_streams,
        ..Config::new(role)
    };
    (Mux::new(config, Arc::clone(&budget)), budget)
}

/// Frames that look as if they meant it: few ids, all flags, plausible and absurd lengths.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        4 => Just(Kind::Data),
        3 => Just(Kind::WindowUpdate),
        1 => Just(Kind::Ping),
        1 => Just(Kind::GoAway),
    ];
    let flags = prop_oneof![3 => Just(0), 3 => Just(SYN), 2 => Just(ACK), 2 => Just(FIN),
        1 => Just(RST), 1 => any::<u16>()];
    let id = prop_oneof![20 => 1_u32..20, 1 => any::<u32>()];
    let length = prop_oneof![10 => 0_u32..200, 2 => Just(262_144), 1 => any::<u32>()];
    (kind, flags, id, length, any::<bool>()).prop_map(|(kind, flags, id, length, honest)| {
        let of_session = matches!(kind, Kind::Ping | Kind::GoAway);
        let length = if kind == Kind::GoAway && length != 7 {
            0
        } else {
            length
        };
        let mut bytes = frame(kind, flags, if of_session { 0 } else { id }, length);
        if kind == Kind::Data && honest {
            bytes.resize(12 + (length as usize).min(262_144), 0x5a);
        }
        bytes
    })
}

/// What an application does meanwhile.
#[derive(Debug, Clone)]
enum Act {
    Hear(Vec<u8>, usize),
    Open,
    Write(u32, usize),
    Read(u32),
    Finish(u32),
    Reset(u32),
    Release(u32),
    Transmit(usize),
    Wait(u64),
    GoAway,
}

fn any_act() -> impl Strategy<Value = Act> {
    let id = 1_u32..20;
    prop_oneof![
        20 => (any_frame(), 1_usize..70_000).prop_map(|(bytes, split)| Act::Hear(bytes, split)),
        4 => Just(Act::Open),
        4 => (id.clone(), 0_usize..50_000).prop_map(|(id, n)| Act::Write(id, n)),
        4 => id.clone().prop_map(Act::Read),
        2 => id.clone().prop_map(Act::Finish),
        1 => id.clone().prop_map(Act::Reset),
        2 => id.prop_map(Act::Release),
        4 => (0_usize..100_000).prop_map(Act::Transmit),
        2 => (0_u64..4_000_000).prop_map(Act::Wait),
        1 => Just(Act::GoAway),
    ]
}

fn act(mux: &mut Mux, act: Act, now_ms: &mut u64) {
    match act {
        Act::Hear(bytes, split) => {
            for part in bytes.chunks(split) {
                let _ = mux.receive(*now_ms, Bytes::copy_from_slice(part));
            }
        }
        Act::Open => drop(mux.open(*now_ms)),
        Act::Write(id, n) => drop(mux.write(StreamId(id), Bytes::from(vec![1; n]))),
        Act::Read(id) => drop(mux.read(StreamId(id), 9_999)),
        Act::Finish(id) => mux.finish(StreamId(id)),
        Act::Reset(id) => mux.reset(StreamId(id)),
        Act::Release(id) => mux.release(StreamId(id)),
        Act::Transmit(most) => {
            let mut out = Vec::new();
            let count = mux.transmit(*now_ms, &mut out, most);
            assert_eq!(out.iter().map(Bytes::len).sum::<usize>(), count);
            assert!(count <= most.max(1_024));
        }
        Act::Wait(ms) => {
            *now_ms += ms;
            mux.handle_timeout(*now_ms);
        }
        Act::GoAway => mux.go_away(0),
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        accept: bool,
    ) {
        let (mut mux, budget) = small(Role::Server, accept);
        for part in parts {
            let _ = mux.receive(T0, Bytes::from(part));
            events(&mut mux);
            check(&mut mux, &budget);
        }
        said(&mut mux, T0);
        drop(mux);
        prop_assert_eq!(budget.used(), 0);
    }

    #[test]
    fn structured_lies_never_panic(
        acts in prop::collection::vec(any_act(), 0..120),
        client_role: bool,
        accept: bool,
    ) {
        let role = if client_role { Role::Client } else { Role::Server };
        let (mut mux, budget) = small(role, accept);
        let mut now_ms = T0;
        for next in acts {
            act(&mut mux, next, &mut now_ms);
            events(&mut mux);
            check(&mut mux, &budget);
        }
        said(&mut mux, now_ms);
        drop(mux);
        prop_assert_eq!(budget.used(), 0);
    }
}

/// What a server says to these frames.
fn verdict(bytes: &[Vec<u8>]) -> Result<(), Violation> {
    let mut mux = server();
    mux.open(T0).unwrap();
    said(&mut mux, T0);
    let result = mux.receive(T0, bytes.concat().into());
    if result.is_err() {
        assert_eq!(
            headers(&mut mux),
            [header(Kind::GoAway, 0, 0, 1)],
            "GoAway 1 and no more"
        );
        assert_eq!(mux.receive(T0, Bytes::from_static(b"more")), result);
        assert!(events(&mut mux).contains(&Event::Ended(StreamId(2), End::GoAway(1))));
        assert_eq!(mux.open(T0), Err(OpenError::GoneAway));
        assert!(!mux.wants_transmit());
    }
    result
}

fn header(kind: Kind, flags: u16, id: u32, length: u32) -> Header {
    Header {
        kind,
        flags,
        id,
        length,
    }
}

#[test]
fn each_lie_has_its_violation() {
    let syn = || credit(SYN, 1, 0);
    assert_eq!(verdict(&[credit(SYN, 2, 0)]), Err(Violation::Parity(2)));
    assert_eq!(verdict(&[syn(), syn()]), Err(Violation::IdReuse(1)));
    assert_eq!(
        verdict(&[syn(), credit(RST, 1, 0), syn()]),
        Err(Violation::IdReuse(1))
    );
    assert_eq!(verdict(&[data(0, 4, b"x")]), Err(Violation::Unopened(4)));
    assert_eq!(
        verdict(&[data(0, 0, b"x")]),
        Err(Violation::FrameId { kind: 0, id: 0 })
    );
    let over = |length| frame(Kind::Data, SYN, 1, length);
    let expected = Violation::CreditOverrun {
        id: 1,
        length: 262_145,
        credit: 262_144,
    };
    assert_eq!(verdict(&[over(262_145)]), Err(expected));
    assert_eq!(verdict(&[over(262_144)]), Ok(()));
    assert_eq!(verdict(&[over(262_143)]), Ok(()));
    let delta = u32::MAX - 262_144;
    assert_eq!(verdict(&[syn(), credit(0, 1, delta)]), Ok(()));
    let expected = Violation::CreditOverflow {
        id: 1,
        credit: 262_144,
        delta: delta + 1,
    };
    assert_eq!(verdict(&[syn(), credit(0, 1, delta + 1)]), Err(expected));
    let expected = Violation::CreditOverrun {
        id: 9,
        length: u32::MAX,
        credit: 32 << 20,
    };
    assert_eq!(verdict(&[frame(Kind::Data, 0, 9, u32::MAX)]), Err(expected));
}

#[test]
fn credit_is_counted_over_frames_and_returned_by_reading() {
    let mut mux = server();
    hear(&mut mux, &data(SYN, 1, &[7; 200_000]));
    hear(&mut mux, &data(0, 1, &[7; 62_144]));
    let mut read = 0;
    while let Ok(Read::Data(part)) = mux.read(StreamId(1), 200_000) {
        read += part.len();
        if read >= 200_000 {
            break;
        }
    }
    assert!(
        headers(&mut mux)
            .iter()
            .any(|h| h.kind == Kind::WindowUpdate && h.length >= 200_000)
    );
    hear(&mut mux, &data(0, 1, &[7; 200_000]));
    let more = mux.receive(T0, data(0, 1, &[7; 140_000]).into());
    assert!(matches!(more, Err(Violation::CreditOverrun { id: 1, .. })));
}

#[test]
fn streams_at_the_limit_less_one_and_more() {
    for extra in [0_u32, 1, 2] {
        let config = Config {
            streams_max: 10,
            ..Config::new(Role::Server)
        };
        let mut mux = Mux::new(config, wire::budget());
        let count = 9 + extra;
        for n in 0..count {
            hear(&mut mux, &credit(SYN, 2 * n + 1, 0));
        }
        let refused: Vec<u32> = headers(&mut mux)
            .into_iter()
            .filter(|h| h.has(RST))
            .map(|h| h.id)
            .collect();
        let expected: Vec<u32> = (10..count).map(|n| 2 * n + 1).collect();
        assert_eq!(
            refused, expected,
            "only what is beyond the limit, and that alone"
        );
        assert_eq!(mux.stats().streams_live, count.min(10));
        assert_eq!(mux.open(T0).is_ok(), count < 10);
        hear(&mut mux, &data(0, 1, b"the session lives"));
        assert!(matches!(mux.read(StreamId(1), 99), Ok(Read::Data(_))));
    }
}

#[test]
fn opens_resets_and_pings_at_their_rates() {
    let syn = |n: u32| credit(SYN, 2 * n + 2, 0);
    let rst = |n: u32| credit(RST, 2 * n + 1, 0);
    let ping = |n: u32| frame(Kind::Ping, SYN, 0, n);
    let run = |count: u32, make: &dyn Fn(u32) -> Vec<u8>| {
        let mut mux = client();
        let bytes: Vec<u8> = (0..count).flat_map(make).collect();
        mux.receive(T0, bytes.into())
    };
    assert_eq!([999, 1_000].map(|n| run(n, &syn)), [Ok(()); 2]);
    assert_eq!(run(1_001, &syn), Err(Violation::OpenRate(1_000)));
    assert_eq!([19, 20].map(|n| run(n, &ping)), [Ok(()); 2]);
    assert_eq!(run(21, &ping), Err(Violation::PingRate(20)));
    let resets = |count: u32| {
        let mut mux = client();
        while mux.open(T0).is_ok() {}
        said(&mut mux, T0);
        let bytes: Vec<u8> = (0..count).flat_map(rst).collect();
        mux.receive(T0, bytes.into())
    };
    assert_eq!([999, 1_000].map(resets), [Ok(()); 2]);
    assert_eq!(resets(1_001), Err(Violation::ResetRate(1_000)));
}

#[test]
fn pings_at_the_allowed_rate_never_end() {
    let mut mux = client();
    for n in 0..1_000_u64 {
        let now_ms = T0 + n * 50;
        mux.receive(now_ms, frame(Kind::Ping, SYN, 0, 1).into())
            .unwrap();
        assert_eq!(said(&mut mux, now_ms).len(), 12);
    }
}

#[test]
fn resets_that_the_peer_does_not_read_are_bounded() {
    let config = Config {
        opens_per_second_max: 1 << 30,
        streams_max: 16,
        ..Config::new(Role::Client)
    };
    let mut mux = Mux::new(config, wire::budget());
    let violation = (1..)
        .map(|n| mux.receive(T0, credit(SYN, 2 * n, 0).into()))
        .find_map(Result::err);
    assert_eq!(violation, Some(Violation::ResetBacklog(16 + 1_024)));
}

#[test]
fn unknown_ids_are_answered_once_and_skipped() {
    let mut mux = server();
    for _ in 0..3 {
        hear(&mut mux, &data(0, 77, &[1; 1_000]));
    }
    assert_eq!(headers(&mut mux), [header(Kind::WindowUpdate, RST, 77, 0)]);
    hear(&mut mux, &credit(0, 77, 5));
    hear(&mut mux, &credit(RST, 79, 0));
    assert_eq!(headers(&mut mux), []);
    assert_eq!(mux.stats().unread_bytes, 0);
}

#[test]
fn data_after_fin_costs_that_stream_only() {
    let mut mux = server();
    hear(&mut mux, &data(SYN | FIN, 1, b"all"));
    hear(&mut mux, &credit(SYN, 3, 0));
    events(&mut mux);
    headers(&mut mux);
    hear(&mut mux, &data(0, 1, b"more"));
    assert_eq!(headers(&mut mux), [header(Kind::WindowUpdate, RST, 1, 0)]);
    assert_eq!(
        mux.read(StreamId(1), 9),
        Ok(Read::Data(Bytes::from_static(b"all")))
    );
    assert_eq!(
        mux.read(StreamId(1), 9),
        Ok(Read::Eof),
        "what came whole stays whole"
    );
    hear(&mut mux, &data(0, 3, b"alive"));
    assert!(matches!(mux.read(StreamId(3), 9), Ok(Read::Data(_))));
}

#[test]
fn go_peers_may_open_out_of_order() {
    let mut mux = server();
    for id in [5, 1, 9, 3, 7] {
        hear(&mut mux, &credit(SYN, id, 0));
    }
    assert_eq!(mux.stats().streams_live, 5);
}

#[test]
fn a_pong_nobody_asked_for_is_ignored() {
    let mut mux = client();
    for n in 0..100 {
        hear(&mut mux, &frame(Kind::Ping, ACK, 0, n));
    }
    assert_eq!(events(&mut mux), []);
    assert!(!mux.wants_transmit());
}

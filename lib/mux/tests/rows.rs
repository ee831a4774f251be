//! One regression test for each row Y1 to Y14 of the defects observed in the `yamux` crate.
//! Where the crate's behaviour can be shown in a few lines, it is shown beside ours.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test may stop where it stands; the rig is shared"
)]

#[path = "rig/wire.rs"]
mod wire;

use std::future::poll_fn;

use bytes::Bytes;
use culvert_mux::frame::{ACK, FIN, HEADER_BYTES, Header, Kind, RST, SYN};
use culvert_mux::{
    Config, End, Event, Mux, OpenError, Read, Role, StreamError, StreamId, Violation, Write,
};
use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_util::compat::TokioAsyncReadCompatExt as _;
use wire::{T0, client, credit, data, events, frame, headers, hear, said, server, settle};

fn header(kind: Kind, flags: u16, id: u32, length: u32) -> Header {
    Header {
        kind,
        flags,
        id,
        length,
    }
}

/// The crate as server on a wire that the test writes by hand.
fn crate_server(config: yamux::Config) -> (yamux::Connection<Wire>, DuplexStream) {
    let (near, far) = tokio::io::duplex(1 << 20);
    (
        yamux::Connection::new(far.compat(), config, yamux::Mode::Server),
        near,
    )
}

type Wire = tokio_util::compat::Compat<DuplexStream>;

#[tokio::test]
async fn y1_one_open_too_many_costs_that_open() {
    let mut hub = Mux::new(
        Config {
            streams_max: 2,
            ..Config::new(Role::Client)
        },
        wire::budget(),
    );
    let first = hub.open(T0).unwrap();
    hub.open(T0).unwrap();
    assert_eq!(hub.open(T0), Err(OpenError::TooMany(2)));
    assert_eq!(
        hub.write(first, Bytes::from_static(b"lives")),
        Ok(Write::Accepted)
    );
    assert_eq!(hub.stats().streams_live, 2);
    // A finished stream whose handle is still held takes no place.
    said(&mut hub, T0);
    hub.finish(first);
    said(&mut hub, T0);
    hear(&mut hub, &data(ACK | FIN, first.0, b""));
    assert!(hub.open(T0).is_ok());

    let mut config = yamux::Config::default();
    config.set_max_num_streams(1);
    let (near, _far) = tokio::io::duplex(1 << 20);
    let mut theirs = yamux::Connection::new(near.compat(), config, yamux::Mode::Client);
    let _stream = poll_fn(|cx| theirs.poll_new_outbound(cx)).await.unwrap();
    assert!(poll_fn(|cx| theirs.poll_new_outbound(cx)).await.is_err());
    let ended = poll_fn(|cx| theirs.poll_next_inbound(cx)).await;
    assert!(
        !matches!(ended, Some(Ok(_))),
        "the crate ends the whole connection"
    );
}

#[test]
fn y2_a_violation_ends_the_session_by_us() {
    let mut hub = client();
    let id = hub.open(T0).unwrap();
    said(&mut hub, T0);
    let violation = hub.receive(T0, frame(Kind::Data, 0, id.0, 262_145).into());
    assert!(matches!(violation, Err(Violation::CreditOverrun { .. })));
    assert_eq!(headers(&mut hub), [header(Kind::GoAway, 0, 0, 1)]);
    assert_eq!(hub.read(id, 1), Err(StreamError::GoneAway(1)));
    // What a peer that ignores the GoAway goes on to send changes nothing.
    assert_eq!(hub.receive(T0, data(0, id.0, b"more").into()), violation);
    // An open beyond the limit is no violation: that stream is refused, the session lives.
    let config = Config {
        streams_max: 1,
        ..Config::new(Role::Server)
    };
    let mut agent = Mux::new(config, wire::budget());
    hear(&mut agent, &credit(SYN, 1, 0));
    hear(&mut agent, &credit(SYN, 3, 0));
    assert_eq!(agent.stats().streams_live, 1);
}

#[tokio::test]
async fn y3_go_away_zero_drains() {
    let mut hub = client();
    let id = hub.open(T0).unwrap();
    said(&mut hub, T0);
    hear(&mut hub, &frame(Kind::GoAway, 0, 0, 0));
    hear(&mut hub, &frame(Kind::GoAway, 0, 0, 0));
    assert_eq!(events(&mut hub), [Event::GoAway(0)]);
    assert_eq!(hub.open(T0), Err(OpenError::GoneAway));
    hear(&mut hub, &data(ACK, id.0, b"still here"));
    assert_eq!(
        hub.read(id, 99),
        Ok(Read::Data(Bytes::from_static(b"still here")))
    );

    hear(&mut hub, &frame(Kind::GoAway, 0, 0, 2));
    assert_eq!(
        events(&mut hub),
        [Event::GoAway(2), Event::Ended(id, End::GoAway(2))]
    );
    assert_eq!(hub.read(id, 99), Err(StreamError::GoneAway(2)));

    let (mut theirs, mut near) = crate_server(yamux::Config::default());
    near.write_all(&[credit(SYN, 1, 0), frame(Kind::GoAway, 0, 0, 0)].concat())
        .await
        .unwrap();
    let opened = poll_fn(|cx| theirs.poll_next_inbound(cx)).await;
    assert!(opened.unwrap().is_ok());
    let ended = poll_fn(|cx| theirs.poll_next_inbound(cx)).await;
    assert!(
        !matches!(ended, Some(Ok(_))),
        "the crate ends everything at GoAway 0"
    );
}

#[test]
fn y3_what_crosses_our_go_away_is_still_taken() {
    let mut agent = server();
    hear(&mut agent, &credit(SYN, 1, 0));
    agent.go_away(0);
    hear(&mut agent, &credit(SYN, 3, 0));
    let answers = headers(&mut agent);
    assert!(answers.contains(&header(Kind::GoAway, 0, 0, 0)));
    assert!(answers.contains(&header(Kind::WindowUpdate, ACK, 3, 0)));
    assert_eq!(agent.stats().streams_live, 2);
    assert_eq!(agent.open(T0), Err(OpenError::GoneAway));
}

#[tokio::test]
async fn y4_four_ends_are_four_ends() {
    // After our own FIN, where the crate tells nothing apart.
    let end_of = |act: &dyn Fn(&mut Mux)| {
        let mut hub = client();
        let id = hub.open(T0).unwrap();
        hub.finish(id);
        said(&mut hub, T0);
        hear(&mut hub, &data(ACK, id.0, b"half"));
        act(&mut hub);
        let mut last = hub.read(id, 4);
        if matches!(last, Ok(Read::Data(_))) {
            last = hub.read(id, 4);
        }
        last
    };
    assert_eq!(end_of(&|hub| hear(hub, &credit(FIN, 1, 0))), Ok(Read::Eof));
    assert_eq!(
        end_of(&|hub| hear(hub, &credit(RST, 1, 0))),
        Err(StreamError::Reset)
    );
    let gone = end_of(&|hub| hear(hub, &frame(Kind::GoAway, 0, 0, 2)));
    assert_eq!(gone, Err(StreamError::GoneAway(2)));
    assert_eq!(
        end_of(&|hub| hub.carrier_lost()),
        Err(StreamError::CarrierLost)
    );
    // What came whole before the end is whole.
    let whole = |hub: &mut Mux| {
        hear(hub, &credit(FIN, 1, 0));
        hub.carrier_lost();
    };
    assert_eq!(end_of(&whole), Ok(Read::Eof));

    let (mut theirs, mut near) = crate_server(yamux::Config::default());
    let bytes = [data(SYN, 1, b"half"), credit(RST, 1, 0)].concat();
    near.write_all(&bytes).await.unwrap();
    let mut stream = poll_fn(|cx| theirs.poll_next_inbound(cx))
        .await
        .unwrap()
        .unwrap();
    tokio::spawn(async move { poll_fn(|cx| theirs.poll_next_inbound(cx)).await });
    let mut read = Vec::new();
    assert_eq!(
        stream.read_to_end(&mut read).await.unwrap(),
        4,
        "the crate reads RST as EOF"
    );
}

#[test]
fn y5_leaving_early_tells_the_peer_at_once() {
    let mut hub = client();
    let id = hub.open(T0).unwrap();
    assert_eq!(
        hub.write(id, Bytes::from(vec![0; 20_000])),
        Ok(Write::Accepted)
    );
    let mut out = Vec::new();
    hub.transmit(T0, &mut out, 1_024);
    hub.finish(id);
    hub.release(id);
    assert_eq!(
        headers(&mut hub),
        [header(Kind::WindowUpdate, RST, 1, 0)],
        "before queued data"
    );
    // What the peer still sends is skipped, and answered no second time.
    for _ in 0..20 {
        hear(&mut hub, &data(0, id.0, &[0; 30_000]));
    }
    assert_eq!(headers(&mut hub), []);
    assert_eq!(hub.stats().memory_bytes, {
        let before = hub.stats().memory_bytes;
        hear(&mut hub, &data(0, id.0, &[0; 30_000]));
        before
    });
}

#[test]
fn y5_a_finished_queue_is_still_sent_after_release() {
    let mut agent = server();
    hear(&mut agent, &data(SYN | FIN, 1, b"ask"));
    events(&mut agent);
    assert!(matches!(agent.read(StreamId(1), 99), Ok(Read::Data(_))));
    let answer = Bytes::from(vec![9; 30_000]);
    assert_eq!(agent.write(StreamId(1), answer), Ok(Write::Accepted));
    agent.finish(StreamId(1));
    agent.release(StreamId(1));
    assert_eq!(agent.read(StreamId(1), 1), Err(StreamError::Unknown(1)));
    let sent = wire::frames(&said(&mut agent, T0));
    assert_eq!(
        sent.iter().map(|(_, body)| body.len()).sum::<usize>(),
        30_000
    );
    assert!(sent.last().unwrap().0.has(FIN));
    assert!(!sent.iter().any(|(header, _)| header.has(RST)));
    assert_eq!(agent.stats().streams_live, 0);
}

#[test]
fn y6_reading_never_waits_for_a_write() {
    let (mut hub, mut agent) = (client(), server());
    let id = hub.open(T0).unwrap();
    settle(&mut hub, &mut agent, T0);
    // Both have bulk to say and a carrier that takes nothing; pings arrive all the while.
    for mux in [&mut hub, &mut agent] {
        assert!(matches!(
            mux.write(id, Bytes::from(vec![1; 99_000])),
            Ok(Write::Blocked(_))
        ));
        for n in 0..20 {
            hear(mux, &frame(Kind::Ping, SYN, 0, n));
        }
        hear(mux, &data(0, id.0, b"heard"));
        assert!(matches!(mux.read(id, 99), Ok(Read::Data(_))));
        let mut out = Vec::new();
        mux.transmit(T0, &mut out, 1_024);
        let first = out.concat();
        let answers: Vec<_> = first.chunks(HEADER_BYTES).take(8).collect();
        let newest: Vec<_> = (12..20).map(|n| frame(Kind::Ping, ACK, 0, n)).collect();
        assert_eq!(answers, newest, "the last eight, each of them, before bulk");
    }
}

#[test]
fn y7_extra_pings_and_unknown_pongs_are_no_error() {
    let mut hub = client();
    hub.ping(T0);
    said(&mut hub, T0);
    hub.ping(T0 + 1);
    said(&mut hub, T0 + 1);
    hub.receive(T0 + 9, frame(Kind::Ping, ACK, 0, 0).into())
        .unwrap();
    hub.receive(T0 + 9, frame(Kind::Ping, ACK, 0, 99).into())
        .unwrap();
    assert_eq!(events(&mut hub), []);
    hub.receive(T0 + 9, frame(Kind::Ping, ACK, 0, 1).into())
        .unwrap();
    assert_eq!(events(&mut hub), [Event::Pong { rtt_ms: 8 }]);
    assert_eq!(
        hub.stats().last_received_ms,
        Some(T0 + 9),
        "any byte is life"
    );
}

#[tokio::test]
async fn y8_silent_upstreams_block_nobody() {
    // 300 opens that are never answered with data, and one more.
    let (mut hub, mut agent) = (client(), server());
    for _ in 0..301 {
        let id = hub.open(T0).unwrap();
        hub.write_slice(id, b"GET").unwrap();
    }
    let asked = said(&mut hub, T0);
    assert_eq!(
        asked.len(),
        301 * (HEADER_BYTES + 3),
        "all of them at once, before any ACK"
    );
    agent.receive(T0, asked.into()).unwrap();
    let acks = headers(&mut agent);
    assert_eq!(
        acks.len(),
        301,
        "an ACK for each, without a byte of an answer"
    );
    assert!(acks.iter().all(|h| h.has(ACK)));

    let (near, _far) = tokio::io::duplex(1 << 20);
    let config = yamux::Config::default();
    let mut theirs = yamux::Connection::new(near.compat(), config, yamux::Mode::Client);
    let mut held = Vec::new();
    for _ in 0..256 {
        let mut stream = poll_fn(|cx| theirs.poll_new_outbound(cx)).await.unwrap();
        stream.write_all(b"GET").await.unwrap();
        held.push(stream);
    }
    let next = tokio::time::timeout(std::time::Duration::from_millis(50), async {
        poll_fn(|cx| theirs.poll_new_outbound(cx)).await
    });
    assert!(
        next.await.is_err(),
        "the crate's 257th open waits for an ACK"
    );
}

#[tokio::test]
async fn y9_an_open_is_announced_before_its_first_byte() {
    let mut hub = client();
    hub.open(T0).unwrap();
    assert_eq!(headers(&mut hub), [header(Kind::WindowUpdate, SYN, 1, 0)]);

    let (near, mut far) = tokio::io::duplex(1 << 20);
    let config = yamux::Config::default();
    let mut theirs = yamux::Connection::new(near.compat(), config, yamux::Mode::Client);
    let _stream = poll_fn(|cx| theirs.poll_new_outbound(cx)).await.unwrap();
    tokio::spawn(async move { poll_fn(|cx| theirs.poll_next_inbound(cx)).await });
    // The crate's first bytes are a ping of its own; a SYN does not follow.
    let mut heard = vec![0; 64];
    let count = far.read(&mut heard).await.unwrap();
    assert!(
        wire::frames(&heard[..count])
            .iter()
            .all(|(header, _)| header.kind == Kind::Ping)
    );
}

#[test]
fn y10_windows_share_one_budget_and_shrink() {
    // 64 streams on a long path, all read at once, in a budget that allows few to grow.
    let budget = std::sync::Arc::new(culvert_mux::Budget::new(16 << 20));
    let mut agent = Mux::new(Config::new(Role::Server), std::sync::Arc::clone(&budget));
    agent.set_rtt_ms(100);
    let ids: Vec<u32> = (0..64).map(|n| 2 * n + 1).collect();
    for id in &ids {
        hear(&mut agent, &credit(SYN, *id, 0));
    }
    let mut credits = vec![262_144_usize; ids.len()];
    let mut peak = 0;
    for round in 0..40 {
        let now_ms = T0 + round * 10;
        for (n, id) in ids.iter().enumerate() {
            let length = credits[n].min(500_000);
            credits[n] -= length;
            agent
                .receive(now_ms, data(0, *id, &vec![0; length]).into())
                .unwrap();
            while let Ok(Read::Data(_)) = agent.read(StreamId(*id), 1 << 20) {}
        }
        for (granted, _) in wire::frames(&said(&mut agent, now_ms)) {
            if granted.kind == Kind::WindowUpdate {
                credits[granted.id as usize / 2] += granted.length as usize;
            }
        }
        assert!(
            credits.iter().all(|credit| *credit > 0),
            "no stream ever starves"
        );
        peak = peak.max(credits.iter().sum());
        assert!(budget.used() <= 16 << 20);
    }
    assert!(peak > 64 * 262_144, "some have grown");
    assert!(
        peak <= 64 * 262_144 + (16 << 20) / 10 * 7,
        "inside the budget: {peak}"
    );
    drop(agent);
    assert_eq!(budget.used(), 0);
}

#[test]
fn y11_the_send_gate_holds_32_kib() {
    let mut hub = client();
    let id = hub.open(T0).unwrap();
    let gate = 32 << 10;
    for (n, rest) in [(gate - 1, 0), (1, 0), (1, 1)] {
        let written = hub.write(id, Bytes::from(vec![0; n])).unwrap();
        match written {
            Write::Accepted => assert_eq!(rest, 0),
            Write::Blocked(blocked) => assert_eq!(blocked.len(), rest),
        }
    }
    assert_eq!(hub.stats().queued_bytes, gate as u64);
    assert_eq!(events(&mut hub), []);
    said(&mut hub, T0);
    assert_eq!(events(&mut hub), [Event::Writable(id)]);
}

#[test]
fn y12_a_header_alone_holds_nothing() {
    // Counted by the allocator in tests/memory.rs; here by the session's own account.
    let mut agent = server();
    hear(&mut agent, &frame(Kind::Data, SYN, 1, 262_144));
    assert_eq!(agent.stats().unread_bytes, 0);
    assert!(agent.stats().memory_bytes < 16 << 10);
    hear(&mut agent, &[7; 100]);
    assert_eq!(agent.stats().unread_bytes, 100);
}

#[test]
fn an_ack_may_ride_on_the_first_frame_where_nobody_waits_for_it() {
    let config = Config {
        ack_at_once: false,
        ..Config::new(Role::Server)
    };
    let mut agent = Mux::new(config, wire::budget());
    hear(&mut agent, &frame(Kind::Data, SYN, 1, 0));
    assert!(!agent.wants_transmit());
    agent
        .write(StreamId(1), Bytes::from_static(b"here"))
        .unwrap();
    assert_eq!(said(&mut agent, T0), data(ACK, 1, b"here"));
    // A stream that says nothing acknowledges with what it grants, or with its end.
    hear(&mut agent, &frame(Kind::Data, SYN, 3, 0));
    agent.finish(StreamId(3));
    assert_eq!(said(&mut agent, T0), data(ACK | FIN, 3, b""));
}

#[test]
fn y13_ids_end_with_an_error_and_opens_cost_the_same() {
    let config = Config {
        streams_max: 16_384,
        ..Config::new(Role::Client)
    };
    let mut hub = Mux::new(config, wire::budget());
    for n in 0..16_384 {
        assert_eq!(hub.open(T0), Ok(StreamId(2 * n + 1)));
    }
    for n in 0..100_000_u32 {
        hub.reset(StreamId(2 * n + 1));
        assert!(hub.open(T0).is_ok());
    }
    assert_eq!(hub.stats().streams_live, 16_384);
    assert_eq!(
        headers(&mut hub).len(),
        16_384,
        "an open that was never told needs no reset"
    );
}

#[test]
fn y14_credit_is_checked_and_no_wake_up_is_lost() {
    // Credit overflow.
    let mut hub = client();
    let id = hub.open(T0).unwrap();
    said(&mut hub, T0);
    let flood = credit(ACK, id.0, u32::MAX);
    let violation = hub.receive(T0, flood.into());
    assert!(matches!(violation, Err(Violation::CreditOverflow { .. })));
    // Reader and writer of one stream wait at once; each is told of its own event.
    let (mut hub, mut agent) = (client(), server());
    let id = hub.open(T0).unwrap();
    assert_eq!(hub.read(id, 9), Ok(Read::Pending));
    assert!(matches!(
        hub.write(id, Bytes::from(vec![0; 40_000])),
        Ok(Write::Blocked(_))
    ));
    settle(&mut hub, &mut agent, T0);
    assert_eq!(events(&mut hub), [Event::Writable(id)]);
    agent.write_slice(id, b"answer").unwrap();
    settle(&mut hub, &mut agent, T0);
    assert_eq!(events(&mut hub), [Event::Readable(id)]);
}

#[test]
fn control_first_and_small_before_bulk() {
    let config = Config {
        first_stream: Some(StreamId(1)),
        ..Config::new(Role::Client)
    };
    let mut hub = Mux::new(config, wire::budget());
    let [control, bulk, other, small] = [(); 4].map(|()| hub.open(T0).unwrap());
    said(&mut hub, T0);
    for id in [bulk, other] {
        assert_eq!(
            hub.write(id, Bytes::from(vec![0; 32 << 10])),
            Ok(Write::Accepted)
        );
    }
    let mut out = Vec::new();
    hub.transmit(T0, &mut out, 40_000);
    hub.write_slice(small, b"GET /").unwrap();
    hub.write_slice(control, b"beat").unwrap();
    let order: Vec<u32> = headers(&mut hub).iter().map(|h| h.id).collect();
    assert_eq!(order[..2], [control.0, small.0]);
}

#[test]
fn bulk_streams_share_alike() {
    let mut hub = client();
    let ids: Vec<StreamId> = (0..8).map(|_| hub.open(T0).unwrap()).collect();
    said(&mut hub, T0);
    for id in &ids {
        hear(&mut hub, &credit(ACK, id.0, 64 << 20));
    }
    let mut sent = [0_usize; 8];
    for _ in 0..200 {
        for id in &ids {
            // One of them writes small pieces, one large ones.
            let piece = if id.0 == 1 { 700 } else { 32 << 10 };
            while hub.write_slice(*id, &vec![0; piece]).unwrap() > 0 {}
        }
        let mut out = Vec::new();
        hub.transmit(T0, &mut out, 64 << 10);
        for (header, body) in wire::frames(&out.concat()) {
            sent[header.id as usize / 2] += body.len();
        }
    }
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    assert!(most - least <= 2 * (32 << 10), "{sent:?}");
}

#[test]
fn a_stalled_stream_is_reset_in_the_end() {
    let config = Config {
        stall_ms_max: 60_000,
        window_initial: 1_024,
        ..Config::new(Role::Client)
    };
    let mut hub = Mux::new(config, wire::budget());
    let (stalled, healthy) = (hub.open(T0).unwrap(), hub.open(T0).unwrap());
    hub.write(stalled, Bytes::from(vec![0; 5_000])).unwrap();
    hub.write(healthy, Bytes::from(vec![0; 500])).unwrap();
    said(&mut hub, T0);
    assert_eq!(hub.largest_stalled(), Some((stalled, 5_000 - 1_024)));
    assert_eq!(hub.next_timeout_ms(), Some(T0 + 60_000));
    hub.handle_timeout(T0 + 59_999);
    assert_eq!(hub.stats().streams_live, 2);
    hub.handle_timeout(T0 + 60_000);
    assert_eq!(events(&mut hub), [Event::Ended(stalled, End::Reset)]);
    assert_eq!(
        headers(&mut hub),
        [header(Kind::WindowUpdate, RST, stalled.0, 0)]
    );
    assert_eq!((hub.stats().streams_live, hub.next_timeout_ms()), (1, None));
}

//! Golden bytes: every frame, and a small session from its first byte.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test may stop where it stands; the rig is shared"
)]

#[path = "rig/wire.rs"]
mod wire;

use bytes::Bytes;
use culvert_mux::frame::{ACK, FIN, Header, Kind, RST, SYN};
use culvert_mux::{Event, Read, StreamId, Violation, Write};
use wire::{T0, client, events, frame, hear, said, server, settle};

#[test]
fn every_frame_has_its_bytes() {
    let table: [(Kind, u16, u32, u32, [u8; 12]); 9] = [
        (Kind::Data, 0, 1, 5, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5]),
        (
            Kind::Data,
            SYN,
            3,
            0x0102_0304,
            [0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4],
        ),
        (
            Kind::Data,
            FIN,
            0xffff_fffe,
            0,
            [0, 0, 0, 4, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0],
        ),
        (
            Kind::WindowUpdate,
            SYN,
            1,
            0,
            [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0],
        ),
        (
            Kind::WindowUpdate,
            ACK,
            1,
            262_144,
            [0, 1, 0, 2, 0, 0, 0, 1, 0, 4, 0, 0],
        ),
        (
            Kind::WindowUpdate,
            RST,
            2,
            0,
            [0, 1, 0, 8, 0, 0, 0, 2, 0, 0, 0, 0],
        ),
        (Kind::Ping, SYN, 0, 7, [0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]),
        (Kind::Ping, ACK, 0, 7, [0, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7]),
        (Kind::GoAway, 0, 0, 2, [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
    ];
    for (kind, flags, id, length, bytes) in table {
        let header = Header {
            kind,
            flags,
            id,
            length,
        };
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(bytes), Ok(header));
    }
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let mut bytes = [0; 12];
    bytes[0] = 1;
    assert_eq!(Header::decode(bytes), Err(Violation::Version(1)));
    bytes[0] = 0;
    bytes[1] = 4;
    assert_eq!(Header::decode(bytes), Err(Violation::FrameType(4)));
    bytes[1] = 0;
    assert_eq!(
        Header::decode(bytes),
        Err(Violation::FrameId { kind: 0, id: 0 })
    );
    bytes[1] = 2;
    bytes[7] = 9;
    assert_eq!(
        Header::decode(bytes),
        Err(Violation::FrameId { kind: 2, id: 9 })
    );
}

#[test]
fn an_open_without_a_byte_is_announced_at_once() {
    let mut hub = client();
    assert_eq!(hub.open(T0), Ok(StreamId(1)));
    assert_eq!(said(&mut hub, T0), [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_small_session() {
    let (mut hub, mut agent) = (client(), server());
    let id = hub.open(T0).unwrap();
    assert_eq!(
        hub.write(id, Bytes::from_static(b"GET")),
        Ok(Write::Accepted)
    );
    hub.finish(id);
    let asked = said(&mut hub, T0);
    let expected = b"\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x03GET\
          \x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00";
    assert_eq!(
        asked, expected,
        "SYN rides on the first bytes, FIN stands alone"
    );

    hear(&mut agent, &asked);
    assert_eq!(events(&mut agent), [Event::Opened(id)]);
    assert_eq!(
        said(&mut agent, T0),
        frame(Kind::WindowUpdate, ACK, 1, 0),
        "ACK at once"
    );
    assert_eq!(
        agent.read(id, 100),
        Ok(Read::Data(Bytes::from_static(b"GET")))
    );
    assert_eq!(agent.read(id, 100), Ok(Read::Eof));
    assert_eq!(agent.write_slice(id, b"ok"), Ok(2));
    agent.finish(id);
    agent.release(id);
    let answered = said(&mut agent, T0);
    let expected = b"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02ok\
          \x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00";
    assert_eq!(answered, expected);

    hear(&mut hub, &answered);
    assert_eq!(hub.read(id, 100), Ok(Read::Data(Bytes::from_static(b"ok"))));
    assert_eq!(hub.read(id, 100), Ok(Read::Eof));
    hub.release(id);
    assert_eq!(said(&mut hub, T0), b"", "a clean end says nothing more");
    assert_eq!(
        (hub.stats().streams_live, agent.stats().streams_live),
        (0, 0)
    );

    hub.ping(T0);
    assert_eq!(said(&mut hub, T0), frame(Kind::Ping, SYN, 0, 0));
    hub.go_away(0);
    assert_eq!(said(&mut hub, T0), frame(Kind::GoAway, 0, 0, 0));
}

#[test]
fn ids_are_odd_for_the_hub_and_even_for_the_agent() {
    let (mut hub, mut agent) = (client(), server());
    assert_eq!(
        (hub.open(T0), hub.open(T0)),
        (Ok(StreamId(1)), Ok(StreamId(3)))
    );
    assert_eq!(
        (agent.open(T0), agent.open(T0)),
        (Ok(StreamId(2)), Ok(StreamId(4)))
    );
    settle(&mut hub, &mut agent, T0);
    let refused = [StreamId(2), StreamId(4)];
    let ended = refused.map(|id| Event::Ended(id, culvert_mux::End::Reset));
    assert_eq!(
        events(&mut agent),
        [
            Event::Opened(StreamId(1)),
            Event::Opened(StreamId(3)),
            ended[0],
            ended[1]
        ]
    );
    assert_eq!(
        hub.stats().refused,
        2,
        "D-01: a stream of the agent is refused with RST"
    );
}

#[test]
fn pings_are_answered_and_measured() {
    let mut hub = client();
    hear(&mut hub, &frame(Kind::Ping, SYN, 0, 0xdead_beef));
    hear(&mut hub, &frame(Kind::Ping, SYN, 0, 0xcafe));
    assert_eq!(
        said(&mut hub, T0),
        [
            frame(Kind::Ping, ACK, 0, 0xdead_beef),
            frame(Kind::Ping, ACK, 0, 0xcafe)
        ]
        .concat(),
        "each of them"
    );
    hub.ping(T0);
    said(&mut hub, T0 + 5);
    hub.receive(T0 + 30, frame(Kind::Ping, ACK, 0, 0).into())
        .unwrap();
    assert_eq!(events(&mut hub), [Event::Pong { rtt_ms: 25 }]);
    assert_eq!(hub.stats().rtt_ms, Some(25));
}

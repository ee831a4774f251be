//! Leaving: the peer's answer comes behind everything that it opened before it knew.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test may stop where it stands; the rig is shared"
)]

#[path = "rig/wire.rs"]
mod wire;

use bytes::Bytes;
use culvert_mux::frame::{ACK, Kind, SYN};
use culvert_mux::{Config, Event, Mux, OpenError, Role, StreamId};
use wire::{T0, client, events, frames, hear, said, server};

#[test]
fn go_away_goes_before_its_ping_and_the_answer_is_heard_once() {
    let (mut hub, mut agent) = (client(), server());
    // A ping that is on its way already is not the one.
    agent.ping(T0);
    let early = said(&mut agent, T0);
    agent.leave();
    let words = said(&mut agent, T0);
    let kinds: Vec<_> = frames(&words)
        .iter()
        .map(|(header, _)| header.kind)
        .collect();
    assert_eq!(kinds, [Kind::GoAway, Kind::Ping]);
    hear(&mut hub, &early);
    hear(&mut agent, &said(&mut hub, T0));
    assert!(!events(&mut agent).contains(&Event::Heard));
    hear(&mut hub, &words);
    assert_eq!(events(&mut hub), [Event::GoAway(0)]);
    assert_eq!(hub.open(T0), Err(OpenError::GoneAway));
    hear(&mut agent, &said(&mut hub, T0));
    assert_eq!(
        events(&mut agent),
        [Event::Heard, Event::Pong { rtt_ms: 0 }]
    );
}

#[test]
fn a_pong_never_overtakes_a_stream_that_was_opened_before() {
    // Whatever room the carrier has for one transmit.
    for room in [1_024, 4_096, 1 << 20] {
        let (mut hub, mut agent) = (client(), server());
        let opened: Vec<StreamId> = (0..40).map(|_| hub.open(T0).unwrap()).collect();
        for (place, id) in opened.iter().enumerate() {
            // Silent ones too, and one that is gone before it was announced.
            match place % 3 {
                0 => {}
                1 => drop(hub.write(*id, Bytes::from(vec![b'x'; 900])).unwrap()),
                _ => hub.reset(*id),
            }
        }
        agent.leave();
        hear(&mut hub, &said(&mut agent, T0));
        let (mut known, mut heard) = (Vec::new(), 0);
        while hub.wants_transmit() {
            let mut out = Vec::new();
            hub.transmit(T0, &mut out, room);
            hear(&mut agent, &out.concat());
            let told = events(&mut agent);
            known.extend(told.iter().filter_map(|event| match event {
                Event::Opened(id) => Some(*id),
                _ => None,
            }));
            if told.contains(&Event::Heard) {
                let mut lived = opened.iter().enumerate().filter(|(at, _)| at % 3 != 2);
                assert!(lived.all(|(_, id)| known.contains(id)), "{room}");
                heard += 1;
            }
        }
        assert_eq!(heard, 1, "{room}");
    }
}

#[test]
fn a_pong_waits_for_nothing_else() {
    let mut hub = Mux::new(Config::new(Role::Client), wire::budget());
    let id = hub.open(T0).unwrap();
    hub.write(id, Bytes::from(vec![b'x'; 20_000])).unwrap();
    said(&mut hub, T0);
    hub.write(id, Bytes::from(vec![b'x'; 20_000])).unwrap();
    hear(&mut hub, &wire::frame(Kind::Ping, SYN, 0, 7));
    let first = frames(&said(&mut hub, T0)).remove(0).0;
    assert_eq!(
        (first.kind, first.flags, first.length),
        (Kind::Ping, ACK, 7)
    );
}

//! A carrier that has served its time: a new one is there before the old one is left.

use culvert_net::carrier::{Carrier, SessionEvent, Stream};
use culvert_proto::close::CloseReason;
use culvert_proto::session::{self, Lifetime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use crate::carrier::{
    Session, agent_config_of, http, hub_config_of, serve_echo, session_config, start,
};
use crate::rig::{round_trip, soon};

fn dialled(lifetime: Lifetime) -> Session {
    let config = session::Config {
        lifetime,
        ..session_config()
    };
    let (hub_io, agent_io) = duplex(64 << 10);
    let agent = agent_config_of(config, 1_024);
    let session = start(hub_io, agent_io, hub_config_of(config), agent);
    serve_echo(&session.agent);
    session
}

async fn told_to_move(agent: &Carrier) {
    loop {
        match soon("DRAIN", agent.event()).await {
            Some(SessionEvent::Drain(_)) => return,
            Some(_) => {}
            None => panic!("the session ended first"),
        }
    }
}

async fn finish(mut stream: Stream) {
    stream.shutdown().await.unwrap();
    assert_eq!(soon("end", stream.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_carrier_at_its_limit_of_opens_is_exchanged_without_a_lost_stream() {
    let few = Lifetime {
        opens: 3,
        ..Lifetime::default()
    };
    let old = dialled(few);
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(old.hub.open(Some(&http())).unwrap());
    }
    for stream in &mut streams {
        round_trip(stream, b"before").await;
    }
    assert!(!old.hub.is_draining(), "two of three");
    streams.push(old.hub.open(Some(&http())).unwrap());
    told_to_move(&old.agent).await;
    assert!(old.hub.is_draining());

    // The agent dials the new one first; until it leaves, the old one still takes streams.
    let new = dialled(few);
    streams.push(old.hub.open(Some(&http())).unwrap());
    old.agent.retire();
    let mut on_new = new.hub.open(Some(&http())).unwrap();
    round_trip(&mut on_new, b"moved").await;
    for stream in &mut streams {
        round_trip(stream, b"still well").await;
    }
    soon("PeerDraining", async {
        while !matches!(old.hub.event().await, Some(SessionEvent::PeerDraining)) {}
    })
    .await;
    assert!(old.hub.open(Some(&http())).is_err(), "it was left");
    for stream in streams {
        finish(stream).await;
    }
    old.agent.close(CloseReason::Draining);
    let end = soon("the old one's end", old.hub_end).await.unwrap();
    assert_eq!(end.reason, CloseReason::Draining, "{}", end.detail);
    round_trip(&mut on_new, b"and the new one lives").await;
}

#[tokio::test(start_paused = true)]
async fn a_carrier_at_its_age_is_told_to_move() {
    let short = Lifetime {
        life_ms: 60_000,
        ..Lifetime::default()
    };
    let begun = tokio::time::Instant::now();
    let session = dialled(short);
    loop {
        match session.agent.event().await {
            Some(SessionEvent::Drain(_)) => break,
            event => assert!(event.is_some(), "ended before"),
        }
    }
    let took = begun.elapsed().as_secs();
    assert!((60..=61).contains(&took), "{took} s");
    let mut stream = session.hub.open(Some(&http())).unwrap();
    round_trip(&mut stream, b"served until it leaves").await;
}

//! What a stream may hold before anyone reads it, and what a thousand such streams cost.

use std::time::Duration;

use culvert_net::carrier::{Carrier, CarrierConfig, End, Stream};
use culvert_proto::hello::Caps;
use culvert_proto::limits::{SEND_GATE_BYTES_MAX, WINDOW_INITIAL_BYTES, WINDOW_OWN_INITIAL_BYTES};
use culvert_proto::session;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use crate::carrier::{
    Session, agent_config_of, http, hub_config_of, serve_echo, session_config, start,
};
use crate::rig::soon;

const STREAMS: u32 = 1_000;
/// The stream header of [`http`], which the agent reads before anyone accepts the stream.
const HEADER_BYTES: usize = 4;
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// The session's facts as two ends agree on them that announce these capabilities.
fn agreed(hub: Caps, agent: Caps) -> session::Config {
    session::Config {
        caps: hub & agent,
        ..session_config()
    }
}

fn between(config: session::Config) -> Session {
    let (hub_io, agent_io) = duplex(256 << 10);
    start(
        hub_io,
        agent_io,
        hub_config_of(config),
        agent_config_of(config, 1_024),
    )
}

/// Writes until neither window nor send gate take more.
async fn fill(stream: &mut Stream) -> usize {
    let block = [7; 8 << 10];
    let mut written = 0;
    while let Ok(Ok(bytes)) =
        tokio::time::timeout(Duration::from_millis(200), stream.write(&block)).await
    {
        written += bytes;
    }
    written
}

/// Waits until what this end received and nobody read has come to `bytes`.
async fn unread(carrier: &Carrier, bytes: u64) {
    soon("unread bytes", async {
        while carrier.mux_stats().unread_bytes < bytes {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(carrier.mux_stats().unread_bytes, bytes);
}

/// The first window is the small one where both ends announced it, whichever of them is the older.
#[tokio::test(start_paused = true)]
async fn both_ends_start_with_the_window_they_agreed_on() {
    let older = session_config().caps;
    let newer = older.with(Caps::SMALL_WINDOW);
    for (hub, agent, window) in [
        (newer, newer, WINDOW_OWN_INITIAL_BYTES),
        (newer, older, WINDOW_INITIAL_BYTES),
        (older, newer, WINDOW_INITIAL_BYTES),
    ] {
        let session = between(agreed(hub, agent));
        let mut down = session.hub.open(Some(&http())).unwrap();
        let mut up = soon("stream", session.agent.accept()).await.unwrap().stream;
        let may = window as usize + SEND_GATE_BYTES_MAX;
        assert_eq!(fill(&mut up).await, may, "agent to hub");
        assert_eq!(fill(&mut down).await, may - HEADER_BYTES, "hub to agent");
        unread(&session.hub, u64::from(window)).await;
        unread(&session.agent, u64::from(window) - HEADER_BYTES as u64).await;
        // Both are still well: what was held arrives.
        let mut read = vec![0; may];
        soon("all of it", down.read_exact(&mut read)).await.unwrap();
        let read = &mut read[HEADER_BYTES..];
        soon("all of it", up.read_exact(read)).await.unwrap();
    }
}

/// A Radar connector knows one window only.
#[tokio::test(start_paused = true)]
async fn a_radar_carrier_keeps_the_window_of_the_wire() {
    let (hub_io, agent_io) = duplex(64 << 10);
    let session = start(
        hub_io,
        agent_io,
        CarrierConfig::radar(End::Hub),
        CarrierConfig::radar(End::Agent),
    );
    let mut stream = session.hub.open(None).unwrap();
    let may = WINDOW_INITIAL_BYTES as usize + SEND_GATE_BYTES_MAX;
    assert_eq!(fill(&mut stream).await, may);
    unread(&session.agent, u64::from(WINDOW_INITIAL_BYTES)).await;
}

/// security.md 4.3: every reader stalled, at both ends, every sender at full rate.
#[tokio::test]
async fn a_thousand_stalled_streams_cost_64_mebibytes_at_each_end() {
    let newer = session_config().caps.with(Caps::SMALL_WINDOW);
    let session = between(agreed(newer, newer));
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        held.push(session.hub.open(Some(&http())).unwrap());
        held.push(soon("stream", session.agent.accept()).await.unwrap().stream);
    }
    let writers: Vec<_> = held
        .into_iter()
        .map(|mut stream| tokio::spawn(async move { stream.write_all(&vec![7; 1 << 20]).await }))
        .collect();
    let stalled = u64::from(STREAMS * WINDOW_OWN_INITIAL_BYTES);
    unread(&session.hub, stalled).await;
    unread(
        &session.agent,
        stalled - u64::from(STREAMS) * HEADER_BYTES as u64,
    )
    .await;
    // Behind shut windows the send gates fill up too, to a half of them at least.
    let gates = u64::from(STREAMS) * SEND_GATE_BYTES_MAX as u64;
    for (end, carrier) in [("hub", &session.hub), ("agent", &session.agent)] {
        soon("shut windows", async {
            while carrier.mux_stats().streams_stalled < STREAMS {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        let stats = carrier.mux_stats();
        let memory_bytes = stats.memory_bytes;
        println!("{end}: {memory_bytes} bytes for {STREAMS} stalled streams, {stats:?}");
        assert!(stats.queued_bytes >= gates / 2);
        assert!(memory_bytes <= MEMORY_BYTES_MAX, "{end}: {memory_bytes}");
    }
    assert!(writers.iter().all(|writer| !writer.is_finished()));
}

/// The small start is left at once: as much as a window of the wire comes through an echo.
#[tokio::test]
async fn a_bulk_transfer_outgrows_its_first_window() {
    let newer = session_config().caps.with(Caps::SMALL_WINDOW);
    let session = between(agreed(newer, newer));
    serve_echo(&session.agent);
    let stream = session.hub.open(Some(&http())).unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = tokio::spawn(async move { write.write_all(&vec![7; 16 << 20]).await });
    let mut back = vec![0; 16 << 20];
    soon("echo", read.read_exact(&mut back)).await.unwrap();
    sent.await.unwrap().unwrap();
    assert!(back.iter().all(|byte| *byte == 7));
}

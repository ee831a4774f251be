//! Peers that fall silent while every socket stays open (D-15, A-18): found in time, idle and with
//! writes queued, in each direction. Time is tokio's paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_net::carrier::{CarrierConfig, CarrierEnd, End, carrier};
use culvert_proto::close::CloseReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::carrier::{Session, agent_config, budget, http, hub_config, serve_echo, start};

/// What the relay swallows once it is closed.
#[derive(Clone, Copy, PartialEq)]
enum Hole {
    Both,
    ToHub,
    ToAgent,
}

struct Relay {
    closed: Arc<AtomicBool>,
}

/// Forwards between the two pipes; when closed it neither forwards nor hangs up.
fn relay(hub: DuplexStream, agent: DuplexStream, hole: Hole) -> Relay {
    let closed = Arc::new(AtomicBool::new(false));
    let (hub_read, hub_write) = split(hub);
    let (agent_read, agent_write) = split(agent);
    let to_agent = (hole != Hole::ToHub).then(|| closed.clone());
    let to_hub = (hole != Hole::ToAgent).then(|| closed.clone());
    tokio::spawn(forward(hub_read, agent_write, to_agent));
    tokio::spawn(forward(agent_read, hub_write, to_hub));
    Relay { closed }
}

async fn forward(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    hole: Option<Arc<AtomicBool>>,
) {
    let is_closed = || {
        hole.as_ref()
            .is_some_and(|hole| hole.load(Ordering::SeqCst))
    };
    let mut buf = vec![0; 16 * 1024];
    while let Ok(bytes) = from.read(&mut buf).await {
        if is_closed() {
            // A black hole takes no more, and the writer's buffers fill.
            return std::future::pending().await;
        }
        if bytes == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&buf[..bytes]).await.is_err() {
            return;
        }
    }
}

fn silent_session(hole: Hole, hub: CarrierConfig, agent: CarrierConfig) -> (Session, Relay) {
    let (hub_io, near) = duplex(64 * 1024);
    let (agent_io, far) = duplex(64 * 1024);
    (start(hub_io, agent_io, hub, agent), relay(near, far, hole))
}

async fn ends(session: Session) -> [(Duration, CarrierEnd); 2] {
    let since = Instant::now();
    let timed = |task: JoinHandle<CarrierEnd>| async move {
        let end = task.await.unwrap();
        (since.elapsed(), end)
    };
    let (hub, agent) = tokio::join!(timed(session.hub_end), timed(session.agent_end));
    [hub, agent]
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_found_within_15_s_idle_and_with_writes_queued() {
    for hole in [Hole::Both, Hole::ToHub, Hole::ToAgent] {
        for is_busy in [false, true] {
            let (session, relay) = silent_session(hole, hub_config(), agent_config(1024));
            serve_echo(&session.agent);
            tokio::time::sleep(Duration::from_secs(7)).await;
            if is_busy {
                for _ in 0..8 {
                    let mut stream = session.hub.open(Some(&http())).unwrap();
                    tokio::spawn(
                        async move { while stream.write_all(&[1; 65_536]).await.is_ok() {} },
                    );
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            relay.closed.store(true, Ordering::SeqCst);
            for (after, end) in ends(session).await {
                let found = [
                    CloseReason::CarrierDead,
                    CloseReason::WriteStalled,
                    CloseReason::CarrierLost,
                ];
                assert!(
                    found.contains(&end.reason),
                    "{:?}: {}",
                    end.reason,
                    end.detail
                );
                assert!(
                    after <= Duration::from_secs(15),
                    "after {after:?}: {}",
                    end.detail
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_compatible_peer_is_dead_after_45_s_and_not_before_its_third_ping() {
    let (session, relay) = silent_session(
        Hole::Both,
        CarrierConfig::radar(End::Hub),
        CarrierConfig::radar(End::Agent),
    );
    // Two minutes of idle life: pings keep it.
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(session.hub.ended().is_none());
    assert!(session.hub.rtt_ms().is_some());
    relay.closed.store(true, Ordering::SeqCst);
    for (after, end) in ends(session).await {
        assert_eq!(end.reason, CloseReason::CarrierDead);
        let range = Duration::from_secs(29)..=Duration::from_secs(45);
        assert!(range.contains(&after), "after {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_culvert_session_lives() {
    let (hub_io, agent_io) = duplex(64 * 1024);
    let session = start(hub_io, agent_io, hub_config(), agent_config(1024));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(session.hub.ended().is_none() && session.agent.ended().is_none());
    assert!(session.hub.rtt_ms().is_some() && session.agent.rtt_ms().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_is_given_up_after_10_s_although_it_beats() {
    let (hub_io, mut peer) = duplex(4096);
    let mut config = CarrierConfig::radar(End::Hub);
    config.mux.streams_max = 64;
    let (hub, driver) = carrier(hub_io, config, budget());
    let driver = tokio::spawn(driver);
    let mut stream = hub.open(None).unwrap();
    tokio::spawn(async move { while stream.write_all(&[1; 65_536]).await.is_ok() {} });
    // It pings for its life, and reads not a byte.
    let peer = tokio::spawn(async move {
        for nonce in 0u8.. {
            let ping = [0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, nonce];
            if peer.write_all(&ping).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let since = Instant::now();
    let end = driver.await.unwrap();
    assert_eq!(end.reason, CloseReason::WriteStalled, "{}", end.detail);
    let after = since.elapsed();
    assert!(
        (10.0..11.0).contains(&after.as_secs_f64()),
        "after {after:?}"
    );
    peer.abort();
}

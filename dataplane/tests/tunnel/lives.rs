//! What ends flows before their time, and what does not.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::{Agent, Introduction};
use crate::client::connect;
use crate::flows::{TRUSTING, channels, echoes, free, introduction, parked, reach, routed};
use crate::hub::{Hub, OTHER_TOKEN, metric, soon, until};
use crate::private::Private;

/// Reads until the connection breaks, within `limit`; it must not end cleanly.
async fn breaks_within(stream: &mut TcpStream, limit: Duration) {
    let began = Instant::now();
    let mut rest = Vec::new();
    let ended = soon("the flow is cut", stream.read_to_end(&mut rest)).await;
    assert!(ended.is_err(), "a cut that looks like an end");
    assert!(began.elapsed() < limit, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_route_that_goes_takes_its_flows_and_its_listener_along() {
    let (gone, stays, new) = (free(), free(), free());
    let before = routed(&[("echo", gone), ("banner", stays)]);
    for args in [TRUSTING, &[]] {
        let hub = Hub::with(&before, args);
        let private = Private::new(hub.at.public, true);
        let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
        let mut cut = reach(gone).await;
        echoes(&mut cut, b"alive").await;
        let mut kept = connect(stays).await;
        soon("the banner", kept.read_exact(&mut [0; 11]))
            .await
            .unwrap();
        hub.rewrite_clusters(&routed(&[("echo", new), ("banner", stays)]));
        // The file is looked at once a second.
        breaks_within(&mut cut, Duration::from_secs(2)).await;
        echoes(&mut kept, b"still alive").await;
        echoes(&mut reach(new).await, b"a new way").await;
        until("the old address is free", || async {
            TcpStream::connect(gone).await.is_err().then_some(())
        })
        .await;
        let line = "culvert_route_listeners{state=\"bound\"} ";
        assert_eq!(metric(hub.at.internal, line).await, Some(2.0));
    }
}

#[tokio::test]
async fn a_revoked_clusters_pairs_are_cut() {
    let at = free();
    let hub = Hub::with(&routed(&[("echo", at)]), TRUSTING);
    let private = Private::new(hub.at.public, true);
    let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    parked(&hub, "plain", 2.0).await;
    let mut cut = reach(at).await;
    echoes(&mut cut, b"alive").await;
    hub.rewrite_clusters(&format!(r#"[{{"id":"other","token":"{OTHER_TOKEN}"}}]"#));
    breaks_within(&mut cut, Duration::from_secs(2)).await;
    until("the service sees it", || async {
        private.ends.lock().first().cloned()
    })
    .await;
    parked(&hub, "plain", 0.0).await;
    let line = "culvert_relays_closed_total{reason=\"revoked\"} ";
    assert!(metric(hub.at.internal, line).await.unwrap() >= 1.0);
}

#[tokio::test]
async fn a_pair_outlives_its_session_by_30_s_and_longer_when_the_instance_is_back() {
    let at = free();
    let hub = Hub::with(&routed(&[("echo", at)]), TRUSTING);
    let (leaves, returns) = (
        Private::new(hub.at.public, true),
        Private::new(hub.at.public, true),
    );
    let mut pairs = Vec::new();
    for (private, instance) in [(&leaves, 1), (&returns, 2)] {
        let intro = || Introduction {
            instance: [instance; 16],
            ..introduction(private, channels())
        };
        let agent = Agent::with(hub.at.public, intro()).await;
        let mut pair = reach(at).await;
        echoes(&mut pair, b"alive").await;
        drop(agent);
        let gone = || async {
            (metric(hub.at.internal, "agents_connected ").await == Some(0.0)).then_some(())
        };
        until("the session is gone", gone).await;
        echoes(&mut pair, b"still alive").await;
        pairs.push((pair, Instant::now()));
    }
    let back = Introduction {
        instance: [2; 16],
        ..introduction(&returns, channels())
    };
    let _back = Agent::with(hub.at.public, back).await;
    let mut pairs = pairs.into_iter();
    let (mut orphan, died) = pairs.next().unwrap();
    let (mut kept, _) = pairs.next().unwrap();
    let mut rest = Vec::new();
    let limit = Duration::from_secs(40);
    let ended = tokio::time::timeout(limit, orphan.read_to_end(&mut rest)).await;
    assert!(ended.unwrap().is_err());
    let lived = died.elapsed();
    assert!(lived > Duration::from_secs(28), "{lived:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    echoes(&mut kept, b"its instance is back").await;
}

#[tokio::test]
async fn a_drain_frees_the_addresses_and_gives_pairs_the_grace() {
    let at = free();
    let args = [TRUSTING[0], "--drain-grace=4s"];
    let hub = Hub::with(&routed(&[("echo", at)]), &args);
    let private = Private::new(hub.at.public, true);
    let agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    let mut ends = reach(at).await;
    let mut stays = connect(at).await;
    echoes(&mut ends, b"one").await;
    echoes(&mut stays, b"two").await;
    hub.drain();
    until("the agent is told", || async {
        agent.heard("drain").then_some(())
    })
    .await;
    let successor = until("the address is free", || async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(at).ok()?;
        socket.listen(16).ok()
    })
    .await;
    echoes(&mut ends, b"within the grace").await;
    ends.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("its own end", ends.read_to_end(&mut rest))
        .await
        .unwrap();
    breaks_within(&mut stays, Duration::from_secs(5)).await;
    hub.ended().await;
    drop(successor);
}

#[tokio::test]
async fn an_address_that_is_taken_is_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = taken.local_addr().unwrap();
    let hub = Hub::with(&routed(&[("echo", at)]), &[]);
    let private = Private::new(hub.at.public, true);
    let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    let failed = "culvert_route_listeners{state=\"failed\"} ";
    until("the failure is told", || async {
        (metric(hub.at.internal, failed).await == Some(1.0)).then_some(())
    })
    .await;
    drop(taken);
    until("it is had", || async {
        (metric(hub.at.internal, failed).await == Some(0.0)).then_some(())
    })
    .await;
    echoes(&mut reach(at).await, b"at last").await;
}

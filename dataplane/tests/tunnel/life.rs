//! Drain.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::Agent;
use crate::client::{connect, exchange, get, read_until, request};
use crate::hub::{Hub, soon, until};

#[tokio::test]
async fn requests_in_flight_finish_and_agents_are_told_to_move() {
    let hub = Hub::start(&[]);
    let at = hub.at;
    let agent = Agent::connect(at.public).await;
    let mut stream = connect(at.internal).await;
    stream
        .write_all(request("GET", "/tunnel/dev/steps", "").as_bytes())
        .await
        .unwrap();
    read_until(&mut stream, b"\r\n\r\n").await;
    let refused = exchange(
        at.admin,
        b"GET /admin/drain HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(refused.await.status, 404, "a drain is a POST");
    let asked =
        b"POST /admin/drain HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(exchange(at.admin, asked).await.status, 202);
    until("the agent is told", || async {
        agent.heard("drain").then_some(())
    })
    .await;
    assert_eq!(get(at.internal, "/readyz/serve").await.status, 503);
    let served = get(at.internal, "/tunnel/dev/").await;
    assert_eq!(served.status, 200, "still served in the first second");
    let late = Agent::try_connect(at.public, crate::agent::Introduction::default()).await;
    assert!(late.is_err(), "no new agent");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(
        tokio::net::TcpStream::connect(at.internal).await.is_err(),
        "listeners are closed"
    );
    for part in ["one", "two", "three"] {
        agent.shared.step.notify_one();
        read_until(&mut stream, part.as_bytes()).await;
    }
    read_until(&mut stream, b"0\r\n\r\n").await;
    assert_eq!(
        soon("farewell", agent.carrier.closed()).await.as_str(),
        "shutdown"
    );
    hub.ended().await;
}

#[tokio::test]
async fn what_outlives_the_grace_is_cut_and_not_as_if_complete() {
    let hub = Hub::start(&["--drain-grace=1s"]);
    let at = hub.at;
    let _agent = Agent::connect(at.public).await;
    let mut stream = connect(at.internal).await;
    stream
        .write_all(request("GET", "/tunnel/dev/steps", "").as_bytes())
        .await
        .unwrap();
    read_until(&mut stream, b"\r\n\r\n").await;
    let began = Instant::now();
    hub.drain();
    let mut wire = Vec::new();
    let _ = soon("the cut", stream.read_to_end(&mut wire)).await;
    assert!(!wire.ends_with(b"0\r\n\r\n"));
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(4),
        "{took:?}"
    );
    hub.ended().await;
}

#[tokio::test]
async fn an_idle_data_plane_ends_soon() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let began = Instant::now();
    hub.drain();
    hub.ended().await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

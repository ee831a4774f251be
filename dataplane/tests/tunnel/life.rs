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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_agent_finds_the_first_table() {
    for _ in 0..5 {
        // A port that is free now; nobody listens until the hub does.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let first = tokio::spawn(async move {
            let mut stream = until("the hub accepts", || async {
                tokio::net::TcpStream::connect(at).await.ok()
            })
            .await;
            let hello = "GET /agent HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
                Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-Radar-Version: 1.4.0\r\n\
                Authorization: Bearer rhc_unknown_token_0000\r\n\r\n";
            stream.write_all(hello.as_bytes()).await.unwrap();
            read_until(&mut stream, b"\r\n\r\n").await
        });
        let hub = tokio::task::spawn_blocking(move || Hub::at(at))
            .await
            .unwrap();
        let answer = soon("an answer", first).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        drop(hub);
    }
}

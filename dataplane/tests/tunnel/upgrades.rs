//! Raw bytes only after the service's own 101.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::Agent;
use crate::client::{Answer, connect, exchange, read_until, request, rest};
use crate::hub::{Hub, metric, until};

fn upgrade(path: &str) -> String {
    format!(
        "GET /tunnel/dev/raw/{path} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\n\
         Upgrade: echo\r\n\r\n"
    )
}

#[tokio::test]
async fn an_accepted_upgrade_carries_raw_bytes_both_ways() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    let mut stream = connect(hub.at.internal).await;
    // Bytes sent before the answer are held, not lost.
    stream
        .write_all((upgrade("switch") + "first").as_bytes())
        .await
        .unwrap();
    let head = Answer::parse(&read_until(&mut stream, b"\r\n\r\n").await);
    assert_eq!(
        (head.status, head.field("upgrade")),
        (101, Some("echo")),
        "{head:?}"
    );
    assert_eq!(read_until(&mut stream, b"first").await, b"earlyfirst");
    let big: Vec<u8> = (0..1_000_000u32).map(|n| (n % 253) as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut back = vec![0; big.len()];
    let (sent, got) = tokio::join!(write.write_all(&big), read.read_exact(&mut back));
    sent.unwrap();
    got.unwrap();
    assert!(back == big, "1 MB unchanged");
    write.shutdown().await.unwrap();
    assert!(
        rest(&mut stream).await.is_empty(),
        "half-close, then a clean end"
    );
    let raw = agent.shared.raw.lock()[0].lock().clone();
    assert!(raw.ends_with(&big[999_000..]));
    let idle = || async {
        let live = metric(hub.at.internal, "culvert_streams{cluster=\"dev\"} ").await;
        (live == Some(0.0)).then_some(())
    };
    until("its stream is gone", idle).await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_answer_and_what_follows_is_no_request() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    for script in ["refuse", "ok"] {
        let smuggled = "GET /tunnel/dev/raw/smuggled HTTP/1.1\r\nHost: hub\r\n\r\n";
        let answer = exchange(hub.at.internal, (upgrade(script) + smuggled).as_bytes()).await;
        assert_eq!(answer.status, if script == "ok" { 200 } else { 403 });
        assert_eq!(answer.field("connection"), Some("close"), "{answer:?}");
        assert_eq!(answer.body.len(), 2, "one answer only: {answer:?}");
    }
    for seen in agent.shared.raw.lock().iter() {
        let seen = String::from_utf8(seen.lock().clone()).unwrap();
        assert!(!seen.contains("smuggled"), "{seen}");
        assert!(
            seen.ends_with("\r\n\r\n"),
            "nothing follows the head: {seen}"
        );
    }
}

#[tokio::test]
async fn a_switch_to_another_protocol_is_refused() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let answer = exchange(hub.at.internal, upgrade("other").as_bytes()).await;
    assert_eq!((answer.status, answer.reason()), (502, "upstream_protocol"));
}

#[tokio::test]
async fn upgrades_with_a_body_or_two_protocols_are_refused() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    for fields in [
        "Upgrade: echo\r\nContent-Length: 3\r\n",
        "Upgrade: echo, websocket\r\n",
        "Upgrade: echo\r\nUpgrade: echo\r\n",
        "",
    ] {
        let asked = request("GET", "/tunnel/dev/raw/switch", fields).replace("close", "upgrade");
        let answer = exchange(hub.at.internal, (asked + "abc").as_bytes()).await;
        assert_eq!(answer.status, 400, "{fields:?}: {answer:?}");
    }
    assert!(agent.shared.raw.lock().is_empty());
}

#[tokio::test]
async fn a_tunnel_that_drops_resets_the_upgraded_client() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    let mut stream = connect(hub.at.internal).await;
    stream
        .write_all(upgrade("switch").as_bytes())
        .await
        .unwrap();
    read_until(&mut stream, b"early").await;
    drop(agent);
    let end = crate::hub::soon("the end", stream.read(&mut [0; 16])).await;
    assert_eq!(
        end.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset,
        "no clean end"
    );
}

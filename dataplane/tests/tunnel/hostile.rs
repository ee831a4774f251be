//! Wrong credentials, browsers, silence, garbage.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::agent::{Agent, Introduction};
use crate::client::{Answer, connect, exchange, get};
use crate::hub::{Hub, OTHER_TOKEN, TOKEN, metric};

fn hello(fields: &str) -> String {
    format!(
        "GET /agent HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: culvert/1\r\n\
         Culvert-Version: 1.0.0\r\nCulvert-Instance: 0190163d-8694-739b-aea5-966c26f8ad91\r\n\
         {fields}\r\n"
    )
}

async fn refused(hub: &Hub, request: &str) -> Answer {
    let answer = exchange(hub.at.public, request.as_bytes()).await;
    assert_ne!(answer.status, 101, "{request}");
    assert_eq!(answer.field("connection"), Some("close"), "{answer:?}");
    answer
}

#[tokio::test]
async fn wrong_missing_and_foreign_credentials_look_the_same() {
    let hub = Hub::start(&[]);
    let mut bodies = Vec::new();
    for fields in [
        String::new(),
        "Authorization: Bearer wrong-token-0123456789\r\n".to_owned(),
        "Authorization: Basic YTpi\r\n".to_owned(),
        "Authorization: Bearer short\r\n".to_owned(),
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        format!("Authorization: Bearer {TOKEN}\r\nCulvert-Cluster: other\r\n"),
    ] {
        let answer = refused(&hub, &hello(&fields)).await;
        assert_eq!(
            (answer.status, answer.reason()),
            (401, "unauthenticated"),
            "{fields}"
        );
        bodies.push(answer.text());
    }
    assert_eq!(bodies[0], bodies[1], "missing and unknown");
    assert_eq!(bodies[1], bodies[5], "unknown and foreign");
    let counted = metric(
        hub.at.internal,
        r#"auth_failures_total{endpoint="/agent"} "#,
    )
    .await;
    assert_eq!(counted, Some(6.0));
    let claim = Introduction {
        claims: Some("other"),
        token: OTHER_TOKEN,
        ..Introduction::default()
    };
    drop(Agent::with(hub.at.public, claim).await);
}

#[tokio::test]
async fn browsers_do_not_belong_on_agent_paths() {
    let hub = Hub::start(&[]);
    for field in [
        "Origin: https://evil.example",
        "Origin: null",
        "Cookie: a=b",
    ] {
        let fields = format!("Authorization: Bearer {TOKEN}\r\n{field}\r\n");
        let answer = refused(&hub, &hello(&fields)).await;
        assert_eq!(
            (answer.status, answer.reason()),
            (403, "forbidden"),
            "{field}"
        );
    }
}

#[tokio::test]
async fn an_unknown_version_is_told_both_versions() {
    let hub = Hub::start(&[]);
    let asked =
        hello(&format!("Authorization: Bearer {TOKEN}\r\n")).replace("culvert/1", "culvert/9");
    let answer = refused(&hub, &asked).await;
    assert_eq!((answer.status, answer.reason()), (426, "no_common_version"));
    assert!(answer.field("upgrade").unwrap().contains("culvert/1"));
    let text = answer.text();
    assert!(
        text.contains("culvert/9") && text.contains("culvert/1"),
        "{text}"
    );
    let plain = exchange(hub.at.public, b"GET /agent HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(plain.status, 426);
    let post = hello("").replace("GET", "POST");
    assert_eq!(exchange(hub.at.public, post.as_bytes()).await.status, 426);
}

#[tokio::test]
async fn a_source_that_keeps_failing_waits() {
    let hub = Hub::start(&[]);
    let wrong = hello("Authorization: Bearer wrong-token-0123456789\r\n");
    for _ in 0..30 {
        let answer = exchange(hub.at.public, wrong.as_bytes()).await;
        assert_eq!(answer.status, 401);
    }
    let began = Instant::now();
    assert_eq!(exchange(hub.at.public, wrong.as_bytes()).await.status, 401);
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // A good agent behind the same address does not wait.
    let began = Instant::now();
    let _agent = Agent::connect(hub.at.public).await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn silent_connections_are_ended_and_keep_nobody_out() {
    let hub = Hub::start(&[]);
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(connect(hub.at.public).await);
    }
    // Connected is not accepted yet.
    crate::hub::until("250 of them wait", || async {
        let waiting = metric(hub.at.internal, "culvert_handshakes_waiting ").await;
        waiting.filter(|waiting| *waiting >= 250.0)
    })
    .await;
    let _agent = Agent::connect(hub.at.public).await;
    assert_eq!(get(hub.at.internal, "/tunnel/dev/").await.status, 200);
    let began = Instant::now();
    for stream in &mut silent {
        assert!(crate::client::rest(stream).await.is_empty());
    }
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "5 s to the first byte: {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_head_that_never_ends_is_ended() {
    let hub = Hub::start(&[]);
    let began = Instant::now();
    let mut streams = Vec::new();
    for start in ["GET /agent HTTP/1.1\r\nHost: a\r\nX: ", "G"] {
        let mut stream = connect(hub.at.public).await;
        stream.write_all(start.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    let drip = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if streams[0].write_all(b"a").await.is_err() {
                return;
            }
        }
    };
    crate::hub::soon("a slow head is cut although it goes on", drip).await;
    assert!(
        began.elapsed() < Duration::from_secs(13),
        "{:?}",
        began.elapsed()
    );
    let _ = crate::client::rest(&mut streams[1]).await;
    assert!(
        began.elapsed() >= Duration::from_secs(9),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn garbage_costs_only_its_connection() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\0\0\0\0\r\n\r\n",
        b"HELO\r\n\r\n",
    ] {
        for at in [hub.at.public, hub.at.internal] {
            let mut stream = connect(at).await;
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = crate::client::rest(&mut stream).await;
        }
    }
    // After a good hello: bytes that are no frames end that session only.
    let mut stream = connect(hub.at.public).await;
    let asked = hello(&format!("Authorization: Bearer {OTHER_TOKEN}\r\n"));
    stream.write_all(asked.as_bytes()).await.unwrap();
    crate::client::read_until(&mut stream, b"\r\n\r\n").await;
    stream.write_all(&[0xff; 4096]).await.unwrap();
    let mut wire = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut wire);
    let _ = crate::hub::soon("the session is ended", end).await;
    assert_eq!(get(hub.at.internal, "/tunnel/dev/").await.status, 200);
}

//! What is refused, and that it is refused fast and attributed.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::agent::{Agent, Introduction};
use crate::client::{connect, exchange, get, read_until, request, rest};
use crate::hub::{Hub, TOKEN, metric, until};

#[tokio::test]
async fn unknown_clusters_and_path_tricks() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    let long = format!("/tunnel/{}/", "a".repeat(64));
    for (target, status) in [
        ("/tunnel/nobody/", 404),
        ("/tunnel/DEV/", 404),
        ("/tunnel/", 404),
        ("/tunnels/dev/", 404),
        ("/", 404),
        (&long, 404),
        ("/tunnel//dev/", 400),
        ("/tunnel/../tunnel/dev/", 400),
        ("/tunnel/dev%2Fx/", 400),
        ("/tunnel/%64ev/", 400),
        ("/tunnel/dev;x=1/", 400),
        ("/tunnel/dev\\x/", 400),
        ("//tunnel/dev/", 400),
        ("/tunnel/dev?x", 400),
    ] {
        let answer = get(hub.at.internal, target).await;
        assert_eq!(answer.status, status, "{target}: {answer:?}");
        assert!(!answer.reason().is_empty(), "{target}");
    }
    assert!(agent.shared.raw.lock().is_empty());
}

#[tokio::test]
async fn heads_that_two_readers_could_read_in_two_ways() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    let line = "GET /tunnel/dev/raw/ok HTTP/1.1\r\n";
    let post = "POST /tunnel/dev/raw/ok HTTP/1.1\r\nHost: a\r\n";
    for (name, head) in [
        ("no Host", format!("{line}\r\n")),
        ("two Host", format!("{line}Host: a\r\nHost: a\r\n\r\n")),
        (
            "another authority",
            "GET http://b/tunnel/dev/raw/ok HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "space before colon",
            format!("{line}Host: a\r\nX : b\r\n\r\n"),
        ),
        ("obs-fold", format!("{line}Host: a\r\nX: b\r\n c\r\n\r\n")),
        (
            "signed length",
            format!("{post}Content-Length: +2\r\n\r\nhi"),
        ),
        (
            "two lengths",
            format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi"),
        ),
        (
            "list of lengths",
            format!("{post}Content-Length: 2, 2\r\n\r\nhi"),
        ),
        (
            "odd coding",
            format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "two codings",
            format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "protected in Connection",
            format!("{line}Host: a\r\nConnection: X-Forwarded-User\r\n\r\n"),
        ),
        (
            "framing in Connection",
            format!("{post}Connection: content-length\r\nContent-Length: 2\r\n\r\nhi"),
        ),
        (
            "body on GET",
            format!("{line}Host: a\r\nContent-Length: 2\r\n\r\nhi"),
        ),
    ] {
        let answer = exchange(hub.at.internal, head.as_bytes()).await;
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
    }
    // Only a proxy front takes CONNECT; what follows it is no request.
    let asked = "CONNECT dev:443 HTTP/1.1\r\nHost: dev:443\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    for at in [hub.at.internal, hub.at.public] {
        let answer = exchange(at, asked.as_bytes()).await;
        assert_eq!((answer.status, answer.reason()), (400, "bad_head"));
        assert_eq!(answer.field("connection"), Some("close"));
        assert!(!answer.text().contains("HTTP/1.1"), "one answer only");
    }
    assert!(
        agent.shared.raw.lock().is_empty(),
        "none of them reached the service"
    );
}

#[tokio::test]
async fn head_sizes_at_their_edges() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let of = |fields: &str| request("GET", "/tunnel/dev/", fields);
    let field = |bytes: usize| format!("X-Big: {}\r\n", "a".repeat(bytes));
    for (fields, status) in [
        (field(16 * 1024), 200),
        (field(16 * 1024 + 1), 431),
        // Host and Connection count too.
        ("X: y\r\n".repeat(126), 200),
        ("X: y\r\n".repeat(127), 431),
        (field(15_000).repeat(5), 431),
    ] {
        let answer = exchange(hub.at.internal, of(&fields).as_bytes()).await;
        assert_eq!(answer.status, status, "{} bytes of fields", fields.len());
    }
}

#[tokio::test]
async fn the_agents_own_stream_limit_is_respected() {
    let hub = Hub::start(&[]);
    let intro = Introduction {
        streams_max: Some(2),
        ..Introduction::default()
    };
    let agent = Agent::with(hub.at.public, intro).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(hub.at.internal).await;
        stream
            .write_all(request("GET", "/tunnel/dev/steps", "").as_bytes())
            .await
            .unwrap();
        read_until(&mut stream, b"\r\n\r\n").await;
        open.push(stream);
    }
    let third = get(hub.at.internal, "/tunnel/dev/").await;
    assert_eq!((third.status, third.reason()), (503, "too_many_streams"));
    let refused = r#"culvert_streams_refused_total{reason="limit"} "#;
    assert_eq!(metric(hub.at.internal, refused).await, Some(1.0));
    for stream in &mut open {
        for _ in 0..3 {
            agent.shared.step.notify_one();
            agent.shared.step.notify_waiters();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let _ = stream;
    }
    for stream in &mut open {
        until("the others finish", || async {
            agent.shared.step.notify_one();
            Some(())
        })
        .await;
        let permits = async {
            loop {
                agent.shared.step.notify_one();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            wire = rest(stream) => assert!(wire.ends_with(b"0\r\n\r\n")),
            () = permits => {}
        }
    }
    assert_eq!(get(hub.at.internal, "/tunnel/dev/").await.status, 200);
}

#[tokio::test]
async fn a_clusters_limit_of_requests_spares_its_neighbour() {
    let clusters = format!(
        r#"[{{"id":"dev","token":"{TOKEN}","maxRequests":1}},
            {{"id":"other","token":"{}"}}]"#,
        crate::hub::OTHER_TOKEN
    );
    let hub = Hub::with(&clusters, &[]);
    let _agent = Agent::connect(hub.at.public).await;
    let other = Introduction {
        token: crate::hub::OTHER_TOKEN,
        ..Introduction::default()
    };
    let _other = Agent::with(hub.at.public, other).await;
    let mut held = connect(hub.at.internal).await;
    held.write_all(request("GET", "/tunnel/dev/steps", "").as_bytes())
        .await
        .unwrap();
    read_until(&mut held, b"\r\n\r\n").await;
    let refused = get(hub.at.internal, "/tunnel/dev/").await;
    assert_eq!(
        (refused.status, refused.reason()),
        (503, "too_many_requests")
    );
    assert_eq!(get(hub.at.internal, "/tunnel/other/").await.status, 200);
    drop(held);
    until("the place is free again", || async {
        (get(hub.at.internal, "/tunnel/dev/").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rates_answer_429_and_when_to_come_back() {
    let hub = Hub::start(&["--rate-limit=5"]);
    let _agent = Agent::connect(hub.at.public).await;
    let mut refused = 0;
    for _ in 0..20 {
        let answer = get(hub.at.internal, "/tunnel/dev/").await;
        if answer.status == 429 {
            refused += 1;
            assert_eq!(answer.reason(), "rate_limited");
            assert_eq!(answer.field("retry-after"), Some("1"));
        }
    }
    assert!(refused >= 10, "{refused} of 20 at 5/s");
    let counted = metric(hub.at.internal, "proxy_rate_limited_total ").await;
    assert_eq!(counted, Some(f64::from(refused)));
}

#[tokio::test]
async fn a_clusters_rate_spares_its_neighbour_and_the_data_planes_rate() {
    let clusters = format!(
        r#"[{{"id":"dev","token":"{TOKEN}","rateLimit":3}},
            {{"id":"other","token":"{}"}}]"#,
        crate::hub::OTHER_TOKEN
    );
    // One more than "other" asks for: what "dev" is refused must not count here.
    let hub = Hub::with(&clusters, &["--rate-limit=40"]);
    let _agent = Agent::connect(hub.at.public).await;
    let other = Introduction {
        token: crate::hub::OTHER_TOKEN,
        ..Introduction::default()
    };
    let _other = Agent::with(hub.at.public, other).await;
    let mut refused = 0;
    for _ in 0..60 {
        let answer = get(hub.at.internal, "/tunnel/dev/").await;
        if answer.status == 429 {
            refused += 1;
            assert_eq!(answer.reason(), "rate_limited");
            assert_eq!(answer.field("retry-after"), Some("1"));
            assert!(answer.text().contains("3 requests/s"), "{}", answer.text());
        }
    }
    assert!(refused >= 40, "{refused} of 60 at 3/s");
    for _ in 0..20 {
        assert_eq!(get(hub.at.internal, "/tunnel/other/").await.status, 200);
    }
    let of_dev = r#"proxy_requests_total{cluster="dev",code="429",method="GET",status="429"} "#;
    for line in ["proxy_rate_limited_total ", of_dev] {
        let counted = metric(hub.at.internal, line).await;
        assert_eq!(counted, Some(f64::from(refused)), "{line}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_however_it_is_framed() {
    let hub = Hub::start(&["--max-body=1KiB"]);
    let _agent = Agent::connect(hub.at.public).await;
    let post = |fields: &str| request("POST", "/tunnel/dev/count", fields);
    let exact = post("Content-Length: 1024\r\n") + &"a".repeat(1024);
    assert_eq!(
        exchange(hub.at.internal, exact.as_bytes()).await.text(),
        "1024"
    );
    let declared = post("Content-Length: 1025\r\n");
    let answer = exchange(hub.at.internal, declared.as_bytes()).await;
    assert_eq!((answer.status, answer.reason()), (413, "body_too_large"));
    let chunked = post("Transfer-Encoding: chunked\r\n") + "401\r\n" + &"a".repeat(1025) + "\r\n";
    let answer = exchange(hub.at.internal, chunked.as_bytes()).await;
    assert_eq!((answer.status, answer.reason()), (413, "body_too_large"));
}

//! Requests and answers: heads, bodies, trailers, and how they end.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::Agent;
use crate::client::{Answer, connect, dechunk, exchange, get, read_until, request, rest};
use crate::hub::{Hub, metric, until};

#[tokio::test]
async fn a_request_reaches_the_service_with_a_head_of_our_making() {
    for engine in ["--io-engine=epoll", "--io-engine=auto"] {
        let hub = Hub::start(&[engine]);
        let _agent = Agent::connect(hub.at.public).await;
        let id = "0190163d-8694-739b-aea5-966c26f8ad91";
        let fields = format!(
            "X-Request-Id: {id}\r\nAccept: a/b\r\nAuthorization: Bearer s3cret\r\nCookie: a=b\r\n\
             X-Forwarded-User: root\r\nX_Remote_User: root\r\nImpersonate-User: root\r\n\
             X-Custom: kept\r\n"
        );
        let answer = exchange(
            hub.at.internal,
            request("GET", "/tunnel/dev/a/%2e%2e/b?x=%2F&y", &fields).as_bytes(),
        )
        .await;
        assert_eq!(answer.status, 200, "{engine}: {answer:?}");
        assert_eq!(answer.field("x-request-id"), Some(id));
        assert_eq!(answer.field("x-tag"), Some("agent"));
        assert_eq!(
            answer.text(),
            format!(
                "GET /a/%2e%2e/b?x=%2F&y\nhost: dev\naccept: a/b\nx-custom: kept\n\
                 x-request-id: {id}\nconnection: close\n"
            )
        );
    }
}

#[tokio::test]
async fn a_request_without_a_usable_id_gets_one() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let asked = request("GET", "/tunnel/dev/", "X-Request-Id: <script>\r\n");
    let answer = exchange(hub.at.internal, asked.as_bytes()).await;
    let id = answer.field("x-request-id").unwrap();
    assert_eq!((id.len(), &id[14..15]), (36, "7"), "{id}");
    assert!(answer.text().contains(&format!("x-request-id: {id}\n")));
}

#[tokio::test]
async fn bodies_stream_both_ways_in_both_framings() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    for chunked in [false, true] {
        let mut stream = connect(hub.at.internal).await;
        let framing = match chunked {
            true => "Transfer-Encoding: chunked\r\n".to_owned(),
            false => format!("Content-Length: {}\r\n", body.len()),
        };
        let head = request("POST", "/tunnel/dev/echo", &framing);
        let (mut read, mut write) = stream.split();
        let sent = async {
            write.write_all(head.as_bytes()).await.unwrap();
            for piece in body.chunks(100_000) {
                if chunked {
                    write
                        .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                        .await
                        .unwrap();
                }
                write.write_all(piece).await.unwrap();
                if chunked {
                    write.write_all(b"\r\n").await.unwrap();
                }
            }
            if chunked {
                write.write_all(b"0\r\n\r\n").await.unwrap();
            }
        };
        let mut wire = Vec::new();
        let (_, got) = tokio::join!(sent, read.read_to_end(&mut wire));
        got.unwrap();
        let answer = Answer::parse(&wire);
        let echoed = match answer.field("content-length") {
            Some(_) => answer.body.clone(),
            None => dechunk(&answer.body),
        };
        assert!(
            echoed == body,
            "chunked {chunked}: {} bytes came back",
            echoed.len()
        );
    }
}

#[tokio::test]
async fn each_chunk_arrives_before_the_next_is_made() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    let mut stream = connect(hub.at.internal).await;
    stream
        .write_all(request("GET", "/tunnel/dev/steps", "").as_bytes())
        .await
        .unwrap();
    read_until(&mut stream, b"\r\n\r\n").await;
    for part in ["3\r\none\r\n", "3\r\ntwo\r\n", "5\r\nthree\r\n"] {
        agent.shared.step.notify_one();
        let got = read_until(&mut stream, part.as_bytes()).await;
        assert_eq!(got, part.as_bytes());
    }
    assert_eq!(rest(&mut stream).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn trailers_travel_both_ways_without_protected_names() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let fields = "TE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Kept\r\n";
    let asked = request("POST", "/tunnel/dev/trailers", fields).replace("close", "close, te")
        + "2\r\nhi\r\n0\r\nX-Kept: 1\r\nImpersonate-User: root\r\n\r\n";
    let answer = exchange(hub.at.internal, asked.as_bytes()).await;
    let text = answer.text().to_ascii_lowercase();
    assert!(
        text.contains("hi\r\n0\r\n") && text.contains("x-sum: 42\r\n"),
        "{text}"
    );
    assert!(
        text.contains("x-kept: 1\r\n") && !text.contains("root"),
        "{text}"
    );
}

#[tokio::test]
async fn expect_continue_waits_for_an_agent() {
    let hub = Hub::start(&[]);
    let fields = "Expect: 100-continue\r\nContent-Length: 5\r\n";
    let asked = request("POST", "/tunnel/dev/count", fields);
    let refused = exchange(hub.at.internal, asked.as_bytes()).await;
    assert_eq!(refused.status, 503, "no 100 without an agent: {refused:?}");
    let _agent = Agent::connect(hub.at.public).await;
    let mut stream = connect(hub.at.internal).await;
    stream.write_all(asked.as_bytes()).await.unwrap();
    let interim = read_until(&mut stream, b"\r\n\r\n").await;
    assert!(
        interim.starts_with(b"HTTP/1.1 100 "),
        "{}",
        String::from_utf8_lossy(&interim)
    );
    stream.write_all(b"12345").await.unwrap();
    assert!(rest(&mut stream).await.ends_with(b"\r\n\r\n5"));
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let mut stream = connect(hub.at.internal).await;
    for n in 0..50 {
        let asked = format!("GET /tunnel/dev/raw/ok?{n} HTTP/1.1\r\nHost: hub\r\n\r\n");
        stream
            .write_all(asked.replace("/raw/ok", "/x").as_bytes())
            .await
            .unwrap();
        let head = read_until(&mut stream, b"\r\n\r\n").await;
        let answer = Answer::parse(&head);
        assert_eq!(answer.status, 200, "request {n}");
        let mut body = vec![0; answer.field("content-length").unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        assert!(
            String::from_utf8(body)
                .unwrap()
                .starts_with(&format!("GET /x?{n}\n"))
        );
    }
    let (agents, streams) = ("agents_connected ", "culvert_streams{cluster=\"dev\"} ");
    assert_eq!(metric(hub.at.internal, agents).await, Some(1.0));
    let settled = || async { (metric(hub.at.internal, streams).await == Some(0.0)).then_some(()) };
    until("all streams are gone", settled).await;
    let counted = r#"proxy_requests_total{cluster="dev",code="200",method="GET",status="200"} "#;
    assert_eq!(metric(hub.at.internal, counted).await, Some(50.0));
}

#[tokio::test]
async fn head_and_bodiless_answers_keep_the_connection() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let answer = exchange(
        hub.at.internal,
        request("HEAD", "/tunnel/dev/big", "").as_bytes(),
    )
    .await;
    assert_eq!(answer.field("content-length"), Some("1048576"));
    assert!(answer.body.is_empty());
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_complete() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    let mut stream = connect(hub.at.internal).await;
    stream
        .write_all(request("GET", "/tunnel/dev/raw/cut", "").as_bytes())
        .await
        .unwrap();
    read_until(&mut stream, b"hello\r\n").await;
    agent.shared.step.notify_one();
    let mut wire = Vec::new();
    let _ = stream.read_to_end(&mut wire).await;
    assert!(
        wire.is_empty(),
        "no last chunk: {:?}",
        String::from_utf8_lossy(&wire)
    );

    let short = request("GET", "/tunnel/dev/raw/short", "");
    let mut stream = connect(hub.at.internal).await;
    stream.write_all(short.as_bytes()).await.unwrap();
    let mut wire = Vec::new();
    let _ = stream.read_to_end(&mut wire).await;
    // The cut may overtake what was not flushed yet: less is fine, whole is not.
    if !wire.is_empty() {
        let answer = Answer::parse(&wire);
        assert_eq!(answer.field("content-length"), Some("100"));
        assert!(answer.body.len() < 100);
    }

    // HTTP/1.0 has no framing for an unknown length: only RST can tell.
    let mut stream = connect(hub.at.internal).await;
    let asked = b"GET /tunnel/dev/raw/reset-until-eof HTTP/1.0\r\nHost: hub\r\n\r\n";
    stream.write_all(asked).await.unwrap();
    read_until(&mut stream, b"hello").await;
    agent.shared.step.notify_one();
    let end = stream.read(&mut [0; 16]).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let whole = b"GET /tunnel/dev/raw/until-eof HTTP/1.0\r\nHost: hub\r\n\r\n";
    assert_eq!(
        exchange(hub.at.internal, whole).await.text(),
        "hello",
        "a clean end stays clean"
    );
}

#[tokio::test]
async fn answers_that_are_not_http_are_the_services_fault() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    for path in ["garbage", "ambiguous", "other"] {
        let answer = get(hub.at.internal, &format!("/tunnel/dev/raw/{path}")).await;
        assert_eq!(
            (answer.status, answer.reason()),
            (502, "upstream_protocol"),
            "{path}"
        );
        assert!(
            answer.text().contains("upstream"),
            "the side is named: {}",
            answer.text()
        );
    }
    let own = get(hub.at.internal, "/tunnel/dev/raw/own-error").await;
    assert_eq!(
        (own.status, own.reason()),
        (502, "dial_refused"),
        "the agent's word is kept"
    );
    let gone = get(hub.at.internal, "/tunnel/dev/raw/vanish").await;
    assert_eq!((gone.status, gone.reason()), (502, "agent_reset"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_request_at_the_service() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    let mut stream = connect(hub.at.internal).await;
    let head = request("POST", "/tunnel/dev/count", "Content-Length: 1000\r\n");
    stream.write_all((head + "half").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(stream);
    let broken = || async { (*agent.shared.broken.lock() > 0).then_some(()) };
    until("the service sees a broken body, not a short one", broken).await;
    let idle = || async {
        let live = metric(hub.at.internal, "culvert_streams{cluster=\"dev\"} ").await;
        (live == Some(0.0)).then_some(())
    };
    until("its stream is gone", idle).await;
}

#[tokio::test]
async fn an_absent_agent_is_told_at_once() {
    let hub = Hub::start(&[]);
    let mut stream = connect(hub.at.internal).await;
    let mut times = Vec::new();
    for _ in 0..51 {
        let began = Instant::now();
        let asked = b"GET /tunnel/dev/ HTTP/1.1\r\nHost: hub\r\n\r\n";
        stream.write_all(asked).await.unwrap();
        let head = read_until(&mut stream, b"\r\n\r\n").await;
        times.push(began.elapsed());
        let answer = Answer::parse(&head);
        assert_eq!((answer.status, answer.reason()), (503, "agent_absent"));
        assert!(answer.field("retry-after").is_some());
        let length = answer.field("content-length").unwrap().parse().unwrap();
        stream.read_exact(&mut vec![0; length]).await.unwrap();
    }
    times.sort();
    assert!(
        times[25] < Duration::from_millis(5),
        "median {:?}",
        times[25]
    );
}

#[tokio::test]
async fn probes_say_what_they_mean() {
    let hub = Hub::start(&[]);
    for at in [hub.at.internal, hub.at.admin] {
        assert_eq!(get(at, "/healthz").await.text(), "ok");
        assert_eq!(get(at, "/livez").await.text(), "ok");
        assert_eq!(get(at, "/readyz").await.status, 503, "no agent yet");
        assert_eq!(get(at, "/readyz/serve").await.status, 200);
        assert!(
            get(at, "/metrics")
                .await
                .text()
                .contains("culvert_io_backend{backend=")
        );
    }
    assert_eq!(get(hub.at.public, "/healthz").await.text(), "ok");
    for path in ["/metrics", "/readyz", "/tunnel/dev/", "/"] {
        assert_eq!(
            get(hub.at.public, path).await.status,
            404,
            "{path} is not public"
        );
    }
    let _agent = Agent::connect(hub.at.public).await;
    assert_eq!(get(hub.at.internal, "/readyz").await.text(), "ok");
    let list = get(hub.at.admin, "/connections?cluster=dev").await;
    assert!(
        list.text().contains(r#""carrier":"culvert/1""#),
        "{}",
        list.text()
    );
    let none = get(hub.at.admin, "/connections?cluster=other").await;
    assert!(none.text().contains(r#""total":0"#), "{}", none.text());
}

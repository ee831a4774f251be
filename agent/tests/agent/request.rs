//! Requests and answers through the agent.

use std::sync::Arc;

use bytes::Bytes;
use culvert_agent::target::TargetKind;
use culvert_agent::upstream::kube::TokenFile;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::*;

#[tokio::test]
async fn a_request_and_its_answer_pass_whole() {
    let served = service(answer(|request| async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut said = format!("{} {}\n", parts.method, parts.uri);
        for name in [
            "host",
            "x-forwarded-user",
            "authorization",
            "connection",
            "x-hop",
        ] {
            let value = parts.headers.get(name).map(|value| value.to_str().unwrap());
            said.push_str(&format!("{name}={}\n", value.unwrap_or("-")));
        }
        said.push_str(&String::from_utf8_lossy(&body));
        Response::builder()
            .status(207)
            .header("x-answer", "yes")
            .header("culvert-error", "forged")
            .header("keep-alive", "timeout=9")
            .body(full(said))
            .unwrap()
    }))
    .await;
    let made = Recipe::http(served.addr).make();
    let request = Request::put("/a%2Fb//c/../d?x=1&y=%20")
        .header("host", "hub")
        .header("x-forwarded-user", "ann")
        .header("authorization", "Bearer of-the-client")
        .header("connection", "x-hop, x-forwarded-user, host")
        .header("x-hop", "1")
        .body(full("body"))
        .unwrap();
    let response = ask(&made, request).await;
    assert_eq!(response.status(), 207);
    assert_eq!(response.headers()["x-answer"], "yes");
    assert!(!response.headers().contains_key("culvert-error"));
    assert!(!response.headers().contains_key("keep-alive"));
    let expected = format!(
        "PUT /a%2Fb//c/../d?x=1&y=%20\nhost={}\nx-forwarded-user=ann\nauthorization=-\nconnection=-\nx-hop=-\nbody",
        served.addr
    );
    assert_eq!(text(response.into_body()).await, expected);
    assert_eq!(made.metrics.upstream_requests.get(), 1);
    assert_eq!(made.metrics.upstream_errors.get(), 0);
}

#[tokio::test]
async fn connections_to_the_target_are_kept_and_shared() {
    let served = service(answer(|_| async { Response::new(full("x")) })).await;
    let made = Recipe::http(served.addr).make();
    for _ in 0..50 {
        assert_eq!(text(ask(&made, get("/")).await.into_body()).await, "x");
    }
    assert!(
        served.connections() <= 2,
        "{} connections",
        served.connections()
    );
}

#[tokio::test]
async fn a_connection_closed_under_a_request_costs_a_get_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        // Each connection answers once and closes on the second request, unanswered.
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if tcp.read(&mut head).await.unwrap() > 0 {
                    let said = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    tcp.write_all(said).await.unwrap();
                    let _ = tcp.read(&mut head).await;
                }
            });
        }
    });
    let made = Recipe::http(addr).make();
    let idle_for_a_while = async || {
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        tokio::time::resume();
    };
    for _ in 0..3 {
        let response = ask(&made, get("/")).await;
        assert_eq!(text(response.into_body()).await, "ok");
        idle_for_a_while().await;
    }
    let post = Request::post("/")
        .header("host", "hub")
        .body(full("x"))
        .unwrap();
    let response = ask(&made, post).await;
    assert_eq!(
        close_reason(&response),
        "upstream_reset",
        "a change is never sent twice"
    );
}

#[tokio::test]
async fn the_answer_to_head_keeps_its_length() {
    let script = b"HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n";
    let made = Recipe::http(scripted(script, false).await.addr).make();
    let request = Request::head("/").header("host", "hub").body(empty());
    let response = ask(&made, request.unwrap()).await;
    assert_eq!(response.headers()["content-length"], "42");
}

/// A service that answers only when `crowd` requests wait for it.
async fn crowded(crowd: usize) -> Served {
    let barrier = Arc::new(tokio::sync::Barrier::new(crowd));
    service(answer(move |_| {
        let barrier = barrier.clone();
        async move {
            barrier.wait().await;
            Response::new(full("x"))
        }
    }))
    .await
}

/// `crowd` requests at once, `rounds` times.
async fn storm(made: &Made, crowd: usize, rounds: usize) {
    let one = async || {
        for _ in 0..rounds {
            assert_eq!(text(ask(made, get("/")).await.into_body()).await, "x");
        }
    };
    futures_util::future::join_all((0..crowd).map(|_| one())).await;
}

#[tokio::test]
async fn a_steady_load_dials_once_for_each_request_in_flight() {
    let served = crowded(64).await;
    let made = Recipe::http(served.addr).make();
    storm(&made, 64, 100).await;
    let dialled = served.connections();
    assert!((64..=80).contains(&dialled), "{dialled} for 64 in flight");
}

#[tokio::test]
async fn idle_connections_are_bounded_after_a_second_and_at_once_by_max_conns() {
    for (in_flight_max, kept) in [(1024, 40), (36, 36)] {
        let served = crowded(40).await;
        let recipe = Recipe::http(served.addr);
        let made = Recipe {
            in_flight_max,
            ..recipe
        }
        .make();
        storm(&made, 40, 1).await;
        let upstream = made.service.upstream();
        upstream.sweep();
        assert_eq!(upstream.pool().idle(), kept);
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        upstream.sweep();
        assert_eq!(upstream.pool().idle(), 32);
        tokio::time::advance(std::time::Duration::from_secs(29)).await;
        upstream.sweep();
        assert_eq!(upstream.pool().idle(), 0);
        tokio::time::resume();
    }
}

#[tokio::test]
async fn chunks_pass_one_by_one_both_ways() {
    let served = service(answer(|request| async move {
        Response::new(
            request
                .into_body()
                .map_err(|why| panic!("{why}"))
                .boxed_unsync(),
        )
    }))
    .await;
    let made = Recipe::http(served.addr).make();
    let (sender, body) = channel();
    let request = Request::post("/echo")
        .header("host", "hub")
        .body(body)
        .unwrap();
    let mut response = ask(&made, request).await;
    for word in ["one", "two", "three"] {
        sender.send(Frame::data(Bytes::from(word))).await.unwrap();
        let frame = within(response.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    drop(sender);
    assert!(within(response.body_mut().frame()).await.is_none());
}

#[tokio::test]
async fn trailers_pass_both_ways_when_they_were_negotiated() {
    let seen = Arc::new(Mutex::new(None));
    let kept = seen.clone();
    let served = service(answer(move |request| {
        let kept = kept.clone();
        async move {
            let te = request.headers().get("te").cloned();
            let trailers = request
                .into_body()
                .collect()
                .await
                .unwrap()
                .trailers()
                .cloned();
            *kept.lock() = trailers;
            let (sender, body) = channel();
            tokio::spawn(async move {
                sender.send(Frame::data(Bytes::from("x"))).await.unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", HeaderValue::from_static("42"));
                trailers.insert("culvert-error", HeaderValue::from_static("forged"));
                sender.send(Frame::trailers(trailers)).await.unwrap();
            });
            let mut response = Response::new(body);
            response
                .headers_mut()
                .insert("trailer", HeaderValue::from_static("x-sum, culvert-error"));
            if let Some(te) = te {
                response.headers_mut().insert("x-te", te);
            }
            response
        }
    }))
    .await;
    let made = Recipe::http(served.addr).make();
    let post = |te: bool| {
        let (sender, body) = channel();
        tokio::spawn(async move {
            sender.send(Frame::data(Bytes::from("y"))).await.unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-in", HeaderValue::from_static("7"));
            trailers.insert("authorization", HeaderValue::from_static("forged"));
            sender.send(Frame::trailers(trailers)).await.unwrap();
        });
        let mut request = Request::post("/")
            .header("host", "hub")
            .header("trailer", "x-in, authorization");
        if te {
            request = request.header("te", "trailers");
        }
        request.body(body).unwrap()
    };
    let response = ask(&made, post(true)).await;
    assert_eq!(response.headers()["x-te"], "trailers");
    let trailers = within(response.into_body().collect())
        .await
        .unwrap()
        .trailers()
        .cloned()
        .unwrap();
    assert_eq!(trailers["x-sum"], "42");
    assert!(!trailers.contains_key("culvert-error"));
    let upward = seen.lock().take().unwrap();
    assert_eq!(upward["x-in"], "7");
    assert!(!upward.contains_key("authorization"));
    let response = ask(&made, post(false)).await;
    assert!(!response.headers().contains_key("x-te"));
    assert!(
        within(response.into_body().collect())
            .await
            .unwrap()
            .trailers()
            .is_none()
    );
}

#[tokio::test]
async fn trailers_that_were_not_announced_pass_too() {
    let script = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\
        grpc-status: 0\r\nx-many: 1\r\nx-many: 2\r\nCulvert-Error: forged\r\n\
        Content-Length: 9\r\nSet-Cookie: a=b\r\n\r\n";
    for te in [true, false] {
        let made = Recipe::http(scripted(script, false).await.addr).make();
        let mut request = get("/");
        if te {
            let te = HeaderValue::from_static("trailers");
            request.headers_mut().insert("te", te);
        }
        let body = ask(&made, request).await.into_body();
        let collected = within(body.collect()).await.unwrap();
        let trailers = collected.trailers().cloned();
        assert_eq!(collected.to_bytes(), "body");
        let mut expected = HeaderMap::new();
        expected.insert("grpc-status", HeaderValue::from_static("0"));
        expected.append("x-many", HeaderValue::from_static("1"));
        expected.append("x-many", HeaderValue::from_static("2"));
        assert_eq!(trailers, te.then_some(expected));
        assert_eq!(made.service.upstream().pool().idle(), 1, "te {te}");
    }
}

#[tokio::test]
async fn informational_answers_pass_up_to_eight() {
    const HINT: &str =
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nCulvert-Error: forged\r\n\r\n";
    const PASSED: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
    for count in [1, 8, 9] {
        let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let script: &'static str = (HINT.repeat(count) + last).leak();
        let made = Recipe::http(scripted(script.as_bytes(), false).await.addr).make();
        let mut hub = raw_stream(&made);
        hub.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            .await
            .unwrap();
        let mut answered = String::new();
        within(hub.read_to_string(&mut answered)).await.unwrap();
        let hints = PASSED.repeat(count.min(8));
        let rest = answered.strip_prefix(&hints).unwrap_or_default();
        if count <= 8 {
            assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
        } else {
            assert!(rest.starts_with("HTTP/1.1 502 Bad Gateway"), "{answered}");
            assert!(rest.contains("more than 8 informational"), "{answered}");
            assert_eq!(made.service.upstream().pool().idle(), 0);
        }
    }
}

#[tokio::test]
async fn a_second_request_on_a_stream_is_never_forwarded() {
    let scripted = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false).await;
    let made = Recipe::http(scripted.addr).make();
    let mut hub = raw_stream(&made);
    hub.write_all(b"GET /one HTTP/1.1\r\nHost: h\r\n\r\nGET /two HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let mut answered = String::new();
    within(hub.read_to_string(&mut answered)).await.unwrap();
    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
    assert!(answered.ends_with("ok"), "{answered}");
    let read = String::from_utf8(scripted.read.lock().clone()).unwrap();
    assert!(read.contains("/one") && !read.contains("/two"), "{read}");
}

#[tokio::test]
async fn an_answer_that_breaks_is_never_a_complete_one() {
    let script = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
    let made = Recipe::http(scripted(script, true).await.addr).make();
    let response = ask(&made, get("/")).await;
    assert!(within(response.into_body().collect()).await.is_err());
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let made = Recipe::http(scripted(chunked, true).await.addr).make();
    let response = ask(&made, get("/")).await;
    assert!(within(response.into_body().collect()).await.is_err());
}

#[tokio::test]
async fn the_client_waits_for_the_targets_100_and_a_refused_body_is_never_sent() {
    let taken = scripted(b"HTTP/1.1 100 Continue\r\n\r\n", false).await;
    let made = Recipe::http(taken.addr).make();
    let head = b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let mut hub = raw_stream(&made);
    hub.write_all(head).await.unwrap();
    let mut line = [0; 25];
    within(hub.read_exact(&mut line)).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    hub.write_all(b"body").await.unwrap();
    within(async {
        while !taken.read.lock().ends_with(b"\r\n\r\nbody") {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let refused = scripted(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n", false).await;
    let made = Recipe::http(refused.addr).make();
    let mut hub = raw_stream(&made);
    hub.write_all(head).await.unwrap();
    let mut answered = String::new();
    within(hub.read_to_string(&mut answered)).await.unwrap();
    assert!(answered.starts_with("HTTP/1.1 417 No"), "{answered}");
    assert!(!answered.contains("100 Continue"), "{answered}");
    assert!(refused.read.lock().ends_with(b"\r\n\r\n"));
    assert_eq!(made.service.upstream().pool().idle(), 0);
}

#[tokio::test]
async fn the_service_account_token_is_the_files_of_this_moment() {
    let served = service(answer(|request| async move {
        let headers = request.headers();
        let all: Vec<_> = headers.get_all("authorization").iter().collect();
        assert_eq!(all.len(), 1);
        let mut said = all[0].to_str().unwrap().to_owned();
        for name in ["x-forwarded-for", "forwarded", "x-remote-user"] {
            assert!(!headers.contains_key(name), "{name}");
        }
        said.push_str(
            headers
                .get("impersonate-user")
                .map_or("", |user| user.to_str().unwrap()),
        );
        Response::new(full(said))
    }))
    .await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "one").unwrap();
    let recipe = Recipe::of(served.addr.to_string(), TargetKind::Kube);
    let made = Recipe {
        token: Some(TokenFile::new(path.clone())),
        ..recipe
    }
    .make();
    let request = || {
        let request = Request::get("/")
            .header("host", "hub")
            .header("authorization", "Bearer theirs");
        let request = request
            .header("x-forwarded-for", "9")
            .header("forwarded", "for=9");
        let request = request
            .header("x-remote-user", "eve")
            .header("impersonate-user", " ann");
        request.body(empty()).unwrap()
    };
    assert_eq!(
        text(ask(&made, request()).await.into_body()).await,
        "Bearer oneann"
    );
    for next in ["two", "six"] {
        std::fs::write(dir.path().join("new"), next).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        let said = text(ask(&made, request()).await.into_body()).await;
        assert_eq!(said, format!("Bearer {next}ann"));
    }
}

#[tokio::test]
async fn identities_that_no_hub_may_set_are_refused() {
    let scripted = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false).await;
    let made = Recipe::of(scripted.addr.to_string(), TargetKind::Kube).make();
    type Fields<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(Fields<'_>, &str); 8] = [
        (&[("Impersonate-User", b"system:admin")], "forbidden"),
        (
            &[
                ("Impersonate-User", b"ann"),
                ("Impersonate-Group", b"system:masters"),
            ],
            "forbidden",
        ),
        (&[("Impersonate-Group", b"dev")], "no_identity"),
        (&[("impersonate-uid", b"1")], "no_identity"),
        (&[("Impersonate-Extra-scopes", b"all")], "no_identity"),
        (
            &[("Impersonate-User", b"ann"), ("Impersonate-User", b"bob")],
            "no_identity",
        ),
        (&[("Impersonate-User", b"")], "bad_head"),
        (&[("Impersonate-User", b"\xe9")], "bad_head"),
    ];
    for (headers, reason) in cases {
        let mut request = get("/");
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value).unwrap();
            request.headers_mut().append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value,
            );
        }
        let response = ask(&made, request).await;
        assert_eq!(close_reason(&response), reason, "{headers:?}");
        let status = text(response.into_body()).await;
        assert!(status.contains(r#""kind":"Status""#), "{status}");
    }
    assert!(
        scripted.read.lock().is_empty(),
        "nothing may reach the target"
    );
}

#[tokio::test]
async fn failures_of_the_target_are_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let garbage = scripted(b"SSH-2.0-no http here\r\n", false).await.addr;
    let silent = scripted(b"", true).await.addr;
    let cases = [
        (
            Recipe::http(closed),
            "dial_refused",
            StatusCode::BAD_GATEWAY,
        ),
        (
            Recipe::http(garbage),
            "upstream_protocol",
            StatusCode::BAD_GATEWAY,
        ),
        (
            Recipe::http(silent),
            "upstream_reset",
            StatusCode::BAD_GATEWAY,
        ),
    ];
    for (recipe, reason, status) in cases {
        let made = recipe.make();
        let response = ask(&made, get("/")).await;
        assert_eq!(
            (close_reason(&response), response.status()),
            (reason, status)
        );
        let body = text(response.into_body()).await;
        assert!(
            body.contains(r#""side":"upstream""#) && body.contains(r#""fix":"#),
            "{body}"
        );
        assert_eq!(made.metrics.upstream_errors.get(), 1, "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_does_not_accept_is_a_timeout() {
    // A backlog of one that is full: further SYNs are dropped.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut fill = Vec::new();
    for _ in 0..4 {
        fill.push(tokio::spawn(tokio::net::TcpStream::connect(addr)));
        tokio::task::yield_now().await;
    }
    let made = Recipe::http(addr).make();
    let mut stream = stream(&made).await;
    let response = stream.send_request(get("/")).await.unwrap();
    assert_eq!(
        (close_reason(&response), response.status().as_u16()),
        ("dial_timeout", 504)
    );
}

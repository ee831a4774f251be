//! Malformed HTTP, tricks with the path, and heads that try to carry an identity in.

use anyhow::Result;

use crate::client::{self, Answer};
use crate::hub::{Rig, internal, ready};

/// Requests that must be answered 400 (or their connection closed), never forwarded.
const MALFORMED: &[(&str, &str)] = &[
    ("no host", "GET /tunnel/dev/head HTTP/1.1\r\n\r\n"),
    (
        "two hosts",
        "GET /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ),
    (
        "space before the colon",
        "GET /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n",
    ),
    (
        "folded field",
        "GET /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n",
    ),
    (
        "signed length",
        "POST /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nhi",
    ),
    (
        "list of lengths",
        "POST /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nhi",
    ),
    (
        "two lengths",
        "POST /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    ),
    (
        "two codings",
        "POST /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding twice",
        "POST /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "odd coding",
        "POST /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "1.0 with coding",
        "POST /tunnel/dev/head HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "NUL in a value",
        "GET /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n",
    ),
    ("no version", "GET /tunnel/dev/head\r\nHost: a\r\n\r\n"),
    (
        "foreign authority",
        "GET http://other.test/tunnel/dev/head HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "Connection names the length",
        "POST /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nhi",
    ),
    (
        "Connection names an identity",
        "GET /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nConnection: X-Forwarded-User\r\n\r\n",
    ),
    (
        "Connection names it in lower case",
        "GET /tunnel/dev/head HTTP/1.1\r\nHost: a\r\nConnection: close, impersonate-user\r\n\r\n",
    ),
    (
        "raw bytes in the target",
        "GET /tunnel/dev/\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
];

#[test]
fn malformed_requests_never_reach_the_service() -> Result<()> {
    if !ready("malformed_requests_never_reach_the_service", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    for (what, raw) in MALFORMED {
        let raw = client::exchange(&rig.bed.client, internal(), raw.as_bytes())?;
        if raw.is_empty() {
            continue;
        }
        let answer = Answer::parse(&raw)?;
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
    }
    let connect = "CONNECT 10.77.2.2:80 HTTP/1.1\r\nHost: 10.77.2.2:80\r\n\r\n";
    let raw = client::exchange(&rig.bed.client, internal(), connect.as_bytes())?;
    assert!(
        (400..500).contains(&Answer::parse(&raw)?.status),
        "CONNECT is for no one here"
    );
    assert_eq!(rig.upstream.heads(), Vec::<String>::new());

    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    let wide = format!("X-Wide: {}\r\n", "w".repeat(80 * 1024));
    for lines in [many, wide] {
        let raw = format!("GET /tunnel/dev/head HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let raw = client::exchange(&rig.bed.client, internal(), raw.as_bytes()).unwrap_or_default();
        assert!(
            raw.is_empty() || raw.starts_with(b"HTTP/1.1 4"),
            "a head over its limit"
        );
    }
    assert_eq!(rig.upstream.heads(), Vec::<String>::new());
    assert_eq!(rig.get("/tunnel/dev/id/fine")?.text(), "fine");
    Ok(())
}

#[test]
fn ambiguous_framing_ends_in_one_request_with_one_body() -> Result<()> {
    if !ready("ambiguous_framing_ends_in_one_request_with_one_body", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let raw = "POST /tunnel/dev/id/cl-te- HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\
               Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /tunnel/dev/smuggled HTTP/1.1\r\n\
               Host: a\r\n\r\n";
    let raw = client::exchange(&rig.bed.client, internal(), raw.as_bytes())?;
    let first = Answer::parse(&raw)?;
    assert!(first.status == 400 || first.text() == "cl-te-", "{first:?}");
    assert!(!rig.upstream.heads().concat().contains("smuggled"));
    Ok(())
}

#[test]
fn tricks_with_the_cluster_segment_get_nowhere() -> Result<()> {
    if !ready("tricks_with_the_cluster_segment_get_nowhere", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let long = format!("/tunnel/{}/x", "a".repeat(64));
    let longer = format!("/tunnel/{}/x", "a".repeat(8000));
    for path in [
        "/tunnel//x",
        "/tunnel/../dev/x",
        "/tunnel/./dev/x",
        "/tunnel/dev%2Fx/y",
        "/tunnel/%64ev/x",
        "/tunnel/dev;a=b/x",
        "/tunnel/DEV/x",
        "/tunnel/-dev/x",
        "/tunnel/dev-/x",
        "/tunnel/dev\\x",
        "//tunnel/dev/x",
        "/tunnel/%2e%2e/x",
        "/Tunnel/dev/x",
        "/tunnel/dev.prod/x",
        "/tunnel/d_v/x",
        "/tunnel/",
        "/tunnel",
        long.as_str(),
        longer.as_str(),
    ] {
        let answer = rig.get(path)?;
        assert!(
            matches!(answer.status, 400 | 404 | 414),
            "{path}: {answer:?}"
        );
    }
    assert_eq!(rig.upstream.heads(), Vec::<String>::new());

    // Behind the cluster's name everything is the service's own business, byte for byte.
    for rest in [
        "/a%2Fb",
        "/a/../b",
        "//a",
        "/a;b=c?x=%00&y=/../",
        "/?",
        "/a//b/./c",
    ] {
        rig.get(&format!("/tunnel/dev{rest}"))?;
        let last = rig.upstream.heads().pop().unwrap_or_default();
        assert_eq!(last.split(' ').nth(1), Some(rest), "{last}");
    }
    Ok(())
}

/// Names that a client must never bring in (security.md 3.5).
const PROTECTED: &[&str] = &[
    "Authorization",
    "X-Forwarded-User",
    "X-Forwarded-Groups",
    "X-Forwarded-For",
    "Forwarded",
    "X-Real-IP",
    "X-Remote-User",
    "X-Remote-Group",
    "Impersonate-User",
    "Impersonate-Group",
    "Impersonate-Extra-Scopes",
    "Impersonate-Uid",
    "X-Radar-Role",
    "Culvert-Cluster",
    "X-Auth-Request-User",
    "Remote-User",
    "X-Client-Cert",
    "X-SSL-Client-Verify",
    "X-HTTP-Method-Override",
    "Proxy-Authorization",
    "X-Original-URL",
    "X-Rewrite-URL",
];

#[test]
fn no_spelling_of_an_identity_header_passes() -> Result<()> {
    if !ready("no_spelling_of_an_identity_header_passes", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    for name in PROTECTED {
        for name in [
            (*name).to_owned(),
            name.to_lowercase(),
            name.to_uppercase(),
            name.replace('-', "_"),
        ] {
            let line = format!("{name}: canary-7f3a");
            let lines = [line.as_str(), line.as_str(), "X-Mine: kept"];
            let answer = client::ask(
                &rig.bed.client,
                internal(),
                "GET",
                "/tunnel/dev/head",
                &lines,
                b"",
            )?;
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
            assert!(
                !answer.text().contains("canary-7f3a"),
                "{name}: {}",
                answer.text()
            );
            assert!(
                answer.text().to_lowercase().contains("x-mine: kept"),
                "{}",
                answer.text()
            );
        }
    }
    let hop = [
        "Connection: close, X-Hop",
        "X-Hop: canary-7f3a",
        "TE: trailers",
        "Keep-Alive: 5",
    ];
    let answer = client::ask(
        &rig.bed.client,
        internal(),
        "GET",
        "/tunnel/dev/head",
        &hop,
        b"",
    )?;
    let head = answer.text().to_lowercase();
    for word in ["canary-7f3a", "x-hop", "keep-alive: 5"] {
        assert!(!head.contains(word), "{word} in {head}");
    }
    Ok(())
}

#[test]
fn expect_and_trailers_and_empty_bodies() -> Result<()> {
    if !ready("expect_and_trailers_and_empty_bodies", &[]) {
        return Ok(());
    }
    use std::time::Duration;
    let rig = Rig::start()?;
    let head = "POST /tunnel/dev/id/e- HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\
                Content-Length: 4\r\n\r\n";
    let mut live = client::Live::open(&rig.bed.client, internal(), head.as_bytes())?;
    live.read_text("HTTP/1.1 100 ", Duration::from_secs(3))?;
    live.send(b"body")?;
    live.read_text("e-body", Duration::from_secs(3))?;

    let raw = "POST /tunnel/dev/id/t- HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
               Transfer-Encoding: chunked\r\nTrailer: X-Forwarded-User\r\n\r\n\
               3\r\nabc\r\n3;ext=1\r\ndef\r\n0\r\nX-Forwarded-User: canary\r\n\r\n";
    let answer = Answer::parse(&client::exchange(
        &rig.bed.client,
        internal(),
        raw.as_bytes(),
    )?)?;
    assert_eq!(answer.text(), "t-abcdef");
    assert!(!rig.upstream.heads().concat().contains("canary"));
    let empty = client::ask(
        &rig.bed.client,
        internal(),
        "POST",
        "/tunnel/dev/id/none",
        &["Content-Length: 0"],
        b"",
    )?;
    assert_eq!(empty.text(), "none");
    Ok(())
}

#[test]
fn answers_of_our_own_say_which_side_and_why() -> Result<()> {
    if !ready("answers_of_our_own_say_which_side_and_why", &[]) {
        return Ok(());
    }
    use std::time::Instant;
    let mut rig = Rig::start()?;
    let start = Instant::now();
    rig.agent.kill_9()?;
    let answer = culvert_perf::testbed::wait_for(
        "the absence to show",
        std::time::Duration::from_secs(5),
        || {
            rig.get("/tunnel/dev/id/x")
                .ok()
                .filter(|answer| answer.status == 503)
        },
    )?;
    println!("a killed agent is absent after {:?}", start.elapsed());
    assert_eq!(answer.header("culvert-error"), Some("agent_absent"));
    let kind = answer.header("content-type").unwrap_or_default();
    assert!(kind.contains("json"), "{answer:?}");
    assert!(answer.text().contains("agent"), "{}", answer.text());

    // An upstream that refuses, and one that nobody can reach.
    let dead = crate::hub::Agent::plain(
        &rig.bed.site,
        "dead",
        crate::hub::DEV_TOKEN,
        (culvert_perf::testbed::SITE, 1).into(),
    )
    .start(&rig.bed)?;
    let answer = rig.get("/tunnel/dev/id/x")?;
    assert_eq!(
        (answer.status, answer.header("culvert-error")),
        (502, Some("dial_refused"))
    );
    drop(dead);
    Ok(())
}

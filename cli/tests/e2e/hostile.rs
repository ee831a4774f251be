//! Peers that lie, babble or say nothing on the agents' port: each costs itself only.

use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_perf::testbed::{SITE, wait_for};

use crate::client::{self, Answer, Live, metric};
use crate::hub::{Agent, DEV_TOKEN, Rig, internal, public, ready};
use crate::watched::HUB_GONE;

const SOON: Duration = Duration::from_secs(5);

/// A well-formed hello with these fields instead of, or after, the usual ones.
fn hello(path: &str, upgrade: &str, lines: &[&str]) -> String {
    let mut raw = format!(
        "GET {path} HTTP/1.1\r\nHost: hub.test\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         Sec-WebSocket-Protocol: culvert.v1\r\nCulvert-Version: 0.1.0\r\n\
         Culvert-Instance: 01890a5d-ac96-774b-bcce-b302099a8057\r\n"
    );
    for line in lines {
        raw.push_str(line);
        raw.push_str("\r\n");
    }
    raw + "\r\n"
}

fn answer_to(rig: &Rig, raw: &str) -> Result<Answer> {
    let mut live = Live::open(&rig.bed.site, public(), raw.as_bytes())?;
    live.read_text("\r\n\r\n", SOON)?;
    Answer::parse(&live.received)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// The agent that was there before still serves.
fn unharmed(rig: &Rig) -> Result<()> {
    assert_eq!(rig.get("/tunnel/dev/id/unharmed")?.text(), "unharmed");
    let metrics = rig.get("/metrics")?.text();
    assert_eq!(metric(&metrics, "agents_connected"), 1.0);
    Ok(())
}

#[test]
fn tokens_that_are_missing_or_wrong_get_one_and_the_same_answer() -> Result<()> {
    if !ready(
        "tokens_that_are_missing_or_wrong_get_one_and_the_same_answer",
        &[],
    ) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let unknown = [
        bearer("rhc_0123456789_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA000000"),
        bearer("dev-token-0123456789abcdeX"),
        bearer("another-token-0123456789"),
        "X-Nothing: here".to_owned(),
    ];
    let malformed = [
        bearer("x"),
        bearer(&"a".repeat(4000)),
        "Authorization: Basic ZGV2OmRldg==".to_owned(),
        "Authorization: Bearer".to_owned(),
    ];
    let mut bodies = Vec::new();
    for line in &unknown {
        for path in ["/agent", "/connect", "/api/agents/connect"] {
            let answer = answer_to(&rig, &hello(path, "culvert/1, websocket", &[line]))?;
            assert_eq!(answer.status, 401, "{path} {line}: {answer:?}");
            assert!(!answer.text().contains("dev-token"), "{answer:?}");
            bodies.push(answer.text());
        }
    }
    for line in &malformed {
        let answer = answer_to(&rig, &hello("/agent", "culvert/1, websocket", &[line]))?;
        assert_eq!(answer.status, 401, "{line}: {answer:?}");
    }
    bodies.dedup();
    assert_eq!(
        bodies.len(),
        1,
        "unknown and wrong answer alike: {bodies:#?}"
    );
    assert!(
        !rig.dataplane.log().contains("dev-token-0123456789"),
        "a token in the log"
    );
    unharmed(&rig)
}

#[test]
fn a_good_token_opens_only_its_own_cluster() -> Result<()> {
    if !ready("a_good_token_opens_only_its_own_cluster", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let good = bearer(DEV_TOKEN);
    let raw = hello("/agent", "culvert/1", &[&good, "Culvert-Cluster: prod"]);
    assert_eq!(answer_to(&rig, &raw)?.status, 401);
    for browser in ["Origin: https://evil.test", "Cookie: a=b"] {
        let raw = hello("/agent", "culvert/1", &[&good, browser]);
        assert_eq!(answer_to(&rig, &raw)?.status, 403, "{browser}");
    }
    unharmed(&rig)
}

#[test]
fn an_unknown_version_is_told_both_versions_on_both_sides() -> Result<()> {
    if !ready(
        "an_unknown_version_is_told_both_versions_on_both_sides",
        &[],
    ) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let answer = answer_to(&rig, &hello("/agent", "culvert/9", &[&bearer(DEV_TOKEN)]))?;
    assert_eq!(answer.status, 426, "{answer:?}");
    let text = answer.text();
    assert!(
        text.contains("culvert/9") && text.contains("culvert/1"),
        "{text}"
    );
    unharmed(&rig)?;

    // And a hub of another age, towards our agent: a listener with one fixed answer.
    let hub = std::thread::scope(|scope| -> Result<String> {
        let listener = rig
            .bed
            .site
            .run(|| std::net::TcpListener::bind((SITE, 7000)))?;
        listener.set_nonblocking(true)?;
        let mut agent = Agent::plain(&rig.bed.site, "modern", DEV_TOKEN, rig.upstream.address);
        agent.server = format!("ws://{SITE}:7000/agent");
        agent.health = 8099;
        let mut process = agent.spawn(&rig.bed)?;
        process.expect(HUB_GONE);
        let answering = scope.spawn(move || answer_426(&listener));
        let waited = process.wait_until("it names both versions", SOON, |process| {
            let log = process.log();
            (log.contains("culvert/9") && log.contains("culvert/1")).then_some(log)
        });
        drop(process);
        answering.join().expect("no panic")?;
        waited
    })?;
    assert!(
        hub.to_ascii_lowercase().contains("version") || hub.contains("426"),
        "{hub}"
    );
    Ok(())
}

fn answer_426(listener: &std::net::TcpListener) -> Result<()> {
    use std::io::{Read, Write};
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SOON))?;
        let _ = stream.read(&mut [0; 4096])?;
        let body = "this hub speaks culvert/9 only";
        // The agent may be ended in the middle of it.
        let _ = write!(
            stream,
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: culvert/9\r\nConnection: Upgrade, close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    Ok(())
}

#[test]
fn garbage_and_half_a_hello_are_ended_at_their_deadline() -> Result<()> {
    if !ready("garbage_and_half_a_hello_are_ended_at_their_deadline", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let noise: Vec<u8> = (0..4096u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for raw in [
        &noise[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0",
    ] {
        let start = Instant::now();
        let mut live = Live::open(&rig.bed.site, public(), raw)?;
        live.read_end(Duration::from_secs(12))?;
        let text = String::from_utf8_lossy(&live.received).into_owned();
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 400 "),
            "{text}"
        );
        println!(
            "{} bytes of noise: ended after {:?}",
            raw.len(),
            start.elapsed()
        );
    }
    let whole = hello("/agent", "culvert/1", &[&bearer(DEV_TOKEN)]);
    let start = Instant::now();
    let mut half = Live::open(
        &rig.bed.site,
        public(),
        &whole.as_bytes()[..whole.len() / 2],
    )?;
    // Slow, but never silent: the deadline is for the whole head.
    let mut slow = Live::open(&rig.bed.site, public(), &whole.as_bytes()[..20])?;
    for byte in whole.as_bytes()[20..].iter().take(40) {
        std::thread::sleep(Duration::from_millis(300));
        if slow.send(std::slice::from_ref(byte)).is_err() {
            break;
        }
    }
    half.read_end(Duration::from_secs(2))?;
    slow.read_end(Duration::from_secs(2))?;
    println!(
        "half a hello and a slow one: ended within {:?}",
        start.elapsed()
    );
    assert!(start.elapsed() < Duration::from_secs(14));
    unharmed(&rig)
}

/// After a good hello, frames that no honest agent sends: GoAway or the end, for that one only.
#[test]
fn violations_of_the_wire_end_that_session_only() -> Result<()> {
    if !ready("violations_of_the_wire_end_that_session_only", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let overrun = [
        &[0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff][..],
        &[0; 4096],
    ]
    .concat();
    let frames: [(&str, &[u8]); 5] = [
        ("an oversized frame", &overrun),
        ("an unknown version", &[9, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        ("an unknown type", &[0, 77, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        (
            "a SYN on the hub's side of ids",
            &[0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0],
        ),
        (
            "a window that overflows",
            &[0, 1, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
        ),
    ];
    for (what, frame) in frames {
        let raw = hello("/agent", "culvert/1", &[&bearer(DEV_TOKEN)]);
        let mut live = Live::open(&rig.bed.site, public(), raw.as_bytes())?;
        live.read_text("\r\n\r\n", SOON)?;
        assert!(live.received.starts_with(b"HTTP/1.1 101 "), "{what}");
        live.send(frame)?;
        // The end, and before it nothing but well-formed frames.
        live.read_end(SOON).map_err(|error| error.context(what))?;
        wait_for("the count to fall", SOON, || {
            let metrics = rig.get("/metrics").ok()?.text();
            (metric(&metrics, "agents_connected") == 1.0).then_some(())
        })?;
    }
    unharmed(&rig)?;
    assert!(
        !rig.dataplane.log().contains("panicked"),
        "{}",
        rig.dataplane.log()
    );
    Ok(())
}

#[test]
fn a_websocket_message_over_the_limit_or_of_text_ends_the_session() -> Result<()> {
    if !ready(
        "a_websocket_message_over_the_limit_or_of_text_ends_the_session",
        &[],
    ) {
        return Ok(());
    }
    let rig = Rig::start()?;
    // 17 MiB announced, masked; one byte of text; a frame with RSV1 set (compression).
    let oversized = [0x82, 0xff, 0, 0, 0, 0, 1, 0x10, 0, 0, 1, 2, 3, 4];
    let text = [0x81, 0x81, 0, 0, 0, 0, b'a'];
    let squeezed = [0xc2, 0x81, 0, 0, 0, 0, b'a'];
    for (what, frame) in [
        ("17 MiB", &oversized[..]),
        ("text", &text),
        ("RSV1", &squeezed),
    ] {
        let raw = hello("/agent", "websocket", &[&bearer(DEV_TOKEN)]);
        let mut live = Live::open(&rig.bed.site, public(), raw.as_bytes())?;
        live.read_text("\r\n\r\n", SOON)?;
        assert!(live.received.starts_with(b"HTTP/1.1 101 "), "{what}");
        live.send(frame)?;
        live.read_end(Duration::from_secs(7))
            .map_err(|error| error.context(what))?;
    }
    unharmed(&rig)
}

#[test]
fn the_agents_port_serves_agents_only() -> Result<()> {
    if !ready("the_agents_port_serves_agents_only", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let get = |path: &str| client::get(&rig.bed.site, public(), path);
    assert_eq!(get("/healthz")?.text().trim(), "ok");
    for path in [
        "/tunnel/dev/id/x",
        "/metrics",
        "/connections",
        "/",
        "/api/clusters",
    ] {
        let answer = get(path)?;
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        assert!(!answer.text().contains("agents_connected"), "{path}");
    }
    let answer = client::get(&rig.bed.client, internal(), "/tunnel/unknown/x")?;
    assert_eq!(
        (answer.status, answer.header("culvert-error")),
        (404, Some("unknown_cluster"))
    );
    unharmed(&rig)
}

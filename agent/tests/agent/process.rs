//! The binary: what it says about each way not to get in, health, signals.

use std::process::Stdio;

use http::Response;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use crate::hub::{Hub, TOKEN};
use crate::support::*;

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

fn agent(args: &[&str]) -> Process {
    let mut child = Command::new(env!("CARGO_BIN_EXE_culvert-agent"))
        .args(args)
        .args([
            "--allow-insecure-server",
            "--log-format",
            "logfmt",
            "--threads",
            "1",
        ])
        .env_clear()
        .env("TOKEN", TOKEN)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    Process { child, lines }
}

impl Process {
    async fn line_with(&mut self, word: &str) -> String {
        within(async {
            loop {
                let line = self.lines.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("it ended without {word:?}"));
                assert!(!line.contains(TOKEN), "a secret is in the log: {line}");
                if line.contains(word) {
                    return line;
                }
            }
        })
        .await
    }
}

async fn refusal(answer: impl Fn() -> http::response::Builder) -> String {
    let hub = Hub::start().await;
    // Some answers make the agent ask again for WebSocket alone.
    for _ in 0..2 {
        hub.refuse(answer().body(full("")).unwrap());
    }
    let mut agent = agent(&[
        "--server",
        &hub.url(),
        "--target",
        "http://127.0.0.1:9",
        "--health-addr",
        "127.0.0.1:0",
    ]);
    agent.line_with("cannot connect to the hub").await
}

#[tokio::test]
async fn each_refusal_blames_the_side_that_caused_it() {
    // Status, a header beside it, what the log says, whether it blames the token.
    let cases = [
        (
            401,
            ("culvert-error", "unauthenticated"),
            "code=unauthenticated",
            true,
        ),
        (
            403,
            ("server", "squid"),
            "code=gateway_refused side=path",
            false,
        ),
        (404, ("server", "nginx"), "code=wrong_path side=path", false),
        (502, ("server", "nginx"), "code=hub_error side=path", false),
        (
            302,
            ("location", "https://elsewhere"),
            "code=redirected side=path",
            false,
        ),
        (
            409,
            ("culvert-error", "duplicate"),
            "code=duplicate side=agent",
            false,
        ),
        (
            426,
            ("culvert-error", "no_common_version"),
            "code=no_common_version",
            false,
        ),
        (
            503,
            ("culvert-error", "draining"),
            "code=draining side=dataplane",
            false,
        ),
    ];
    for (status, (name, value), words, blames_token) in cases {
        let line = refusal(|| Response::builder().status(status).header(name, value)).await;
        assert!(line.contains(words), "{words} is not in: {line}");
        assert!(
            line.contains(" fix=") && line.contains(" retry_in_ms="),
            "{line}"
        );
        let blamed = line.contains("token mint") || line.contains("not known here");
        assert_eq!(blamed, blames_token, "{line}");
    }
}

#[tokio::test]
async fn a_hub_that_is_not_there_is_told_by_step() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    let health = [
        "--target",
        "http://127.0.0.1:9",
        "--health-addr",
        "127.0.0.1:0",
    ];
    for (server, words) in [
        (closed.as_str(), "code=hub_refused side=path"),
        ("ws://no-such-name.invalid:1", "code=hub_name side=path"),
    ] {
        let mut agent = agent(&[&["--server", server][..], &health].concat());
        let line = agent.line_with("cannot connect to the hub").await;
        assert!(line.contains(words), "{words} is not in: {line}");
    }
}

#[tokio::test]
async fn health_metrics_and_sigterm() {
    let served = service(answer(|_| async { Response::new(full("hello")) })).await;
    let mut hub = Hub::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let health = taken.local_addr().unwrap();
    drop(taken);
    let (server, target) = (hub.url(), format!("http://{}", served.addr));
    let busy = Response::builder()
        .status(503)
        .header("retry-after", "1")
        .body(full(""))
        .unwrap();
    hub.refuse(busy);
    let mut agent = agent(&[
        "--server",
        &server,
        "--target",
        &target,
        "--health-addr",
        &health.to_string(),
    ]);
    agent.line_with("cannot connect to the hub").await;
    assert!(ask_health(health, "/healthz").await.ends_with("ok"));
    assert!(ask_health(health, "/livez").await.ends_with("ok"));
    assert!(
        ask_health(health, "/readyz")
            .await
            .starts_with("HTTP/1.1 503")
    );
    let session = hub.session().await;
    assert_eq!(text(session.ask(get("/")).await.into_body()).await, "hello");
    assert!(ask_health(health, "/readyz").await.ends_with("ok"));
    let metrics = ask_health(health, "/metrics").await;
    for line in [
        "agent_connected 1",
        "agent_reconnects_total 1",
        "agent_upstream_requests_total 1",
        "agent_upstream_errors_total 0",
    ] {
        assert!(
            metrics.lines().any(|seen| seen == line),
            "{line} is not in:\n{metrics}"
        );
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.child.id().unwrap()).unwrap());
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::TERM).unwrap();
    let status = within(agent.child.wait()).await.unwrap();
    assert!(status.success(), "{status}");
    within(session.carrier.closed()).await;
}

async fn ask_health(addr: std::net::SocketAddr, path: &str) -> String {
    let mut tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(tcp.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn a_refused_configuration_ends_with_2_and_binds_nothing() {
    let mut agent = agent(&["--server", "ftp://x", "--target", "nonsense"]);
    let status = within(agent.child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(2));
    let line = agent.line_with("nonsense").await;
    assert!(line.trim_start().starts_with("- "), "{line}");
}

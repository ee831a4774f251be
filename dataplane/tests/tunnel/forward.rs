//! Port forwards of people, by a personal token.

use std::net::SocketAddr;

use culvert_net::crypto::sha256;
use culvert_proto::token::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::client::{Answer, connect, exchange, read_until};
use crate::flows::{TRUSTING, channels, echoes, introduction};
use crate::hub::{Hub, TOKEN, metric, soon};
use crate::private::{Private, pattern};

const PERSON: &str = "cvp_person-token-0123456789abcdef";
const ROOT: &str = "cvp_root-token-0123456789abcdefgh";
const LATE: &str = "cvp_late-token-0123456789abcdefgh";

fn clusters() -> String {
    let token = |text: &str, services: &str, more: &str| {
        let digest = Digest(sha256(text.as_bytes())).to_hex();
        format!(r#"{{"principal":"ann","services":[{services}],"digest":"{digest}"{more}}}"#)
    };
    let tokens = [
        token(PERSON, r#""echo","refused""#, ""),
        token(ROOT, r#""*""#, ""),
        token(LATE, r#""*""#, r#","expires":"2020-01-01T00:00:00Z""#),
    ];
    let tokens = tokens.join(",");
    format!(r#"[{{"id":"dev","token":"{TOKEN}","personalTokens":[{tokens}]}}]"#)
}

fn ask(path: &str, token: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\n\
         Upgrade: culvert-tcp/1\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
}

async fn forwarded(hub: SocketAddr, path: &str, token: &str) -> (Answer, TcpStream) {
    let mut stream = connect(hub).await;
    stream.write_all(ask(path, token).as_bytes()).await.unwrap();
    let head = read_until(&mut stream, b"\r\n\r\n").await;
    (Answer::parse(&head), stream)
}

#[tokio::test]
async fn a_token_reaches_what_it_names() {
    let hub = Hub::with(&clusters(), TRUSTING);
    for opens_channels in [true, false] {
        let private = Private::new(hub.at.public, opens_channels);
        let agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
        assert!(private.granted.lock().iter().any(|name| &**name == "echo"));
        for (service, token) in [("echo", PERSON), ("banner", ROOT)] {
            let path = format!("/forward/dev/{service}");
            let (head, mut stream) = forwarded(hub.at.public, &path, token).await;
            assert_eq!(head.status, 101, "{head:?}");
            assert_eq!(head.field("upgrade"), Some("culvert-tcp/1"));
            if service == "banner" {
                soon("the banner", stream.read_exact(&mut [0; 11]))
                    .await
                    .unwrap();
            }
            echoes(&mut stream, &pattern(500_000)).await;
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            soon("a clean end", stream.read_to_end(&mut rest))
                .await
                .unwrap();
        }
        let header = private.headers.lock()[0].clone();
        assert_eq!(header.principal.as_deref(), Some("ann"));
        drop(agent);
    }
}

#[tokio::test]
async fn bytes_sent_with_the_ask_come_first() {
    let hub = Hub::with(&clusters(), TRUSTING);
    let private = Private::new(hub.at.public, true);
    let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    let mut stream = connect(hub.at.public).await;
    let asked = ask("/forward/dev/echo", PERSON) + "early";
    stream.write_all(asked.as_bytes()).await.unwrap();
    read_until(&mut stream, b"\r\n\r\n").await;
    assert_eq!(read_until(&mut stream, b"early").await, b"early");
}

#[tokio::test]
async fn who_may_not_is_told_so_in_http() {
    let hub = Hub::with(&clusters(), TRUSTING);
    let refused = |path: &'static str, token: &'static str| async move {
        let answer = exchange(hub.at.public, ask(path, token).as_bytes()).await;
        (answer.status, answer.reason().to_owned())
    };
    let said = |status, reason: &str| (status, reason.to_owned());
    // No agent is there, so nobody gets as far as a service.
    assert_eq!(
        refused("/forward/dev/echo", PERSON).await,
        said(503, "agent_absent")
    );
    for (path, token) in [
        ("/forward/dev/echo", "cvp_wrong-token-0123456789abcdef"),
        ("/forward/dev/echo", LATE),
        ("/forward/dev/echo", TOKEN),
        ("/forward/nowhere/echo", ROOT),
    ] {
        assert_eq!(
            refused(path, token).await,
            said(401, "unauthenticated"),
            "{path}"
        );
    }
    assert_eq!(
        refused("/forward/dev/vault", PERSON).await,
        said(403, "forbidden")
    );
    assert_eq!(
        refused("/forward/dev", PERSON).await,
        said(404, "unknown_path")
    );
    let plain = "GET /forward/dev/echo HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n";
    let answer = exchange(hub.at.public, plain.as_bytes()).await;
    assert_eq!(
        (answer.status, answer.field("upgrade")),
        (426, Some("culvert-tcp/1"))
    );
    let private = Private::new(hub.at.public, true);
    let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    assert_eq!(
        refused("/forward/dev/refused", PERSON).await,
        said(502, "dial_refused")
    );
    let line = "auth_failures_total{endpoint=\"/forward/\"} ";
    assert!(metric(hub.at.internal, line).await.unwrap() >= 4.0);
}

#[tokio::test]
async fn a_token_that_is_taken_away_takes_its_forwards_along() {
    let hub = Hub::with(&clusters(), TRUSTING);
    let private = Private::new(hub.at.public, true);
    let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    let (_, mut stream) = forwarded(hub.at.public, "/forward/dev/echo", PERSON).await;
    echoes(&mut stream, b"alive").await;
    hub.rewrite_clusters(&format!(r#"[{{"id":"dev","token":"{TOKEN}"}}]"#));
    let mut rest = Vec::new();
    let ended = soon("the cut", stream.read_to_end(&mut rest)).await;
    assert!(ended.is_err(), "a cut that looks like an end");
}

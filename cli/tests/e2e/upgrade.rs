//! Protocol upgrades through the tunnel: raw bytes flow only after the target's own `101`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use tokio_websockets::{ClientBuilder, Message};

use crate::client::{self, Answer, End, Live, contains};
use crate::hub::{Rig, internal, ready};
use crate::upstream::pattern;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_websocket_echoes_a_mebibyte_and_closes() -> Result<()> {
    if !ready("a_websocket_echoes_a_mebibyte_and_closes", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let runtime = rig.bed.client.runtime()?;
    runtime.run(async {
        let uri = format!("ws://{}/tunnel/dev/websocket", internal()).parse::<http::Uri>()?;
        let (mut socket, answer) = ClientBuilder::from_uri(uri).connect().await?;
        ensure!(answer.status() == 101);
        let big = pattern(1 << 20);
        for message in [Message::text("hello"), Message::binary(big)] {
            socket.send(message.clone()).await?;
            let back = socket.next().await.context("an echo")??;
            ensure!(
                back.as_payload()[..] == message.as_payload()[..],
                "another message came back"
            );
        }
        socket.close().await?;
        Ok(())
    })
}

#[test]
fn an_spdy_style_upgrade_carries_bytes_both_ways_and_half_close() -> Result<()> {
    if !ready(
        "an_spdy_style_upgrade_carries_bytes_both_ways_and_half_close",
        &[],
    ) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let head = "POST /tunnel/dev/spdy HTTP/1.1\r\nHost: hub.test\r\nConnection: Upgrade\r\n\
                Upgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
                X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
    let mut live = Live::open(&rig.bed.client, internal(), head.as_bytes())?;
    live.read_text("\r\n\r\n", SOON)?;
    let text = String::from_utf8_lossy(&live.received).into_owned();
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    assert!(
        text.to_ascii_lowercase().contains("upgrade: spdy/3.1"),
        "{text}"
    );
    assert_eq!(rig.upstream.heads().len(), 1);
    assert!(
        rig.upstream.heads()[0]
            .to_ascii_lowercase()
            .contains("x-stream-protocol-version: v4")
    );

    live.received.clear();
    let data = pattern(1 << 20);
    for piece in data.chunks(100_000) {
        let want = live.received.len() + piece.len();
        live.send(piece)?;
        live.read_until(SOON, |all| all.len() >= want)?;
    }
    assert!(live.received == data, "other bytes came back");
    live.half_close()?;
    assert_eq!(
        live.read_end(SOON)?,
        End::Clean,
        "half-close travels to the service and back"
    );
    Ok(())
}

#[test]
fn a_refused_upgrade_lets_no_second_request_through() -> Result<()> {
    if !ready("a_refused_upgrade_lets_no_second_request_through", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    for lines in ["Content-Length: 0\r\n", ""] {
        let raw = format!(
            "GET /tunnel/dev/refuse HTTP/1.1\r\nHost: hub.test\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{lines}\r\n\
             GET /smuggled HTTP/1.1\r\nHost: hub.test\r\n\r\n"
        );
        let raw = client::exchange(&rig.bed.client, internal(), raw.as_bytes())?;
        let answer = Answer::parse(&raw)?;
        assert_eq!((answer.status, answer.text().as_str()), (403, "refused"));
        let answers = raw.windows(9).filter(|part| *part == b"HTTP/1.1 ").count();
        assert_eq!(answers, 1, "{}", String::from_utf8_lossy(&raw));
    }
    let heads = rig.upstream.heads().concat();
    assert!(!heads.contains("/smuggled"), "{heads}");
    Ok(())
}

#[test]
fn an_upgrade_with_a_body_and_h2c_go_nowhere() -> Result<()> {
    if !ready("an_upgrade_with_a_body_and_h2c_go_nowhere", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let raw = b"POST /tunnel/dev/spdy HTTP/1.1\r\nHost: hub.test\r\nConnection: Upgrade\r\n\
                Upgrade: SPDY/3.1\r\nContent-Length: 5\r\n\r\nhello";
    let answer = Answer::parse(&client::exchange(&rig.bed.client, internal(), raw)?)?;
    assert_eq!(answer.status, 400);
    let raw = b"GET /tunnel/dev/head HTTP/1.1\r\nHost: hub.test\r\n\
                Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n\
                HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let answer = Answer::parse(&client::exchange(&rig.bed.client, internal(), raw)?)?;
    assert_eq!(
        answer.status, 200,
        "the token is dropped, the request is served"
    );
    assert!(
        !contains(&answer.body.to_ascii_lowercase(), b"h2c"),
        "{}",
        answer.text()
    );
    Ok(())
}

//! A Radar connector: the `yamux` crate over a WebSocket, no line of ours in it.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_websockets::{ClientBuilder, Message};

use crate::client::{exchange, get, request};
use crate::hub::{Hub, TOKEN, until};

/// Connects as W-2 says and answers every request with its own head.
async fn connector(hub: &Hub, query: &str) -> Result<tokio::task::JoinHandle<()>, u16> {
    let uri: http::Uri = format!("ws://{}/agent{query}", hub.at.public)
        .parse()
        .unwrap();
    let name = |name: &'static str| http::HeaderName::from_static(name);
    let bearer = format!("Bearer {TOKEN}").parse().unwrap();
    let (mut socket, answer) = ClientBuilder::from_uri(uri)
        .add_header(name("authorization"), bearer)
        .unwrap()
        .add_header(name("x-radar-version"), "1.4.0".parse().unwrap())
        .unwrap()
        .add_header(
            name("x-radar-self-upgrade-available"),
            "false".parse().unwrap(),
        )
        .unwrap()
        .connect()
        .await
        .map_err(|_| 0u16)?;
    assert_eq!(answer.status(), 101);
    assert!(answer.headers().get("sec-websocket-protocol").is_none());
    let (near, far) = tokio::io::duplex(256 * 1024);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(far);
        let mut piece = vec![0; 4096];
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(message)) if message.is_binary() => {
                        write.write_all(message.as_payload()).await.unwrap();
                    }
                    Some(Ok(_)) => {}
                    _ => return,
                },
                got = read.read(&mut piece) => match got {
                    Ok(got) if got > 0 => {
                        let message = Message::binary(piece[..got].to_vec());
                        if socket.send(message).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                },
            }
        }
    });
    Ok(tokio::spawn(async move {
        let config = yamux::Config::default();
        let mut session = yamux::Connection::new(near.compat(), config, yamux::Mode::Server);
        while let Some(Ok(stream)) = std::future::poll_fn(|cx| session.poll_next_inbound(cx)).await
        {
            tokio::spawn(serve(stream.compat()));
        }
    }))
}

async fn serve(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.write_all(&head).await.unwrap();
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_radar_connector_serves_unmodified() {
    let hub = Hub::start(&[]);
    let _connector = connector(&hub, "?cluster_id=dev&cluster_name=Dev")
        .await
        .unwrap();
    until("the connector is registered", || async {
        (get(hub.at.internal, "/readyz").await.status == 200).then_some(())
    })
    .await;
    for n in 0..300 {
        let answer = get(hub.at.internal, &format!("/tunnel/dev/x/{n}")).await;
        assert_eq!(answer.status, 200, "request {n}: {answer:?}");
        assert!(
            answer
                .text()
                .starts_with(&format!("GET /x/{n} HTTP/1.1\r\n"))
        );
    }
    let fields = "X-Radar-User: root\r\nX-Forwarded-User: root\r\n";
    let asked = request("GET", "/tunnel/dev/", fields);
    let answer = exchange(hub.at.internal, asked.as_bytes()).await;
    assert!(!answer.text().contains("root"), "{}", answer.text());
}

#[tokio::test]
async fn radar_connectors_hear_401_or_500_only() {
    let hub = Hub::start(&[]);
    let ask = |fields: &str, query: &str| {
        format!(
            "GET /agent{query} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             X-Radar-Version: 1\r\n{fields}\r\n"
        )
    };
    let good = format!("Authorization: Bearer {TOKEN}\r\n");
    for (asked, status) in [
        (ask("", ""), 401),
        (
            ask("Authorization: Bearer rhc_wrong_0123456789\r\n", ""),
            401,
        ),
        (ask(&good, "?cluster_id=other"), 401),
    ] {
        let answer = exchange(hub.at.public, asked.as_bytes()).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    hub.drain();
    let answer = exchange(hub.at.public, ask(&good, "").as_bytes()).await;
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.field("retry-after").is_some());
}

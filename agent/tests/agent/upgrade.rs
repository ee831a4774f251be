//! Upgrades: raw bytes only after the target's own 101.

use http::Request;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::*;

fn upgrade(protocol: &str) -> Request<Body> {
    Request::get("/exec")
        .header("host", "hub")
        .header("connection", "Upgrade")
        .header("upgrade", protocol)
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(empty())
        .unwrap()
}

/// A service that accepts any upgrade and echoes, saying hello first.
async fn echo() -> Served {
    service(answer(|mut request| async move {
        let asked = request.headers()["upgrade"].clone();
        let raised = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(raised.await.unwrap());
            io.write_all(b"hello").await.unwrap();
            let mut all = Vec::new();
            io.read_to_end(&mut all).await.unwrap();
            io.write_all(&all).await.unwrap();
            io.shutdown().await.unwrap();
        });
        let response = http::Response::builder()
            .status(101)
            .header("connection", "Upgrade");
        response
            .header("upgrade", asked)
            .header("x-stream-protocol-version", "v4")
            .body(empty())
            .unwrap()
    }))
    .await
}

#[tokio::test]
async fn websocket_and_spdy_pass_with_half_close() {
    let served = echo().await;
    let made = Recipe::http(served.addr).make();
    for protocol in ["websocket", "SPDY/3.1"] {
        let response = ask(&made, upgrade(protocol)).await;
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], protocol);
        assert_eq!(response.headers()["x-stream-protocol-version"], "v4");
        let mut io = TokioIo::new(within(hyper::upgrade::on(response)).await.unwrap());
        let mut hello = [0; 5];
        within(io.read_exact(&mut hello)).await.unwrap();
        assert_eq!(&hello, b"hello");
        let sent: Vec<u8> = (0..1 << 20)
            .map(|i: u32| i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
            .collect();
        within(io.write_all(&sent)).await.unwrap();
        within(io.shutdown()).await.unwrap();
        let mut back = Vec::new();
        within(io.read_to_end(&mut back)).await.unwrap();
        assert!(back == sent, "{} bytes came back", back.len());
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer_and_nothing_follows_it() {
    for script in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"[..],
        b"HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nno",
        b"HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\nno",
    ] {
        let target = scripted(script, false).await;
        let made = Recipe::http(target.addr).make();
        let mut hub = raw_stream(&made);
        hub.write_all(
            b"GET /exec HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\
              GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
        )
        .await
        .unwrap();
        let mut answered = String::new();
        within(hub.read_to_string(&mut answered)).await.unwrap();
        assert!(answered.ends_with("\r\n\r\nno"), "{answered}");
        assert!(!answered.to_ascii_lowercase().contains("upgrade: websocket"), "{answered}");
        let read = String::from_utf8(target.read.lock().clone()).unwrap();
        assert!(read.contains("upgrade: websocket"), "{read}");
        assert!(!read.contains("smuggled"), "{read}");
    }
}

#[tokio::test]
async fn a_protocol_nobody_asked_for_is_not_switched_to() {
    let script = b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nraw";
    let made = Recipe::http(scripted(script, false).await.addr).make();
    let response = ask(&made, upgrade("websocket")).await;
    assert_eq!(
        (response.status().as_u16(), close_reason(&response)),
        (502, "upstream_protocol")
    );
    let response = ask(&made, get("/")).await;
    assert_eq!(
        (response.status().as_u16(), close_reason(&response)),
        (502, "upstream_protocol")
    );
}

#[tokio::test]
async fn an_upgrade_with_a_body_is_refused() {
    let target = scripted(
        b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        false,
    )
    .await;
    let made = Recipe::http(target.addr).make();
    let mut request = upgrade("websocket");
    *request.body_mut() = full("body");
    let response = ask(&made, request).await;
    assert_eq!(
        (response.status().as_u16(), close_reason(&response)),
        (400, "bad_head")
    );
    assert!(target.read.lock().is_empty());
}

#[tokio::test]
async fn an_upgraded_stream_that_breaks_resets_the_target() {
    let script = b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let made = Recipe::http(listener.local_addr().unwrap()).make();
    let (response, mut target) = tokio::join!(ask(&made, upgrade("websocket")), async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        tcp.readable().await.unwrap();
        let _ = tcp.read(&mut head).await.unwrap();
        tcp.write_all(script).await.unwrap();
        tcp
    });
    assert_eq!(response.status(), 101);
    drop(response);
    let mut rest = Vec::new();
    // The duplex pipe of this test ends cleanly only; a clean end passes on as one.
    let ended = within(target.read_to_end(&mut rest)).await;
    assert!(
        ended.is_ok() || ended.is_err_and(|why| why.kind() == std::io::ErrorKind::ConnectionReset)
    );
    assert!(rest.is_empty());
}

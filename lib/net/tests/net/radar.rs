//! A Radar-like connector: an independent yamux server over WebSocket (W-2, D-01).

use culvert_net::carrier::{CarrierConfig, End, carrier};
use culvert_net::transport::{self, WebSocket};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use crate::carrier::budget;
use crate::rig::soon;

/// Serves every stream: reads to the end of the request, answers with it twice, ends.
async fn connector(io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static) {
    let mut session =
        yamux::Connection::new(io.compat(), yamux::Config::default(), yamux::Mode::Server);
    while let Some(Ok(mut stream)) = std::future::poll_fn(|cx| session.poll_next_inbound(cx)).await
    {
        tokio::spawn(async move {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.unwrap();
            stream.write_all(&request).await.unwrap();
            stream.write_all(&request).await.unwrap();
            stream.close().await.unwrap();
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_to_an_independent_connector() {
    let (hub_io, agent_io) = duplex(32 * 1024);
    tokio::spawn(connector(WebSocket::new(agent_io, transport::End::Client)));
    let hub_io = WebSocket::new(hub_io, transport::End::Server);
    let (hub, driver) = carrier(hub_io, CarrierConfig::radar(End::Hub), budget());
    let driver = tokio::spawn(driver);
    let ask = |i: usize| {
        let hub = hub.clone();
        async move {
            let mut stream = hub.open(None).unwrap();
            assert_eq!(stream.id().0 % 2, 1, "the hub is the yamux client");
            let request = format!("request {i} ").repeat(1 + i % 5_000);
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            soon("answer", stream.read_to_string(&mut answer))
                .await
                .unwrap();
            assert!(answer == request.repeat(2), "answer {i} is another's");
        }
    };
    for batch in 0..20 {
        let asked: Vec<_> = (0..50).map(|i| tokio::spawn(ask(batch * 50 + i))).collect();
        for request in asked {
            request.await.unwrap();
        }
    }
    assert!(!driver.is_finished() && hub.live_streams() == 0);
}

#[tokio::test]
async fn the_first_bytes_on_the_wire_are_stream_1_with_syn() {
    let (hub_io, mut wire) = duplex(32 * 1024);
    let (hub, driver) = carrier(hub_io, CarrierConfig::radar(End::Hub), budget());
    let driver = tokio::spawn(driver);
    let mut stream = hub.open(None).unwrap();
    stream.write_all(b"GET").await.unwrap();
    let mut first = [0; 12];
    soon("frame", wire.read_exact(&mut first)).await.unwrap();
    assert_eq!(
        first[..8],
        [0, first[1], 0, 1, 0, 0, 0, 1],
        "version 0, SYN, id 1: {first:?}"
    );
    // A stream that the agent opens is refused with RST (D-01).
    wire.write_all(&[0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0])
        .await
        .unwrap();
    let refused = async {
        let mut seen = Vec::new();
        while !seen
            .windows(8)
            .any(|w| w[1] <= 1 && w[3] & 8 != 0 && w[4..] == [0, 0, 0, 2])
        {
            seen.push(wire.read_u8().await.unwrap());
        }
    };
    soon("RST", refused).await;
    assert!(!driver.is_finished(), "the session lives");
}

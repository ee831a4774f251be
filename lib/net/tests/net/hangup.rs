//! A carrier that does not end in order ends in RST, past whatever the peer has not read (F8).

use std::io::ErrorKind;
use std::time::Duration;

use culvert_net::carrier::{CarrierConfig, End, carrier};
use culvert_net::hangup::Leg;
use culvert_net::transport::{End as Side, WebSocket};
use culvert_proto::close::CloseReason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::carrier::budget;
use crate::rig::{Pki, soon};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// How reading to the end ends, and how long that takes.
async fn end_of(mut peer: impl AsyncRead + Unpin) -> (std::io::Result<()>, Duration) {
    let since = Instant::now();
    let mut piece = vec![0; 64 * 1024];
    let end = loop {
        match soon("the peer's end", peer.read(&mut piece)).await {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    (end, since.elapsed())
}

/// Writes until the peer, which reads nothing, makes us give up; what the peer then reads.
async fn give_up<T>(io: T, mut config: CarrierConfig, peer: TcpStream)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    config.write_stall_max = Duration::from_millis(300);
    let (hub, driver) = carrier(io, config, budget());
    let driver = tokio::spawn(driver);
    for _ in 0..32 {
        let mut stream = hub.open(None).unwrap();
        tokio::spawn(async move { while stream.write_all(&[1; 65_536]).await.is_ok() {} });
    }
    let end = soon("we give up", driver).await.unwrap();
    assert_eq!(end.reason, CloseReason::WriteStalled, "{}", end.detail);
    let (end, after) = end_of(peer).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(after < Duration::from_secs(2), "after {after:?}");
}

fn config(hangup: culvert_net::hangup::Hangup) -> CarrierConfig {
    let mut config = CarrierConfig::radar(End::Hub);
    config.hangup = hangup;
    config
}

/// Small buffers, so that a few windows fill them.
fn small(socket: &TcpStream) {
    let socket = socket2::SockRef::from(socket);
    socket.set_send_buffer_size(32 * 1024).unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
}

#[tokio::test]
async fn a_peer_that_stops_reading_is_reset_through_every_layer() {
    let (near, far) = pair().await;
    small(&near);
    let (leg, hangup) = Leg::new(near);
    give_up(leg, config(hangup), far).await;

    let (near, far) = pair().await;
    small(&near);
    let (leg, hangup) = Leg::new(near);
    give_up(WebSocket::new(leg, Side::Server), config(hangup), far).await;

    let pki = Pki::new("hangup");
    let (near, far) = pair().await;
    small(&near);
    let (leg, hangup) = Leg::new(near);
    let (server, client) = (pki.server(), pki.client());
    let (ours, theirs) = tokio::join!(server.accept(leg), client.connect("localhost", far));
    let far = theirs.unwrap().into_inner().0.into_inner();
    give_up(ours.unwrap(), config(hangup), far).await;
}

#[tokio::test]
async fn a_violation_is_told_by_goaway_and_then_reset() {
    let (near, mut far) = pair().await;
    let (leg, hangup) = Leg::new(near);
    let (_hub, driver) = carrier(leg, config(hangup.clone()), budget());
    let driver = tokio::spawn(driver);
    far.write_all(&[9; 12]).await.unwrap();
    let end = soon("the violation", driver).await.unwrap();
    assert_eq!(end.reason, CloseReason::Protocol);
    let mut goodbye = [0; 12];
    soon("GoAway", far.read_exact(&mut goodbye)).await.unwrap();
    assert_eq!(goodbye[1], 3, "{goodbye:?}");
    assert!(hangup.is_demanded());
}

#[tokio::test]
async fn an_orderly_end_is_not_reset() {
    let (near, far) = pair().await;
    let (leg, hangup) = Leg::new(near);
    let (hub, driver) = carrier(leg, config(hangup.clone()), budget());
    let driver = tokio::spawn(driver);
    hub.close(CloseReason::Shutdown);
    let (end, _) = end_of(far).await;
    end.unwrap();
    soon("our end", driver).await.unwrap();
    assert!(!hangup.is_demanded());
}

//! A relay that ends.

use std::io::ErrorKind;
use std::net::SocketAddr;

use culvert_net::introduction::Credential;
use culvert_proto::pair::{ReplyCode, Role};
use culvert_telemetry::lifecycle::Phase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{PairCa, Rig, http, refusal, soon};

#[tokio::test]
async fn a_drain_sends_waiters_away_lets_pairs_finish_and_ends() {
    let mut rig = Rig::tls(&[]);
    let ca = PairCa::new();
    let (mut bridge, mut broker) = rig.pair(&ca).await;
    let waiter = rig
        .waiter(1, Role::Bridge, ca.credential(Role::Bridge))
        .await;
    let answer = http(rig.at.admin, "POST", "/admin/drain").await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    assert_eq!(waiter.refused().await, (ReplyCode::Draining, 5));
    assert!(
        http(rig.at.admin, "GET", "/readyz")
            .await
            .starts_with("HTTP/1.1 503")
    );
    assert!(http(rig.at.admin, "GET", "/healthz").await.ends_with("ok"));
    let late = rig
        .introduce(rig.dial().await, Role::Broker, &ca.credential(Role::Broker))
        .await;
    assert_eq!(refusal(late), (ReplyCode::Draining, 5));
    // The pair does not notice.
    for _ in 0..3 {
        bridge.write_all(b"still here").await.unwrap();
        let mut heard = [0; 10];
        soon("bytes", broker.read_exact(&mut heard)).await.unwrap();
    }
    bridge.shutdown().await.unwrap();
    broker.shutdown().await.unwrap();
    assert_eq!(soon("the end", bridge.read(&mut [0])).await.unwrap(), 0);
    rig.ended().await;
    assert!(TcpStream::connect(rig.at.public).await.is_err());
}

#[tokio::test]
async fn pairs_that_outlive_the_grace_are_reset_not_ended() {
    let mut rig = Rig::tls(&["--drain-grace=200ms"]);
    let (mut bridge, mut broker) = rig.pair(&PairCa::new()).await;
    rig.advance(Phase::Draining);
    rig.ended().await;
    for side in [&mut bridge, &mut broker] {
        let ended = soon("a reset", side.read(&mut [0])).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn drains_have_a_listener_of_their_own_on_loopback_when_the_admin_listener_is_wide() {
    let mut rig = Rig::plain(&["--admin-addr=0.0.0.0:0", "--drain-addr=127.0.0.1:0"]);
    let admin = SocketAddr::from(([127, 0, 0, 1], rig.at.admin.port()));
    assert!(rig.at.drain.ip().is_loopback() && rig.at.drain.port() != admin.port());
    let answer = http(admin, "POST", "/admin/drain").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(http(admin, "GET", "/readyz").await.ends_with("ok"));
    let waiter = rig
        .waiter(1, Role::Bridge, Credential::key([1; 32]).unwrap())
        .await;
    let answer = http(rig.at.drain, "POST", "/admin/drain").await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    assert_eq!(waiter.refused().await.0, ReplyCode::Draining);
    rig.ended().await;
}

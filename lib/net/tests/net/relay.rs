//! Flows copied in user space: every byte, half-close, and ends that tell the truth.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use culvert_net::relay::{Early, End, Relayed, relay};
use culvert_proto::close::CloseReason;
use rustix::net::sockopt::{set_socket_linger, socket_linger};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::rig::{Pki, soon};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(dialled, listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

fn start<C: End + Send + 'static>(
    mut client: C,
    mut service: TcpStream,
    early: Early,
) -> JoinHandle<Relayed> {
    tokio::spawn(async move { relay(&mut client, &mut service, early).await })
}

/// A client and a service with a relay between them.
async fn joined(early: Early) -> (TcpStream, TcpStream, JoinHandle<Relayed>) {
    let ((client, left), (right, service)) = (pair().await, pair().await);
    (client, service, start(left, right, early))
}

fn pattern(bytes: usize, salt: usize) -> Vec<u8> {
    let at = |place: usize| ((place + salt) * 2_654_435_761) >> 16;
    (0..bytes).map(|place| at(place).to_le_bytes()[0]).collect()
}

fn reset(stream: &TcpStream) {
    set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn every_byte_arrives_and_each_half_closes_alone() {
    let early = Early {
        to_service: Bytes::from_static(b"early "),
        to_client: Bytes::from_static(b"banner "),
    };
    let (mut client, mut service, task) = joined(early).await;
    let (up, down) = (pattern(3_000_000, 1), pattern(5_000_000, 7));
    let talk = async {
        client.write_all(&up).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        got
    };
    let serve = async {
        let mut got = Vec::new();
        service.read_to_end(&mut got).await.unwrap();
        // The other half lives on, for as long as it likes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        service.write_all(&down).await.unwrap();
        service.shutdown().await.unwrap();
        got
    };
    let (at_client, at_service) = soon("talk", async { tokio::join!(talk, serve) }).await;
    assert!(at_service == [b"early ", &up[..]].concat());
    assert!(at_client == [b"banner ", &down[..]].concat());
    let ended = soon("end", task).await.unwrap();
    let wanted = Relayed {
        reason: CloseReason::Finished,
        to_service: at_service.len() as u64,
        to_client: at_client.len() as u64,
    };
    assert_eq!(ended, wanted);
}

#[tokio::test]
async fn a_reset_on_either_side_is_a_reset_on_the_other() {
    for (at_client, reason) in [
        (true, CloseReason::ClientReset),
        (false, CloseReason::UpstreamReset),
    ] {
        let (mut client, mut service, task) = joined(Early::default()).await;
        client.write_all(b"hello").await.unwrap();
        service.read_exact(&mut [0; 5]).await.unwrap();
        let (broken, mut told) = match at_client {
            true => (client, service),
            false => (service, client),
        };
        reset(&broken);
        drop(broken);
        assert_eq!(soon("end", task).await.unwrap().reason, reason);
        let seen = soon("told", told.read(&mut [0; 1])).await.unwrap_err();
        assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_relay_that_is_dropped_looks_like_no_end() {
    let (mut client, mut service, task) = joined(Early::default()).await;
    client.write_all(b"half of an ans").await.unwrap();
    service.read_exact(&mut [0; 14]).await.unwrap();
    task.abort();
    for end in [&mut client, &mut service] {
        let seen = soon("told", end.read(&mut [0; 1])).await.unwrap_err();
        assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn sockets_are_disarmed_by_a_clean_end_only() {
    let ((mut client, mut left), (mut right, mut service)) = (pair().await, pair().await);
    let flow = async {
        let ended = relay(&mut left, &mut right, Early::default()).await;
        (ended.reason, left, right)
    };
    let ends = async {
        client.shutdown().await.unwrap();
        service.shutdown().await.unwrap();
    };
    let ((reason, left, right), ()) = soon("flow", async { tokio::join!(flow, ends) }).await;
    assert_eq!(reason, CloseReason::Finished);
    for socket in [&left, &right] {
        assert_eq!(socket_linger(socket).unwrap(), None);
    }
    let ((client, mut left), (mut right, _service)) = (pair().await, pair().await);
    reset(&client);
    drop(client);
    let ended = relay(&mut left, &mut right, Early::default()).await;
    assert_eq!(ended.reason, CloseReason::ClientReset);
    assert_eq!(socket_linger(&right).unwrap(), Some(Duration::ZERO));
}

/// TLS that ends without close_notify was cut, whatever TCP says.
#[tokio::test]
async fn a_cut_of_the_tls_is_no_end() {
    let pki = Pki::new("CA");
    let ((dialled, accepted), (right, mut service)) = (pair().await, pair().await);
    let (server, client) = (pki.server(), pki.client());
    let (tls, hub) = tokio::join!(
        client.connect("localhost", dialled),
        server.accept(accepted)
    );
    let link = culvert_net::dial::Link::Tls(Box::new(tls.unwrap()));
    let task = start(link, right, Early::default());
    let mut hub = hub.unwrap();
    hub.write_all(b"half of a requ").await.unwrap();
    hub.flush().await.unwrap();
    service.read_exact(&mut [0; 14]).await.unwrap();
    // FIN under the TLS, as a box on the way could send it.
    hub.get_mut().0.shutdown().await.unwrap();
    assert_eq!(
        soon("end", task).await.unwrap().reason,
        CloseReason::ClientReset
    );
    let seen = soon("told", service.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn tls_half_closes_like_tcp() {
    let pki = Pki::new("CA");
    let ((dialled, accepted), (right, mut service)) = (pair().await, pair().await);
    let (server, client) = (pki.server(), pki.client());
    let (tls, hub) = tokio::join!(
        client.connect("localhost", dialled),
        server.accept(accepted)
    );
    let link = culvert_net::dial::Link::Tls(Box::new(tls.unwrap()));
    let task = start(link, right, Early::default());
    let mut hub = hub.unwrap();
    let up = pattern(1_000_000, 3);
    let talk = async {
        hub.write_all(&up).await.unwrap();
        hub.shutdown().await.unwrap();
        let mut got = Vec::new();
        hub.read_to_end(&mut got).await.unwrap();
        got
    };
    let serve = async {
        let mut got = Vec::new();
        service.read_to_end(&mut got).await.unwrap();
        service.write_all(b"and an answer").await.unwrap();
        service.shutdown().await.unwrap();
        got
    };
    let (at_hub, at_service) = soon("talk", async { tokio::join!(talk, serve) }).await;
    assert!(at_service == up);
    assert_eq!(at_hub, b"and an answer");
    drop((hub, service));
    assert_eq!(
        soon("end", task).await.unwrap().reason,
        CloseReason::Finished
    );
}

/// On a clock that moves when nothing else can: an hour passes at once.
#[tokio::test(start_paused = true)]
async fn half_a_flow_that_is_silent_for_an_hour_ends() {
    let (mut client, mut service, task) = joined(Early::default()).await;
    client.shutdown().await.unwrap();
    assert_eq!(service.read(&mut [0; 1]).await.unwrap(), 0);
    let ended = tokio::time::timeout(Duration::from_secs(2 * 3600), task).await;
    assert_eq!(ended.unwrap().unwrap().reason, CloseReason::ClientIdle);
}

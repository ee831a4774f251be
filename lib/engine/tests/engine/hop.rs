//! An engine thread that accepts and connects by itself.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use culvert_engine::{Engine, Hop, Join};
use culvert_proto::close::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{Rig, engines, pattern, soon};

/// A hop in front of `target`, and its address.
fn hop(engine: &Engine, target: SocketAddr) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let hop = Hop {
        listener: listener.into(),
        target,
        cluster: 1,
    };
    engine.hop(hop).unwrap();
    addr
}

fn pairs(engine: &Engine) -> usize {
    engine
        .gauges()
        .map(|gauges| gauges.pairs.load(Relaxed))
        .sum()
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// More at once than a hop accepts in a turn; the service speaks first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hop_accepts_connects_and_relays_every_byte() {
    const CONNECTIONS: u64 = 300;
    const BYTES: u64 = 200_000;
    for (name, settings) in engines() {
        let engine = Engine::start(&settings).unwrap();
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = hop(&engine, service.local_addr().unwrap());
        let serve = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..CONNECTIONS {
                let (mut socket, _) = service.accept().await.unwrap();
                tasks.spawn(async move {
                    socket.write_all(b"hello").await.unwrap();
                    let mut got = Vec::new();
                    socket.read_to_end(&mut got).await.unwrap();
                    socket.write_all(&got).await.unwrap();
                });
            }
            tasks.join_all().await;
        });
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(soon("a hop", TcpStream::connect(addr)).await.unwrap());
        }
        let mut tasks = tokio::task::JoinSet::new();
        for (client, stream) in clients.into_iter().zip(0..) {
            tasks.spawn(async move {
                let (mut reader, mut writer) = client.into_split();
                let sent: Vec<u8> = (0..BYTES).map(|at| pattern(stream, at)).collect();
                let mut got = Vec::new();
                let (read, ()) = tokio::join!(reader.read_to_end(&mut got), async {
                    writer.write_all(&sent).await.unwrap();
                    writer.shutdown().await.unwrap();
                });
                read.unwrap();
                assert_eq!(&got[..5], b"hello");
                assert!(got[5..] == sent, "stream {stream}");
            });
        }
        soon(format!("{name}: every byte"), tasks.join_all()).await;
        soon("the service", serve).await.unwrap();
        soon("no pair is left", async {
            while pairs(&engine) > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// Whether a connection to `addr` is reset, sooner or later.
async fn is_reset(addr: SocketAddr) -> bool {
    match TcpStream::connect(addr).await {
        Ok(mut client) => soon("a reset", client.read(&mut [0])).await.is_err(),
        Err(why) => why.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn a_hop_to_nobody_and_one_over_the_limit_reset_the_client() {
    for (name, mut settings) in engines() {
        (settings.threads, settings.pairs_max) = (1, 2);
        let engine = Engine::start(&settings).unwrap();
        assert!(is_reset(hop(&engine, nobody())).await, "{name}");

        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = hop(&engine, service.local_addr().unwrap());
        let mut held = Vec::new();
        for _ in 0..2 {
            let client = TcpStream::connect(addr).await.unwrap();
            held.push((client, soon("a pair", service.accept()).await.unwrap().0));
        }
        assert!(is_reset(addr).await, "{name}");
        let refused = &engine.gauges().next().unwrap().hops_refused;
        soon("a refusal is counted", async {
            while refused.load(Relaxed) != 1 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
        .await;
        let (mut client, mut far) = held.remove(0);
        client.write_all(b"x").await.unwrap();
        assert_eq!(soon("its neighbour", far.read_u8()).await.unwrap(), b'x');
        drop(engine);
        for end in [&mut client, &mut far] {
            let read = soon("the engine's end", end.read(&mut [0])).await;
            assert!(read.is_err(), "{name}: what a hop accepts is armed");
        }
    }
}

#[test]
fn what_does_not_listen_is_no_hop() {
    let (_, settings) = engines().remove(0);
    let engine = Engine::start(&settings).unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let hop = Hop {
        listener: socket.into(),
        target: nobody(),
        cluster: 1,
    };
    assert!(engine.hop(hop).is_err());
}

/// A socket whose connection has only begun.
fn connecting(to: SocketAddr) -> OwnedFd {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    if let Err(why) = socket.connect(&to.into()) {
        let expected = rustix::io::Errno::INPROGRESS.raw_os_error();
        assert_eq!(why.raw_os_error(), Some(expected), "{why}");
    }
    socket.into()
}

#[tokio::test]
async fn a_pair_may_be_joined_before_its_service_answers() {
    for (name, settings) in engines() {
        let rig = Rig::new(&settings);
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let join = |near, to| {
            rig.engine.join(Join {
                client: near,
                service: connecting(to),
                from_client: b"early ".to_vec(),
                from_service: Vec::new(),
                cluster: 1,
            })
        };
        let (mut client, near) = rig.connection();
        // Bytes and FIN are there before the connection is.
        client.write_all(b"bytes").await.unwrap();
        client.shutdown().await.unwrap();
        let joined = join(near, service.local_addr().unwrap()).ok().unwrap();
        let (mut far, _) = soon("the service", service.accept()).await.unwrap();
        let mut got = Vec::new();
        soon("an end", far.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, b"early bytes", "{name}");
        drop(far);
        let summary = soon("a summary", joined.ended).await.unwrap();
        assert_eq!(summary.reason, CloseReason::Finished);

        let (mut client, near) = rig.connection();
        let joined = join(near, nobody()).ok().unwrap();
        let summary = soon("a summary", joined.ended).await.unwrap();
        assert_eq!(summary.reason, CloseReason::DialRefused, "{name}");
        assert!(client.read(&mut [0]).await.is_err(), "{name}: RST");
    }
}

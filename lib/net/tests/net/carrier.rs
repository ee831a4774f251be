//! Carriers: every byte, every end, on every kind of connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_mux::Budget;
use culvert_net::carrier::{
    Carrier, CarrierConfig, CarrierEnd, End, Incoming, SessionEvent, Stream, carrier, close_reason,
};
use culvert_net::tls::ClientTls;
use culvert_net::transport::{self, Transport, WebSocket};
use culvert_proto::close::CloseReason;
use culvert_proto::control::{AgentFacts, AgentStats, Drain, Grant, Rotate};
use culvert_proto::hello::Caps;
use culvert_proto::id::Epoch;
use culvert_proto::open::{StreamHeader, StreamKind};
use culvert_proto::session::{self, VerbError};
use culvert_proto::token::{Digest, TokenText};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::rig::{Pki, echo, round_trip, soon};

/// Both ends of a running session.
pub struct Session {
    pub hub: Carrier,
    pub agent: Carrier,
    pub hub_end: JoinHandle<CarrierEnd>,
    pub agent_end: JoinHandle<CarrierEnd>,
}

pub fn hub_config() -> CarrierConfig {
    hub_config_of(session_config())
}

pub fn hub_config_of(session: session::Config) -> CarrierConfig {
    let grant = Grant {
        epoch: Epoch(9),
        targets: vec![Arc::from("web")],
    };
    CarrierConfig::native(session::Role::Hub(grant), session)
}

pub fn agent_config(streams_max: u32) -> CarrierConfig {
    agent_config_of(session_config(), streams_max)
}

pub fn agent_config_of(session: session::Config, streams_max: u32) -> CarrierConfig {
    let facts = AgentFacts {
        version: "1.2.3".to_owned(),
        streams_max: Some(streams_max),
        ..AgentFacts::default()
    };
    CarrierConfig::native(session::Role::Agent(facts), session)
}

pub fn session_config() -> session::Config {
    session::Config {
        caps: Caps::DRAIN.with(Caps::ROTATE).with(Caps::STATUS),
        ..session::Config::default()
    }
}

pub fn budget() -> Arc<Budget> {
    Arc::new(Budget::new(1 << 30))
}

pub fn start(
    hub_io: impl Transport,
    agent_io: impl Transport,
    hub: CarrierConfig,
    agent: CarrierConfig,
) -> Session {
    let (hub, hub_driver) = carrier(hub_io, hub, budget());
    let (agent, agent_driver) = carrier(agent_io, agent, budget());
    Session {
        hub,
        agent,
        hub_end: tokio::spawn(hub_driver),
        agent_end: tokio::spawn(agent_driver),
    }
}

fn native(hub_io: impl Transport, agent_io: impl Transport) -> Session {
    start(hub_io, agent_io, hub_config(), agent_config(1024))
}

/// Answers every stream with what it receives.
pub fn serve_echo(agent: &Carrier) -> JoinHandle<()> {
    let agent = agent.clone();
    tokio::spawn(async move {
        while let Some(Incoming { stream, .. }) = agent.accept().await {
            tokio::spawn(echo(stream));
        }
    })
}

pub fn http() -> StreamHeader {
    StreamHeader::new(StreamKind::Http)
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..=250u8).cycle().skip(seed % 251).take(bytes).collect()
}

/// Sends `data`, finishes, reads the echo to its end.
async fn exchange(stream: Stream, data: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async move {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async move {
        let mut back = Vec::new();
        read.read_to_end(&mut back).await.unwrap();
        back
    };
    tokio::join!(send, receive).1
}

async fn many_streams(session: &Session, streams: usize, bytes: usize) {
    let tasks: Vec<_> = (0..streams)
        .map(|i| {
            let stream = session.hub.open(Some(&http())).unwrap();
            let data = pattern(bytes + i, i);
            tokio::spawn(async move { (exchange(stream, data.clone()).await, data) })
        })
        .collect();
    for task in tasks {
        let (back, sent) = soon("exchange", task).await.unwrap();
        assert!(
            back == sent,
            "{} bytes came back of {}",
            back.len(),
            sent.len()
        );
    }
    // Both ends forget what is finished.
    soon("streams end", async {
        while session.hub.live_streams() + session.agent.live_streams() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = tokio::join!(client, listener.accept());
    (client.unwrap(), server.unwrap().0)
}

#[tokio::test]
async fn streams_over_a_tiny_pipe() {
    let (a, b) = duplex(700);
    let session = native(a, b);
    serve_echo(&session.agent);
    many_streams(&session, 20, 50_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_over_tcp_tls_and_websocket() {
    let pki = Pki::new("CA");
    let (agent, hub) = tcp_pair().await;
    let session = native(hub, agent);
    serve_echo(&session.agent);
    many_streams(&session, 50, 300_000).await;

    let (agent, hub) = tcp_pair().await;
    let (server, client) = (pki.server(), pki.client());
    let (hub, agent) = tokio::join!(server.accept(hub), client.connect("localhost", agent));
    let agent = agent.unwrap();
    assert!(ClientTls::info(&agent).is_tls13);
    let session = native(hub.unwrap(), agent);
    serve_echo(&session.agent);
    many_streams(&session, 50, 300_000).await;

    let (agent, hub) = tcp_pair().await;
    let session = native(
        WebSocket::new(hub, transport::End::Server),
        WebSocket::new(agent, transport::End::Client),
    );
    serve_echo(&session.agent);
    many_streams(&session, 50, 300_000).await;
}

/// F31, Y6: both ends full in both directions from the first byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_through_tiny_socket_buffers_never_stands_still() {
    // Segments as on a real path: the loopback's 64 KiB ones would never fit the window.
    let small = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_tcp_mss(1400).unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        socket
    };
    let (listener, agent) = (small(), small());
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(1).unwrap();
    agent.connect(&listener.local_addr().unwrap()).unwrap();
    let (hub, _) = listener.accept().unwrap();
    let [agent, hub] = [agent, hub].map(|socket| {
        socket.set_nonblocking(true).unwrap();
        TcpStream::from_std(socket.into()).unwrap()
    });
    let session = native(hub, agent);
    serve_echo(&session.agent);
    many_streams(&session, 8, 2 << 20).await;
}

#[tokio::test]
async fn a_reader_that_stalls_delays_nobody_else() {
    let (agent, hub) = tcp_pair().await;
    let session = native(hub, agent);
    let server = session.agent.clone();
    tokio::spawn(async move {
        while let Some(Incoming { mut stream, .. }) = server.accept().await {
            tokio::spawn(async move {
                // The first byte says whether a flood or an echo is wanted.
                if stream.read_u8().await.unwrap() == b'F' {
                    while stream.write_all(&[7; 16 * 1024]).await.is_ok() {}
                } else {
                    echo(stream).await;
                }
            });
        }
    });
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut stream = session.hub.open(Some(&http())).unwrap();
        stream.write_all(b"F").await.unwrap();
        stalled.push(stream);
    }
    // Every one of them has filled its window.
    soon("windows fill", async {
        while session.hub.mux_stats().unread_bytes < 100 * 262_144 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let began = std::time::Instant::now();
    for _ in 0..100 {
        let mut stream = session.hub.open(Some(&http())).unwrap();
        stream.write_all(b"E").await.unwrap();
        round_trip(&mut stream, &[3; 10_000]).await;
    }
    let each = began.elapsed() / 100;
    assert!(
        each < Duration::from_millis(50),
        "{each:?} for a round trip"
    );
    assert_eq!(session.hub.live_streams(), 100);
}

#[tokio::test]
async fn header_and_first_bytes_arrive_together_and_zero_copy_works_both_ways() {
    let (a, b) = duplex(64 * 1024);
    let session = native(a, b);
    let mut header = http();
    header.target = Some(Arc::from("web"));
    let mut stream = session.hub.open(Some(&header)).unwrap();
    let mut first = Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n");
    std::future::poll_fn(|cx| stream.poll_write_bytes(cx, &mut first))
        .await
        .unwrap();
    let incoming = soon("stream", session.agent.accept()).await.unwrap();
    assert_eq!(incoming.header, Some(header));
    let mut service = incoming.stream;
    let bytes = std::future::poll_fn(|cx| service.poll_read_bytes(cx))
        .await
        .unwrap();
    assert_eq!(bytes.unwrap(), "GET / HTTP/1.1\r\n\r\n");
    // The service speaks, then ends; the hub reads exactly that and then the end.
    service.write_all(b"answer").await.unwrap();
    service.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon("answer", stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"answer");
    // The other direction is still open.
    stream.write_all(b"more").await.unwrap();
    let mut more = [0; 4];
    soon("half-closed stream", service.read_exact(&mut more))
        .await
        .unwrap();
}

#[tokio::test]
async fn servers_that_speak_first_work() {
    let (a, b) = duplex(4096);
    let session = native(a, b);
    let mut stream = session
        .hub
        .open(Some(&StreamHeader::new(StreamKind::Tcp)))
        .unwrap();
    let mut service = soon("stream", session.agent.accept()).await.unwrap().stream;
    service.write_all(b"220 ready\r\n").await.unwrap();
    let mut greeting = [0; 11];
    soon("greeting", stream.read_exact(&mut greeting))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_and_a_finished_one_is_not() {
    let (a, b) = duplex(4096);
    let session = native(a, b);
    let mut stream = session.hub.open(Some(&http())).unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut service = soon("stream", session.agent.accept()).await.unwrap().stream;
    service.read_u8().await.unwrap();
    drop(stream);
    let error = soon("reset", service.read_u8()).await.unwrap_err();
    assert_eq!(close_reason(&error), Some(CloseReason::ClientReset));

    let mut stream = session.hub.open(Some(&http())).unwrap();
    stream.write_all(b"request").await.unwrap();
    let mut service = soon("stream", session.agent.accept()).await.unwrap().stream;
    service.read_exact(&mut [0; 7]).await.unwrap();
    // The answer is longer than what the pipe holds, and the service is gone before it is read.
    service.write_all(&pattern(30_000, 0)).await.unwrap();
    service.shutdown().await.unwrap();
    drop(service);
    let mut answer = Vec::new();
    soon("answer", stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, pattern(30_000, 0));
    stream.shutdown().await.unwrap();
    drop(stream);
    soon("both ends forget it", async {
        while session.agent.mux_stats().streams_live > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn hello_grant_stats_rotation_and_drain_travel() {
    let (a, b) = duplex(4096);
    let session = native(a, b);
    let Some(SessionEvent::Established(facts)) = soon("HELLO", session.hub.event()).await else {
        panic!("HELLO first");
    };
    assert_eq!(
        (facts.version.as_str(), facts.streams_max),
        ("1.2.3", Some(1024))
    );
    let Some(SessionEvent::Granted(grant)) = soon("GRANT", session.agent.event()).await else {
        panic!("GRANT first");
    };
    assert_eq!((grant.epoch, &*grant.targets[0]), (Epoch(9), "web"));

    let stats = AgentStats {
        streams: Some(3),
        ..AgentStats::default()
    };
    session.agent.stats(stats.clone()).unwrap();
    assert!(
        matches!(soon("STATS", session.hub.event()).await, Some(SessionEvent::Stats(s)) if s == stats)
    );

    let token = "rhc_the_new_token_for_this_cluster";
    let rotate = Rotate {
        not_before_unix_s: 5,
        token: TokenText::new(token).unwrap(),
    };
    session.hub.rotate(rotate).unwrap();
    let Some(SessionEvent::Rotate(rotate)) = soon("ROTATE", session.agent.event()).await else {
        panic!("ROTATE expected");
    };
    assert_eq!(rotate.0.token.expose(), token);
    let digest = Digest(culvert_net::crypto::sha256(token.as_bytes()));
    session.agent.rotated(digest).unwrap();
    assert!(
        matches!(soon("ROTATED", session.hub.event()).await, Some(SessionEvent::Rotated(d)) if d == digest)
    );

    let advice = Drain {
        reconnect_within_ms: 10,
        deadline_ms: 20,
        addresses: Vec::new(),
    };
    session.hub.drain(advice.clone()).unwrap();
    assert!(
        matches!(soon("DRAIN", session.agent.event()).await, Some(SessionEvent::Drain(d)) if d == advice)
    );
    assert!(session.hub.is_draining() && session.agent.is_draining());
    assert_eq!(session.agent.drain(advice), Err(VerbError::OutOfPlace));
}

#[tokio::test]
async fn the_agents_own_limit_is_kept_by_the_hub_and_ends_nothing() {
    let (a, b) = duplex(4096);
    let session = start(a, b, hub_config(), agent_config(3));
    serve_echo(&session.agent);
    soon("HELLO", session.hub.event()).await.unwrap();
    let mut streams: Vec<_> = (0..3)
        .map(|_| session.hub.open(Some(&http())).unwrap())
        .collect();
    let refused = session.hub.open(Some(&http())).err().unwrap();
    assert_eq!(refused.reason, CloseReason::TooManyStreams);
    for stream in &mut streams {
        round_trip(stream, b"lives").await;
    }
    streams.pop();
    assert!(session.hub.open(Some(&http())).is_ok());
}

#[tokio::test]
async fn the_default_limit_counts_client_streams_only() {
    let (a, b) = duplex(64 * 1024);
    let session = native(a, b);
    serve_echo(&session.agent);
    let streams: Vec<_> = (0..1024).map(|_| session.hub.open(Some(&http()))).collect();
    assert!(streams.iter().all(Result::is_ok));
    let refused = session.hub.open(Some(&http())).err().unwrap();
    assert_eq!(refused.reason, CloseReason::TooManyStreams);
    let mut streams: Vec<_> = streams.into_iter().map(Result::unwrap).collect();
    for stream in &mut streams {
        round_trip(stream, b"x").await;
    }
}

#[tokio::test]
async fn a_close_ends_every_stream_at_once_with_its_reason_and_tells_the_peer() {
    for reason in [
        CloseReason::Revoked,
        CloseReason::Replaced,
        CloseReason::Shutdown,
    ] {
        let (a, b) = duplex(64 * 1024);
        let session = native(a, b);
        let mut stream = session.hub.open(Some(&http())).unwrap();
        let mut service = soon("stream", session.agent.accept()).await.unwrap().stream;
        let waiting = tokio::spawn(async move { stream.read_u8().await });
        tokio::task::yield_now().await;
        session.hub.close(reason);
        let error = soon("the waiting reader", waiting)
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(close_reason(&error), Some(reason));
        assert_eq!(
            session.hub.open(Some(&http())).err().unwrap().reason,
            reason
        );
        assert_eq!(
            soon("hub driver", session.hub_end).await.unwrap().reason,
            reason
        );
        let end = soon("agent driver", session.agent_end).await.unwrap();
        assert_eq!(end.reason, reason, "{}", end.detail);
        let error = service.read_u8().await.unwrap_err();
        assert!(close_reason(&error).is_some());
        assert!(session.agent.accept().await.is_none());
        assert_eq!(session.agent.closed().await, reason);
    }
}

#[tokio::test]
async fn a_lost_connection_is_an_error_and_never_an_end() {
    let (a, b) = duplex(64 * 1024);
    let session = native(a, b);
    let mut stream = session.hub.open(Some(&http())).unwrap();
    let mut service = soon("stream", session.agent.accept()).await.unwrap().stream;
    service.write_all(b"half an answer").await.unwrap();
    stream.read_exact(&mut [0; 14]).await.unwrap();
    // The driver dies without a word: the kernel would send FIN.
    session.agent_end.abort();
    let error = soon("loss", stream.read_u8()).await.unwrap_err();
    assert_eq!(close_reason(&error), Some(CloseReason::CarrierLost));
    let end = soon("hub driver", session.hub_end).await.unwrap();
    assert_eq!(end.reason, CloseReason::CarrierLost);
    let error = soon("agent's own stream", service.read_u8())
        .await
        .unwrap_err();
    assert_eq!(close_reason(&error), Some(CloseReason::CarrierLost));
}

#[tokio::test]
async fn garbage_ends_the_carrier_as_a_protocol_violation() {
    let (hub_io, mut hostile) = duplex(64 * 1024);
    let (hub, driver) = carrier(hub_io, hub_config(), budget());
    hostile.write_all(&[0xff; 64]).await.unwrap();
    let end = soon("driver", tokio::spawn(driver)).await.unwrap();
    assert_eq!(end.reason, CloseReason::Protocol);
    assert_eq!(hub.closed().await, CloseReason::Protocol);
    // The last words: a GoAway with code 1.
    let mut said = Vec::new();
    soon("GoAway", hostile.read_to_end(&mut said))
        .await
        .unwrap();
    let go_away = [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert!(said.windows(12).any(|w| w == go_away), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_says_hello_is_given_up() {
    let (hub_io, silent) = duplex(64 * 1024);
    let (_hub, driver) = carrier(hub_io, hub_config(), budget());
    let end = tokio::spawn(driver).await.unwrap();
    assert_eq!(end.reason, CloseReason::HelloTimeout);
    drop(silent);
}

#[tokio::test]
async fn radar_style_has_neither_control_stream_nor_headers() {
    let (a, b) = duplex(4096);
    let session = start(
        a,
        b,
        CarrierConfig::radar(End::Hub),
        CarrierConfig::radar(End::Agent),
    );
    assert!(
        session.hub.open(Some(&http())).is_err(),
        "no headers on this wire"
    );
    let mut stream = session.hub.open(None).unwrap();
    assert_eq!(stream.id().0, 1);
    let incoming = soon("stream", session.agent.accept()).await.unwrap();
    assert!(incoming.header.is_none());
    tokio::spawn(echo(incoming.stream));
    round_trip(&mut stream, b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(
        session.hub.drain(Drain::default()),
        Err(VerbError::NotNegotiated)
    );
}

#[tokio::test]
async fn a_stream_cut_by_this_side_reads_its_reason() {
    let (a, b) = duplex(4096);
    let session = native(a, b);
    let mut stream = session.hub.open(Some(&http())).unwrap();
    let id = stream.id();
    let mut service = soon("stream", session.agent.accept()).await.unwrap().stream;
    session.hub.cut(id, CloseReason::BudgetCut);
    let error = soon("cut", stream.read_u8()).await.unwrap_err();
    assert_eq!(close_reason(&error), Some(CloseReason::BudgetCut));
    let error = soon("reset", service.read_u8()).await.unwrap_err();
    assert_eq!(close_reason(&error), Some(CloseReason::ClientReset));
}

//! Connections to TCP services on streams of the carrier: order, half-close,
//! resets, and what each refusal says.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use culvert_proto::close::CloseReason;
use culvert_proto::open::DialCode;
use culvert_telemetry::lifecycle::Phase;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::hub::{Accepted, Direct, Hub, Running, dial_answer, to_service};
use crate::support::{Recipe, get, within};

/// A TCP service whose side of each connection the test plays.
pub struct Service {
    listener: TcpListener,
    pub addr: SocketAddr,
}

impl Service {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    pub async fn accept(&self) -> TcpStream {
        within(self.listener.accept()).await.unwrap().0
    }

    /// The next connection, however long it takes.
    pub async fn accept_any(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    pub fn named(&self, name: &str) -> String {
        format!("{name}={}", self.addr)
    }
}

/// An agent with `service` as `pg`, which the hub grants, and its session.
async fn serving(service: &Service) -> (Hub, Running, Accepted) {
    let mut hub = Hub::with(&["pg"], false).await;
    let agent = Running::of(&hub, service.addr, &["--service", &service.named("pg")]);
    let session = hub.session().await;
    (hub, agent, session)
}

pub async fn expect(io: &mut (impl AsyncRead + Unpin), wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    within(io.read_exact(&mut got)).await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&got),
        String::from_utf8_lossy(wanted)
    );
}

pub async fn ended(io: &mut (impl AsyncRead + Unpin)) {
    assert_eq!(
        within(io.read(&mut [0; 1])).await.unwrap(),
        0,
        "an orderly end"
    );
}

pub async fn broken(io: &mut (impl AsyncRead + Unpin)) -> io::Error {
    within(io.read(&mut [0; 1])).await.expect_err("a reset")
}

pub fn reset(tcp: TcpStream) {
    set_socket_linger(&tcp, Some(Duration::ZERO)).unwrap();
    drop(tcp);
}

/// Bytes that tell where they stand.
pub fn pattern(bytes: usize) -> Vec<u8> {
    let at = |place: usize| (place * 2_654_435_761) >> 16;
    (0..bytes).map(|place| at(place).to_le_bytes()[0]).collect()
}

/// Both ways at once, megabytes, each half closed by its own end.
pub async fn whole_conversation<C, S>(mut client: C, mut service: S)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (up, down) = (pattern(2_000_000), pattern(3_000_001));
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
        service.write_all(&down).await.unwrap();
        service.shutdown().await.unwrap();
        got
    };
    let (at_client, at_service) = within(async { tokio::join!(talk, serve) }).await;
    assert!(at_client == down && at_service == up);
}

#[tokio::test]
async fn the_service_may_speak_first_and_early_bytes_come_before_the_answer() {
    let service = Service::start().await;
    let (_hub, _agent, session) = serving(&service).await;
    assert!(session.facts.targets.contains(&"pg".to_owned()));
    let mut header = to_service("pg");
    header.payload_follows = true;
    let mut client = session.open(&header);
    client.write_all(b"early, ").await.unwrap();
    let mut served = service.accept().await;
    expect(&mut served, b"early, ").await;
    let answer = dial_answer(&mut client).await;
    assert_eq!(
        (answer.code, answer.reason.as_str()),
        (DialCode::Connected, "")
    );
    served.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    expect(&mut client, b"SSH-2.0-x\r\n").await;
    whole_conversation(client, served).await;
}

#[tokio::test]
async fn each_half_of_a_stream_closes_alone() {
    let service = Service::start().await;
    let (_hub, agent, session) = serving(&service).await;
    for service_first in [false, true] {
        let mut client = session.open(&to_service("pg"));
        assert_eq!(dial_answer(&mut client).await.code, DialCode::Connected);
        let mut served = service.accept().await;
        if service_first {
            served.write_all(b"bye").await.unwrap();
            served.shutdown().await.unwrap();
            expect(&mut client, b"bye").await;
            ended(&mut client).await;
            client.write_all(b"more").await.unwrap();
            expect(&mut served, b"more").await;
            client.shutdown().await.unwrap();
            ended(&mut served).await;
        } else {
            client.shutdown().await.unwrap();
            ended(&mut served).await;
            served.write_all(b"answer").await.unwrap();
            expect(&mut client, b"answer").await;
            drop(served);
            ended(&mut client).await;
        }
    }
    agent.stop().await;
    assert_eq!(
        within(session.carrier.closed()).await,
        CloseReason::Shutdown
    );
}

#[tokio::test]
async fn a_break_on_one_side_is_a_break_on_the_other() {
    let service = Service::start().await;
    let (_hub, _agent, session) = serving(&service).await;
    let mut client = session.open(&to_service("pg"));
    dial_answer(&mut client).await;
    reset(service.accept().await);
    broken(&mut client).await;
    let mut client = session.open(&to_service("pg"));
    dial_answer(&mut client).await;
    let mut served = service.accept().await;
    client.reset(CloseReason::ClientReset);
    assert_eq!(
        broken(&mut served).await.kind(),
        io::ErrorKind::ConnectionReset
    );
    // The carrier with it.
    let mut client = session.open(&to_service("pg"));
    dial_answer(&mut client).await;
    let mut served = service.accept().await;
    session.carrier.close(CloseReason::Shutdown);
    assert_eq!(
        broken(&mut served).await.kind(),
        io::ErrorKind::ConnectionReset
    );
}

/// An address where connections neither succeed nor fail: its queue is full.
pub struct Hanging {
    pub addr: SocketAddr,
    _listener: std::net::TcpListener,
    _queue: Vec<TcpStream>,
}

impl Hanging {
    pub async fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        let patience = Duration::from_millis(200);
        while let Ok(tcp) = tokio::time::timeout(patience, TcpStream::connect(addr)).await {
            queue.push(tcp.unwrap());
        }
        Self {
            addr,
            _listener: listener,
            _queue: queue,
        }
    }
}

async fn closed_port() -> SocketAddr {
    Service::start().await.addr
}

#[tokio::test]
async fn each_refusal_says_what_was_seen_and_what_to_do() {
    let service = Service::start().await;
    let hanging = Hanging::start().await;
    let slow = format!("slow={}", hanging.addr);
    let granted = ["gone", "nowhere", "slow", "pg"];
    let mut hub = Hub::with(&granted, false).await;
    let gone = format!("gone={}", closed_port().await);
    let _agent = Running::of(
        &hub,
        service.addr,
        &[
            "--service",
            &gone,
            "--service",
            "nowhere=no-such-host.invalid:1",
            "--service",
            &slow,
            "--sealed-service",
            "other=10.0.0.1:1",
        ],
    );
    let session = hub.session().await;
    for (name, code, words) in [
        (
            "gone",
            DialCode::Refused,
            "see that it runs and listens there",
        ),
        ("nowhere", DialCode::Name, "look at the agent's DNS"),
        (
            "slow",
            DialCode::Timeout,
            "look at its load and at the firewalls",
        ),
        ("pg", DialCode::UnknownTarget, "--service pg=HOST:PORT"),
        ("other", DialCode::NotAllowed, "has not granted it"),
        ("default", DialCode::UnknownTarget, "this agent serves gone"),
    ] {
        let mut header = to_service(name);
        header.dial_deadline_ms = Some(500);
        let mut client = session.open(&header);
        let answer = dial_answer(&mut client).await;
        assert_eq!(answer.code, code, "{name}: {}", answer.reason);
        assert!(answer.reason.contains(words), "{name}: {}", answer.reason);
        ended(&mut client).await;
    }
}

#[tokio::test]
async fn an_agent_at_its_limit_or_about_to_stop_says_so() {
    let service = Service::start().await;
    let mut hub = Hub::with(&["pg"], false).await;
    let named = service.named("pg");
    let args = ["--service", named.as_str(), "--max-conns", "1"];
    let agent = Running::of(&hub, service.addr, &args);
    let session = hub.session().await;
    let mut first = session.open(&to_service("pg"));
    dial_answer(&mut first).await;
    let served = service.accept().await;
    // The hub minds what the agent said; a hostile one would not.
    let second = session.carrier.open(Some(&to_service("pg")));
    assert!(second.is_err());
    agent.shutdown.advance(Phase::Draining);
    within(async {
        while !session.carrier.is_draining() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    first.write_all(b"still here").await.unwrap();
    let mut served = served;
    expect(&mut served, b"still here").await;
    first.shutdown().await.unwrap();
    served.shutdown().await.unwrap();
    ended(&mut first).await;
    agent.stop().await;
}

/// A hub that opens more than it was told it may.
#[tokio::test]
async fn a_connection_above_max_conns_is_told_overload() {
    let held = crate::support::service(crate::support::answer(|_| std::future::pending())).await;
    let direct = Direct::start(Recipe::http(held.addr), 1).await;
    let mut busy = direct.http().await;
    let waiting = tokio::spawn(async move { busy.send_request(get("/")).await });
    within(async {
        while held.connections() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut client = direct.carrier.open(Some(&to_service("pg"))).unwrap();
    let answer = dial_answer(&mut client).await;
    assert_eq!(answer.code, DialCode::Overload);
    assert!(answer.reason.contains("--max-conns"), "{}", answer.reason);
    waiting.abort();
}

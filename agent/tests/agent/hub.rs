//! A hub for tests: the real hub side of the carrier behind a real listener.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use culvert_agent::channel::Opener;
use culvert_agent::config::{Config, Job, Refused};
use culvert_agent::credential::Tokens;
use culvert_agent::flow::Flows;
use culvert_agent::flow::leg::Counted;
use culvert_agent::services::Services;
use culvert_agent::session::{Session, Shared};
use culvert_agent::upstream::resolve::{Resolve, SystemResolver};
use culvert_engine::legs::Leg;
use culvert_mux::Budget;
use culvert_net::carrier::{Carrier, CarrierConfig, SessionEvent, Stream, carrier};
use culvert_net::crypto::{hmac_sha256, random_bytes};
use culvert_net::dial::{Dialer, ProxyConfig};
use culvert_net::look::Look;
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{ClientTls, ClientTlsOptions, MinVersion, ServerTls, ServerTlsOptions};
use culvert_net::transport::{Transport, hub_transport, websocket_accept};
use culvert_proto::channel::{ALPN, ChannelAnswer, Form, MAGIC, PREFACE_BYTES, Preface};
use culvert_proto::control::{AgentFacts, Grant, Ticket, Tickets};
use culvert_proto::hello::{Caps, CarrierKind, HelloAnswer, HelloRequest};
use culvert_proto::id::Epoch;
use culvert_proto::open::{DialAnswer, DialAnswerDecoder, StreamHeader, StreamKind};
use culvert_proto::session::{Config as SessionConfig, Role};
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::*;

pub const TOKEN: &str = "rhc_a-token-of-the-tests";

/// One agent's session, as the hub sees it.
pub struct Accepted {
    pub carrier: Carrier,
    pub facts: AgentFacts,
    pub token: String,
    pub kind: CarrierKind,
    pub epoch: Epoch,
}

/// A data channel that an agent opened; the test is to answer its preface.
pub struct Channel {
    pub io: Box<dyn Transport>,
    pub form: Form,
    pub preface: Preface,
    pub mac: [u8; 32],
}

struct Inner {
    sessions: mpsc::UnboundedSender<Accepted>,
    channels: mpsc::UnboundedSender<Channel>,
    tls: Option<ServerTls>,
    /// Connections for data channels are closed before a word.
    deaf: AtomicBool,
    connections: AtomicUsize,
    attempts: AtomicUsize,
    refusals: Mutex<VecDeque<Response<Body>>>,
    epoch: AtomicU64,
    granted: Vec<Arc<str>>,
    websocket_only: bool,
}

/// A hub that grants every agent a session, unless told to refuse.
pub struct Hub {
    pub addr: SocketAddr,
    sessions: mpsc::UnboundedReceiver<Accepted>,
    channels: mpsc::UnboundedReceiver<Channel>,
    inner: Arc<Inner>,
}

impl Hub {
    pub async fn start() -> Self {
        Self::with(&[], false).await
    }

    pub async fn with(granted: &[&str], websocket_only: bool) -> Self {
        Self::on(granted, websocket_only, None).await
    }

    /// A hub behind TLS: its CA is `ca.crt` of `dir`, its name localhost.
    pub async fn with_tls(granted: &[&str], dir: &Path) -> Self {
        let ca = DevCa::new("the hub's").unwrap();
        ca.write(dir).unwrap();
        let cert = ca.server(&["localhost"]).unwrap();
        let (cert, key) = cert.write(dir, "hub").unwrap();
        let options = ServerTlsOptions {
            cert,
            key,
            client_auth: None,
            alpn: vec![b"http/1.1".to_vec(), ALPN.to_vec()],
            min_version: MinVersion::Tls12,
        };
        Self::on(granted, false, Some(ServerTls::load(options).unwrap())).await
    }

    async fn on(granted: &[&str], websocket_only: bool, tls: Option<ServerTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, sessions) = mpsc::unbounded_channel();
        let (to_channels, channels) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            sessions: sender,
            channels: to_channels,
            tls,
            deaf: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            attempts: AtomicUsize::new(0),
            refusals: Mutex::default(),
            epoch: AtomicU64::new(0),
            granted: granted.iter().map(|name| Arc::from(*name)).collect(),
            websocket_only,
        });
        let serving = inner.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, serving.clone()));
            }
        });
        Self {
            addr,
            sessions,
            channels,
            inner,
        }
    }

    /// The next data channel.
    pub async fn channel(&mut self) -> Channel {
        within(self.channels.recv()).await.unwrap()
    }

    /// From now on data channels find nobody.
    pub fn be_deaf(&self) {
        self.inner.deaf.store(true, Ordering::SeqCst);
    }

    /// TCP connections that were accepted.
    pub fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// The next session.
    pub async fn session(&mut self) -> Accepted {
        within(self.sessions.recv()).await.unwrap()
    }

    pub fn has_session(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// The next attempt is answered with this.
    pub fn refuse(&self, answer: Response<Body>) {
        self.inner.refusals.lock().push_back(answer);
    }

    /// How often agents asked for a session.
    pub fn attempts(&self) -> usize {
        self.inner.attempts.load(Ordering::SeqCst)
    }

    pub async fn attempted(&self, times: usize) {
        within(async {
            while self.attempts() < times {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub fn url(&self) -> String {
        match self.inner.tls {
            Some(_) => format!("wss://localhost:{}/agent", self.addr.port()),
            None => format!("ws://{}/agent", self.addr),
        }
    }
}

/// What a hub's listener does: TLS, a data channel or HTTP, by the first bytes.
async fn serve(tcp: TcpStream, inner: Arc<Inner>) {
    inner.connections.fetch_add(1, Ordering::SeqCst);
    let mut first = [0; 4];
    let looked = tcp.peek(&mut first).await.unwrap_or(0);
    match (&inner.tls, first) {
        (Some(tls), [0x16, ..]) => {
            let Ok(stream) = tls.accept(tcp).await else {
                return;
            };
            let spoken = ServerTls::info(&stream).alpn;
            if spoken.as_deref() == Some(ALPN) {
                return channel(Box::new(stream), Form::Tls, &inner).await;
            }
            http(stream, inner.clone()).await;
        }
        (_, MAGIC) => channel(Box::new(tcp), Form::Plain, &inner).await,
        _ if looked == 0 => {}
        _ => http(tcp, inner.clone()).await,
    }
}

async fn channel(mut io: Box<dyn Transport>, form: Form, inner: &Inner) {
    if inner.deaf.load(Ordering::SeqCst) {
        return;
    }
    let mut bytes = [0; PREFACE_BYTES];
    if io.read_exact(&mut bytes).await.is_ok() {
        let (preface, mac) = Preface::decode(&bytes).unwrap();
        let _ = inner.channels.send(Channel {
            io,
            form,
            preface,
            mac,
        });
    }
}

async fn http(io: impl Transport, inner: Arc<Inner>) {
    let handle = hyper::service::service_fn(move |request| {
        let inner = inner.clone();
        async move { Ok::<_, Infallible>(answer_agent(request, inner)) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), handle)
        .with_upgrades()
        .await;
}

fn answer_agent(mut request: Request<Incoming>, inner: Arc<Inner>) -> Response<Body> {
    let headers = request.headers();
    let pairs = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()));
    let mut hello = HelloRequest::parse(request.uri().query(), pairs).unwrap();
    let token = hello
        .token
        .as_ref()
        .map_or("", |token| token.expose())
        .to_owned();
    inner.attempts.fetch_add(1, Ordering::SeqCst);
    if let Some(refusal) = inner.refusals.lock().pop_front() {
        return refusal;
    }
    if inner.websocket_only {
        hello.kind = CarrierKind::WebSocket;
    }
    let epoch = Epoch(inner.epoch.fetch_add(1, Ordering::SeqCst) + 1);
    let granted = HelloAnswer::new(hello.kind, epoch, hello.hello.caps);
    let mut answer = Response::builder().status(101);
    for (name, value) in granted.headers() {
        answer = answer.header(name, value);
    }
    if hello.kind == CarrierKind::WebSocket {
        let key = hello.websocket_key.as_deref().unwrap();
        answer = answer.header("sec-websocket-accept", websocket_accept(key));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let (kind, caps) = (hello.kind, hello.hello.caps);
    tokio::spawn(async move {
        let io = hub_transport(upgrade.await.unwrap(), kind);
        let grant = Grant {
            epoch,
            targets: inner.granted.clone(),
        };
        let config = CarrierConfig::native(Role::Hub(grant), session_config(caps));
        let (carrier, driver) = carrier(io, config, Arc::new(Budget::new(1 << 30)));
        tokio::spawn(driver);
        let Some(SessionEvent::Established(facts)) = carrier.event().await else {
            return;
        };
        let _ = inner.sessions.send(Accepted {
            carrier,
            facts,
            token,
            kind,
            epoch,
        });
    });
    answer.body(empty()).unwrap()
}

fn session_config(caps: Caps) -> SessionConfig {
    SessionConfig {
        caps,
        ..SessionConfig::default()
    }
}

impl Channel {
    /// Whether it was opened with `ticket`, in its form, for the session of `epoch`.
    pub fn is_for(&self, ticket: &Ticket, epoch: Epoch) -> bool {
        let (form, ticket_id) = (self.form, ticket.id);
        let wanted = Preface {
            form,
            ticket: ticket_id,
            epoch,
        };
        self.preface == wanted && self.mac == hmac_sha256(&ticket.key, &wanted.signed_part())
    }

    /// The TCP connection of one in form 2.
    pub fn into_tcp(self) -> TcpStream {
        let io: Box<dyn std::any::Any> = self.io;
        *io.downcast().expect("form 2 is TCP itself")
    }

    pub async fn say(&mut self, answer: ChannelAnswer) {
        self.io.write_all(&answer.encode()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Sends an open and what follows at once, and reads the dial answer.
    pub async fn open(&mut self, header: &StreamHeader, first: &[u8]) -> DialAnswer {
        let bytes = [&header.encode().unwrap()[..], first].concat();
        self.io.write_all(&bytes).await.unwrap();
        self.io.flush().await.unwrap();
        dial_answer(&mut self.io).await
    }
}

/// Reads a dial answer and nothing behind it.
pub async fn dial_answer(io: &mut (impl AsyncRead + Unpin)) -> DialAnswer {
    within(async {
        let mut decoder = DialAnswerDecoder::new();
        loop {
            let mut byte = [0];
            io.read_exact(&mut byte).await.expect("a dial answer");
            let mut byte = bytes::Bytes::copy_from_slice(&byte);
            if let Some(answer) = decoder.push(&mut byte).unwrap() {
                return answer;
            }
        }
    })
    .await
}

/// A ticket like no other.
pub fn ticket() -> Ticket {
    Ticket {
        id: random_bytes(),
        key: random_bytes(),
    }
}

/// An open of a flow to `service`.
pub fn to_service(service: &str) -> StreamHeader {
    let mut header = StreamHeader::new(StreamKind::Tcp);
    header.target = Some(Arc::from(service));
    header.dial_deadline_ms = Some(10_000);
    header
}

impl Accepted {
    /// A parked channel of `form`.
    pub async fn parked(&self, hub: &mut Hub, form: Form) -> Channel {
        let ticket = ticket();
        let tickets = Tickets {
            ttl_s: 30,
            form,
            tickets: vec![ticket.clone()],
        };
        self.carrier.tickets(tickets).unwrap();
        let mut channel = hub.channel().await;
        assert!(channel.is_for(&ticket, self.epoch) && channel.form == form);
        channel.say(ChannelAnswer::Parked).await;
        channel
    }

    /// A stream for one request.
    pub fn open(&self, header: &StreamHeader) -> Stream {
        self.carrier.open(Some(header)).unwrap()
    }

    /// The same, as HTTP.
    pub async fn http(&self, target: Option<&str>) -> SendRequest<Body> {
        let mut header = StreamHeader::new(StreamKind::Http);
        header.target = target.map(Arc::from);
        http_on(&self.carrier, &header).await
    }

    /// One request on a stream of its own.
    pub async fn ask(&self, request: Request<Body>) -> Response<Incoming> {
        within(self.http(None).await.send_request(request))
            .await
            .unwrap()
    }

    /// The next event that `wanted` picks.
    pub async fn until<T>(&self, wanted: impl Fn(SessionEvent) -> Option<T>) -> T {
        within(async {
            loop {
                if let Some(found) = wanted(self.carrier.event().await.unwrap()) {
                    return found;
                }
            }
        })
        .await
    }
}

/// A session without a connector, on a carrier in memory: the hub believes what the test says.
pub struct Direct {
    pub carrier: Carrier,
    pub session: Session,
}

impl Direct {
    /// A session that serves `streams_max` at once and says that it serves 1024.
    pub async fn start(recipe: Recipe, streams_max: u32) -> Self {
        let made = recipe.make();
        let facts = AgentFacts {
            streams_max: Some(1024),
            ..AgentFacts::default()
        };
        let grant = Grant {
            epoch: Epoch(1),
            targets: Vec::new(),
        };
        let (hub_io, agent_io) = tokio::io::duplex(256 * 1024);
        let budget = Arc::new(Budget::new(1 << 30));
        let config = CarrierConfig::native(Role::Hub(grant), SessionConfig::default());
        let (carrier_of_hub, driver) = carrier(hub_io, config, budget.clone());
        tokio::spawn(driver);
        let config = CarrierConfig::native(Role::Agent(facts), SessionConfig::default());
        let (carrier_of_agent, driver) = carrier(agent_io, config, budget);
        let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver);
        let services = Services::new(&[], false, &[], &resolver);
        let flows = Arc::new(Flows::new(services, None, made.metrics.clone()));
        let tls = Arc::new(ClientTls::load(ClientTlsOptions::default()).unwrap());
        let dialer = Arc::new(Dialer::new(tls, ProxyConfig::direct()));
        let leg = Counted::new(&made.metrics, Leg::Carrier, &Look::default());
        let shared = Shared {
            service: made.service,
            opener: Arc::new(Opener::new(dialer, flows.clone())),
            flows,
            tokens: Arc::new(Tokens::load(None, false, None).unwrap()),
            identity: None,
            mirror: None,
            metrics: made.metrics,
            streams_max,
            established: AtomicUsize::new(0),
        };
        let mut session = Session::start(Arc::new(shared), carrier_of_agent, driver, None, leg);
        assert!(within(session.established()).await);
        let event = within(carrier_of_hub.event()).await;
        assert!(matches!(event, Some(SessionEvent::Established(_))));
        Self {
            carrier: carrier_of_hub,
            session,
        }
    }

    /// A stream for one request.
    pub async fn http(&self) -> SendRequest<Body> {
        http_on(&self.carrier, &StreamHeader::new(StreamKind::Http)).await
    }

    /// One request on a stream of its own.
    pub async fn ask(&self, request: Request<Body>) -> Response<Incoming> {
        within(self.http().await.send_request(request))
            .await
            .unwrap()
    }
}

async fn http_on(carrier: &Carrier, header: &StreamHeader) -> SendRequest<Body> {
    let io = TokioIo::new(carrier.open(Some(header)).unwrap());
    let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// A whole agent, run from its command line.
pub struct Running {
    pub shutdown: Shutdown,
    task: JoinHandle<()>,
}

impl Running {
    pub fn start(args: &[&str]) -> Self {
        let config = load(args, &[]).unwrap_or_else(|why| panic!("{why}"));
        let shutdown = Shutdown::default();
        let told = shutdown.clone();
        let task = tokio::spawn(async move {
            culvert_agent::run(config, &told).await.unwrap();
        });
        Self { shutdown, task }
    }

    /// An agent of `hub` in front of `target`.
    pub fn of(hub: &Hub, target: SocketAddr, more: &[&str]) -> Self {
        let (server, target) = (hub.url(), format!("http://{target}"));
        let mut args = vec![
            "--server",
            &server,
            "--target",
            &target,
            "--allow-insecure-server",
        ];
        args.extend(["--health-addr", "127.0.0.1:0", "--max-retry", "200ms"]);
        args.extend(more);
        if !more
            .iter()
            .any(|arg| arg.contains("token") || *arg == "--join")
        {
            args.extend(["--token", TOKEN]);
        }
        Self::start(&args)
    }

    pub async fn stop(self) {
        self.shutdown.advance(Phase::Draining);
        within(self.task).await.unwrap();
    }
}

pub fn load(args: &[&str], env: &[(&str, &str)]) -> Result<Config, Refused> {
    match job(args, env)? {
        Job::Agent(config) => Ok(*config),
        _ => panic!("not an agent"),
    }
}

pub fn job(args: &[&str], env: &[(&str, &str)]) -> Result<Job, Refused> {
    let argv = std::iter::once("culvert-agent").chain(args.iter().copied());
    Job::load(argv.map(Into::into), |name| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

pub fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

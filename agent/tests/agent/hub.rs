//! A hub for tests: the real hub side of the carrier behind a real listener.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use culvert_agent::config::{Config, Refused};
use culvert_agent::credential::Tokens;
use culvert_agent::session::{Session, Shared};
use culvert_mux::Budget;
use culvert_net::carrier::{Carrier, CarrierConfig, SessionEvent, Stream, carrier};
use culvert_net::transport::{hub_transport, websocket_accept};
use culvert_proto::control::{AgentFacts, Grant};
use culvert_proto::hello::{Caps, CarrierKind, HelloAnswer, HelloRequest};
use culvert_proto::id::Epoch;
use culvert_proto::open::{StreamHeader, StreamKind};
use culvert_proto::session::{Config as SessionConfig, Role};
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
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

struct Inner {
    sessions: mpsc::UnboundedSender<Accepted>,
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
    inner: Arc<Inner>,
}

impl Hub {
    pub async fn start() -> Self {
        Self::with(&[], false).await
    }

    pub async fn with(granted: &[&str], websocket_only: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, sessions) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            sessions: sender,
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
            inner,
        }
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
        format!("ws://{}/agent", self.addr)
    }
}

async fn serve(tcp: TcpStream, inner: Arc<Inner>) {
    let handle = hyper::service::service_fn(move |request| {
        let inner = inner.clone();
        async move { Ok::<_, Infallible>(answer_agent(request, inner)) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(tcp), handle)
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

impl Accepted {
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
        let shared = Shared {
            service: made.service,
            tokens: Arc::new(Tokens::load(None, false, None).unwrap()),
            metrics: made.metrics,
            streams_max,
            established: AtomicUsize::new(0),
        };
        let mut session = Session::start(Arc::new(shared), carrier_of_agent, driver);
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
    let argv = std::iter::once("culvert-agent").chain(args.iter().copied());
    Config::load(argv.map(Into::into), |name| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

pub fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

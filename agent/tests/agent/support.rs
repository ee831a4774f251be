//! Services to stand behind the agent, and the hub's side of one stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use culvert_agent::metrics::AgentMetrics;
use culvert_agent::serve::Service;
use culvert_agent::target::{Target, TargetKind};
use culvert_agent::upstream::allow::AllowList;
use culvert_agent::upstream::dial::Dialer;
use culvert_agent::upstream::http::Upstream;
use culvert_agent::upstream::kube::TokenFile;
use culvert_agent::upstream::resolve::{Lookup, Resolve, SystemResolver};
use culvert_net::tls::{ClientTls, ClientTlsOptions};
use culvert_proto::open::{StreamHeader, StreamKind};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;
type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Longest any test waits for one thing.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

// === services ===

/// A real HTTP/1.1 service; counts its connections.
pub struct Served {
    pub addr: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

impl Served {
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

pub async fn service<F>(answer: F) -> Served
where
    F: Fn(Request<Incoming>) -> Answer + Send + Sync + Clone + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve_one(tcp, answer.clone()));
        }
    });
    Served { addr, connections }
}

pub async fn serve_one<F>(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, answer: F)
where
    F: Fn(Request<Incoming>) -> Answer + Send + 'static,
{
    let handle = hyper::service::service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), handle)
        .with_upgrades()
        .await;
}

/// Wraps a closure into the type a service wants.
pub fn answer<F, A>(f: F) -> impl Fn(Request<Incoming>) -> Answer + Send + Sync + Clone + 'static
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + Clone + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    move |request| Box::pin(f(request))
}

/// A service that plays a script: reads a head, then writes these bytes, and
/// keeps everything it ever read.
pub struct Scripted {
    pub addr: SocketAddr,
    pub read: Arc<Mutex<Vec<u8>>>,
}

pub async fn scripted(script: &'static [u8], close: bool) -> Scripted {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let read = Arc::new(Mutex::new(Vec::new()));
    let kept = read.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(play(tcp, script, close, kept.clone()));
        }
    });
    Scripted { addr, read }
}

async fn play(mut tcp: TcpStream, script: &'static [u8], close: bool, kept: Arc<Mutex<Vec<u8>>>) {
    let mut played = false;
    let mut buffer = [0; 4096];
    let mut seen = Vec::new();
    while let Ok(n) = tcp.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        kept.lock().extend_from_slice(&buffer[..n]);
        seen.extend_from_slice(&buffer[..n]);
        if !played && seen.windows(4).any(|w| w == b"\r\n\r\n") {
            played = true;
            tcp.write_all(script).await.unwrap();
            if close {
                return;
            }
        }
    }
}

// === bodies ===

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

pub fn empty() -> Body {
    Empty::new().boxed_unsync()
}

/// A body whose frames the test sends one by one.
pub fn channel() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel::<Frame<Bytes>>(4);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver
            .recv()
            .await
            .map(|frame| (Ok::<_, Infallible>(frame), receiver))
    });
    (
        sender,
        http_body_util::StreamBody::new(Box::pin(stream)).boxed_unsync(),
    )
}

pub async fn text(body: Incoming) -> String {
    let bytes = within(body.collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

// === the agent's serving part ===

pub struct Made {
    pub service: Arc<Service>,
    pub metrics: Arc<AgentMetrics>,
}

pub struct Recipe {
    pub target: String,
    pub kind: TargetKind,
    pub token: Option<TokenFile>,
    pub tls: Option<ClientTlsOptions>,
    pub resolver: Arc<dyn Resolve>,
    pub allow: Vec<ipnet::IpNet>,
    pub in_flight_max: usize,
}

impl Recipe {
    pub fn http(addr: SocketAddr) -> Self {
        Self::of(format!("http://{addr}"), TargetKind::Http)
    }

    pub fn of(target: String, kind: TargetKind) -> Self {
        let resolver = Arc::new(SystemResolver);
        Self {
            target,
            kind,
            token: None,
            tls: None,
            resolver,
            allow: Vec::new(),
            in_flight_max: 1024,
        }
    }

    pub fn make(self) -> Made {
        let plain = self.tls.is_none() && !self.target.contains("://");
        let target = Arc::new(Target::parse(&self.target, Some(self.kind), plain).unwrap());
        let metrics = Arc::new(AgentMetrics::new("test"));
        let tls = self
            .tls
            .map(|options| Arc::new(ClientTls::load(options).unwrap()));
        let allow = AllowList::new(&target, self.allow);
        let dialer = Dialer::new(target.clone(), allow, self.resolver, tls);
        let upstream = Upstream::new(
            target,
            dialer,
            self.token,
            metrics.clone(),
            self.in_flight_max,
        );
        let service = Arc::new(Service::new(Arc::new(upstream), metrics.clone()));
        Made { service, metrics }
    }
}

/// A resolver that gives its answers one after the other; the last one stays.
pub struct Fickle(Mutex<VecDeque<Vec<SocketAddr>>>);

impl Fickle {
    pub fn new(answers: impl IntoIterator<Item = Vec<SocketAddr>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(answers.into_iter().collect())))
    }
}

impl Resolve for Fickle {
    fn resolve<'a>(&'a self, _: &'a str, _: u16) -> Lookup<'a> {
        let mut answers = self.0.lock();
        let now = match answers.len() {
            1 => answers[0].clone(),
            _ => answers.pop_front().unwrap_or_default(),
        };
        Box::pin(async move { Ok(now) })
    }
}

/// The hub's side of one stream, as HTTP.
pub async fn stream(made: &Made) -> SendRequest<Body> {
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(raw_stream(made)))
            .await
            .unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// The hub's side of one stream, as bytes.
pub fn raw_stream(made: &Made) -> DuplexStream {
    let (hub, agent) = tokio::io::duplex(64 * 1024);
    let service = made.service.clone();
    tokio::spawn(async move {
        service
            .serve(StreamHeader::new(StreamKind::Http), agent, None)
            .await;
    });
    hub
}

/// One request on a stream of its own.
pub async fn ask(made: &Made, request: Request<Body>) -> Response<Incoming> {
    within(stream(made).await.send_request(request))
        .await
        .unwrap()
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(path)
        .header("host", "hub")
        .body(empty())
        .unwrap()
}

pub fn close_reason<B>(response: &Response<B>) -> &str {
    response
        .headers()
        .get("culvert-error")
        .map_or("", |word| word.to_str().unwrap())
}

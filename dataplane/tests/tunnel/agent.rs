//! An agent on the real carrier, with a service that does what the path says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use culvert_mux::Budget;
use culvert_net::carrier::{Carrier, CarrierConfig, SessionEvent, Stream, carrier};
use culvert_net::crypto::random_bytes;
use culvert_net::dial::{Dialer, ProxyConfig};
use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots};
use culvert_net::transport::{ConnectError, connect_agent};
use culvert_proto::control::{AgentFacts, ControlMessage};
use culvert_proto::hello::{AgentHello, Caps};
use culvert_proto::id::{ClusterId, InstanceId};
use culvert_proto::open::StreamKind;
use culvert_proto::session::{Config as SessionConfig, Role};
use culvert_proto::token::TokenText;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::hub::{TOKEN, soon};
use crate::private::Private;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// How an agent introduces itself.
pub struct Introduction {
    pub token: &'static str,
    pub instance: [u8; 16],
    pub streams_max: Option<u32>,
    pub tag: &'static str,
    pub claims: Option<&'static str>,
    pub roots: Roots,
    pub identity: Option<(std::path::PathBuf, std::path::PathBuf)>,
    pub scheme: &'static str,
    pub caps: Caps,
    /// What it does with relayed TCP.
    pub private: Option<Arc<Private>>,
}

impl Default for Introduction {
    fn default() -> Self {
        Introduction {
            token: TOKEN,
            instance: random_bytes(),
            streams_max: None,
            tag: "agent",
            claims: None,
            roots: Roots::Insecure,
            identity: None,
            scheme: "ws",
            caps: Caps::DRAIN.with(Caps::ROTATE).with(Caps::STATUS),
            private: None,
        }
    }
}

/// What the service saw and what it waits for.
#[derive(Default)]
pub struct Shared {
    /// Every raw request, all bytes of its stream.
    pub raw: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    /// One step of `/steps` for each permit.
    pub step: Notify,
    /// Body errors seen by the service.
    pub broken: Mutex<usize>,
}

pub struct Agent {
    pub carrier: Carrier,
    pub shared: Arc<Shared>,
    events: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Agent {
    pub async fn connect(hub: SocketAddr) -> Agent {
        Agent::try_connect(hub, Introduction::default())
            .await
            .unwrap()
    }

    pub async fn with(hub: SocketAddr, introduction: Introduction) -> Agent {
        Agent::try_connect(hub, introduction).await.unwrap()
    }

    pub async fn try_connect(hub: SocketAddr, intro: Introduction) -> Result<Agent, ConnectError> {
        let tls = ClientTls::load(ClientTlsOptions {
            roots: intro.roots,
            identity: intro.identity,
            alpn: vec![b"http/1.1".to_vec()],
            ..ClientTlsOptions::default()
        })
        .unwrap();
        let dialer = Dialer::new(Arc::new(tls), ProxyConfig::direct());
        let hello = AgentHello {
            instance: Some(InstanceId(intro.instance)),
            version: "9.9.9".to_owned(),
            caps: intro.caps,
            cluster: intro.claims.map(|claim| ClusterId::new(claim).unwrap()),
        };
        let url = format!("{}://localhost:{}/agent", intro.scheme, hub.port());
        let token = TokenText::new(intro.token).unwrap();
        let urls = [url.parse().unwrap()];
        let conn = soon(
            "an answer",
            connect_agent(&dialer, &urls, &hello, Some(&token)),
        )
        .await?;
        let facts = AgentFacts {
            streams_max: intro.streams_max,
            ..AgentFacts::default()
        };
        let session = SessionConfig {
            beat_ms: conn.answer.beat_ms,
            dead_ms: conn.answer.dead_ms,
            hello_timeout_ms: 10_000,
            caps: conn.answer.caps,
            ..SessionConfig::default()
        };
        let config = CarrierConfig::native(Role::Agent(facts), session);
        let (carrier, driver) = carrier(conn.io, config, Arc::new(Budget::new(1 << 30)));
        let shared = Arc::new(Shared::default());
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut agent = Agent {
            carrier: carrier.clone(),
            shared: shared.clone(),
            events: events.clone(),
            tasks: vec![tokio::spawn(async move {
                driver.await;
            })],
        };
        let accepting = carrier.clone();
        let private = intro.private.clone();
        if let Some(private) = &private {
            *private.epoch.lock() = conn.answer.epoch;
        }
        agent.tasks.push(tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let header = incoming.header.filter(|it| it.kind == StreamKind::Tcp);
                if let (Some(private), Some(header)) = (&private, header) {
                    tokio::spawn(private.clone().opened(header, incoming.stream));
                    continue;
                }
                tokio::spawn(serve(incoming.stream, shared.clone(), intro.tag));
            }
        }));
        agent.tasks.push(tokio::spawn(async move {
            while let Some(event) = carrier.event().await {
                let private = intro.private.as_ref();
                let word = match event {
                    SessionEvent::Granted(grant) => {
                        if let Some(private) = private {
                            *private.granted.lock() = grant.targets;
                        }
                        "granted"
                    }
                    SessionEvent::Message(ControlMessage::Tickets(tickets)) => {
                        for ticket in tickets.tickets {
                            let Some(private) = private else { continue };
                            if private.opens_channels {
                                tokio::spawn(private.clone().park(tickets.form, ticket));
                            } else {
                                private.tickets.lock().push((tickets.form, ticket));
                            }
                        }
                        "tickets"
                    }
                    SessionEvent::Drain(_) => "drain",
                    _ => "other",
                };
                events.lock().push(word.to_owned());
            }
        }));
        crate::hub::until("the grant", || async {
            agent.heard("granted").then_some(())
        })
        .await;
        Ok(agent)
    }

    pub fn heard(&self, word: &str) -> bool {
        self.events.lock().iter().any(|heard| heard == word)
    }
}

impl Drop for Agent {
    /// As a killed process: nothing is said.
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn serve(mut stream: Stream, shared: Arc<Shared>, tag: &'static str) {
    let mut head = Vec::new();
    while head.len() < 9 {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    if head.starts_with(b"GET /raw/") || head.starts_with(b"POST /raw") {
        return raw(stream, head, shared).await;
    }
    let (read, write) = tokio::io::split(stream);
    let io = tokio::io::join(std::io::Cursor::new(head).chain(read), write);
    let service = service_fn(|request| answer(request, shared.clone(), tag));
    let _ = hyper::server::conn::http1::Builder::new()
        .max_headers(256)
        .serve_connection(TokioIo::new(Box::pin(io)), service)
        .await;
}

/// Scripted bytes: `/raw/<name>`.
async fn raw(mut stream: Stream, head: Vec<u8>, shared: Arc<Shared>) {
    let seen = Arc::new(Mutex::new(head));
    shared.raw.lock().push(seen.clone());
    while !seen.lock().windows(4).any(|w| w == b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        seen.lock().push(byte);
    }
    let head = String::from_utf8(seen.lock().clone()).unwrap();
    let name = head
        .split(' ')
        .nth(1)
        .unwrap()
        .trim_start_matches("/raw/")
        .to_owned();
    let script: &[u8] = match name.as_str() {
        "refuse" => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        "ok" => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "switch" => {
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly"
        }
        "other" => b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        "garbage" => b"SSH-2.0-OpenSSH_9.2\r\n",
        "ambiguous" => {
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"
        }
        "cut" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "short" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
        "until-eof" => b"HTTP/1.0 200 OK\r\n\r\nhello",
        "own-error" => {
            b"HTTP/1.1 502 Bad Gateway\r\nCulvert-Error: dial_refused\r\nContent-Length: 0\r\n\r\n"
        }
        _ => b"",
    };
    stream.write_all(script).await.unwrap();
    match name.as_str() {
        "cut" | "reset-until-eof" | "vanish" => {
            if name == "reset-until-eof" {
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").await;
                shared.step.notified().await;
            }
            if name == "cut" {
                shared.step.notified().await;
            }
            return;
        }
        "short" | "until-eof" => {
            stream.shutdown().await.unwrap();
        }
        _ => {}
    }
    let echo = name == "switch";
    let mut buffer = [0; 4096];
    while let Ok(got) = stream.read(&mut buffer).await {
        if got == 0 {
            break;
        }
        seen.lock().extend_from_slice(&buffer[..got]);
        if echo && stream.write_all(&buffer[..got]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    tag: &'static str,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut answer = match path.as_str() {
        "/echo" => Response::new(
            request
                .into_body()
                .map_err(std::io::Error::other)
                .boxed_unsync(),
        ),
        "/count" => match count(request.into_body()).await {
            Ok(count) => whole(count.to_string()),
            Err(_) => {
                *shared.broken.lock() += 1;
                whole("broken".to_owned())
            }
        },
        "/steps" => Response::new(steps(&shared)),
        "/trailers" => trailers(request).await,
        "/hang" => std::future::pending().await,
        "/flood" => Response::new(flood()),
        "/big" => whole("x".repeat(1 << 20)),
        _ => whole(describe(&request)),
    };
    answer
        .headers_mut()
        .insert("x-tag", HeaderValue::from_static(tag));
    Ok(answer)
}

fn whole(text: String) -> Response<Body> {
    Response::new(
        Full::from(text)
            .map_err(|never| match never {})
            .boxed_unsync(),
    )
}

/// The head as the service sees it.
fn describe(request: &Request<Incoming>) -> String {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    text
}

async fn count(mut body: Incoming) -> Result<u64, hyper::Error> {
    let mut count = 0;
    while let Some(frame) = body.frame().await {
        count += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(count)
}

/// `one`, `two`, `three`, each after a permit; then the end.
fn steps(shared: &Arc<Shared>) -> Body {
    let (send, receive) = mpsc::channel(1);
    let shared = shared.clone();
    tokio::spawn(async move {
        for part in ["one", "two", "three"] {
            shared.step.notified().await;
            if send.send(Ok(Frame::data(Bytes::from(part)))).await.is_err() {
                return;
            }
        }
    });
    StreamBody::new(Receiver(receive)).boxed_unsync()
}

/// Without end.
fn flood() -> Body {
    let frame = || Ok(Frame::data(Bytes::from_static(&[b'x'; 64 * 1024])));
    StreamBody::new(futures_util::stream::repeat_with(frame)).boxed_unsync()
}

struct Receiver(mpsc::Receiver<Result<Frame<Bytes>, std::io::Error>>);

impl futures_util::Stream for Receiver {
    type Item = Result<Frame<Bytes>, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Gives the request's trailers back as its own.
async fn trailers(request: Request<Incoming>) -> Response<Body> {
    let collected = request.into_body().collect().await.unwrap();
    let mut trailers = collected.trailers().cloned().unwrap_or_default();
    trailers.insert("x-sum", HeaderValue::from_static("42"));
    trailers.insert("x-forwarded-user", HeaderValue::from_static("root"));
    let body = Full::new(collected.to_bytes());
    let body = body.with_trailers(async move { Some(Ok::<HeaderMap, Infallible>(trailers)) });
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    let names = HeaderValue::from_static("x-sum, x-kept, x-forwarded-user");
    answer.headers_mut().insert("trailer", names);
    // With a known length hyper would leave no room for trailers.
    let chunked = HeaderValue::from_static("chunked");
    answer.headers_mut().insert("transfer-encoding", chunked);
    answer
}

//! The admin server of a process: metrics, probes and what the process adds.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::{CONTENT_TYPE, Metrics};

/// Connections served at once; further ones wait in the accept queue.
pub const CONNECTIONS_MAX: usize = 64;
/// Longest request body in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// A request head has to arrive within this time.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer type of every admin route.
pub type Answer = Response<Full<Bytes>>;
/// One probe: `true` is 200 `ok`.
pub type Probe = Box<dyn Fn() -> bool + Send + Sync>;
/// Routes that the process adds: request, body and the caller's address.
pub type Extra = Box<dyn Fn(&Request<()>, &Bytes, SocketAddr) -> Option<Reply> + Send + Sync>;

/// How a route answers.
pub enum Reply {
    /// At once.
    Now(Answer),
    /// When others have said what it needs.
    Later(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::Now(answer)
    }
}

/// What the admin server answers with.
pub struct Admin {
    /// `/metrics`.
    pub metrics: Metrics,
    /// `/healthz` and `/livez`: the process runs and its loops tick.
    pub healthz: Probe,
    /// `/readyz`: connected to a peer; for people and scripts.
    pub readyz: Probe,
    /// `/readyz/serve`: ready to serve; for the kubelet.
    pub readyz_serve: Probe,
    /// Further routes; whatever it leaves as `None` is 404.
    pub extra: Extra,
}

impl Admin {
    /// Answers one of the common routes, or `None` when the path is another.
    /// Listeners that carry probes beside their own routes call this too.
    #[must_use]
    pub fn common(&self, method: &Method, path: &str) -> Option<Answer> {
        let answer = match path {
            "/metrics" => text(StatusCode::OK, CONTENT_TYPE, self.metrics.render()),
            "/healthz" | "/livez" => probe((self.healthz)()),
            "/readyz" => probe((self.readyz)()),
            "/readyz/serve" => probe((self.readyz_serve)()),
            _ => return None,
        };
        if !matches!(*method, Method::GET | Method::HEAD) {
            let only = "only GET and HEAD are answered here\n".to_owned();
            return Some(text(StatusCode::METHOD_NOT_ALLOWED, TEXT, only));
        }
        Some(answer)
    }

    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Answer {
        let (parts, body) = request.into_parts();
        if let Some(answer) = self.common(&parts.method, parts.uri.path()) {
            return answer;
        }
        let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(why) => {
                let said = format!("the request body could not be read: {why}\n");
                return text(StatusCode::BAD_REQUEST, TEXT, said);
            }
        };
        let request = Request::from_parts(parts, ());
        match (self.extra)(&request, &body, peer) {
            Some(Reply::Now(answer)) => answer,
            Some(Reply::Later(answer)) => answer.await,
            None => {
                let said = format!("no route {}\n", request.uri().path());
                text(StatusCode::NOT_FOUND, TEXT, said)
            }
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

/// An answer with a body of the given content type.
#[must_use]
pub fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    answer
}

fn probe(ok: bool) -> Answer {
    let (status, word) = if ok {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready")
    };
    text(status, TEXT, word.to_owned())
}

/// Serves `admin` on `listener` until the future is dropped.
///
/// # Errors
/// The operating system's, when the listener cannot be registered.
pub async fn serve(listener: std::net::TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return Ok(());
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(why) => {
                tracing::warn!(%why, "admin listener cannot accept; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(admin.answer(request, peer).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(why) = served {
                tracing::debug!(%why, %peer, "admin connection ended");
            }
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn ask(addr: SocketAddr, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn serves_probes_metrics_and_extra_routes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let admin = Admin {
            metrics: Metrics::new(),
            healthz: Box::new(|| true),
            readyz: Box::new(|| false),
            readyz_serve: Box::new(|| true),
            extra: Box::new(|request, body, _| {
                (request.uri().path() == "/echo").then(|| {
                    let said = String::from_utf8_lossy(body).into_owned();
                    Reply::Later(Box::pin(async { text(StatusCode::OK, TEXT, said) }))
                })
            }),
        };
        let server = tokio::spawn(serve(listener, Arc::new(admin)));
        assert!(ask(addr, &get("/healthz")).await.ends_with("\r\n\r\nok"));
        assert!(ask(addr, &get("/readyz")).await.starts_with("HTTP/1.1 503"));
        assert!(ask(addr, &get("/readyz/serve")).await.ends_with("ok"));
        assert!(
            ask(addr, &get("/metrics"))
                .await
                .contains("process_start_time_seconds")
        );
        assert!(
            ask(addr, &get("/nothing"))
                .await
                .starts_with("HTTP/1.1 404")
        );
        let post =
            "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
        assert!(ask(addr, post).await.ends_with("\r\n\r\nhi"));
        let post = post.replace("/echo", "/healthz");
        assert!(ask(addr, &post).await.starts_with("HTTP/1.1 405"));
        server.abort();
    }
}

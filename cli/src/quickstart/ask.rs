//! The requests that quickstart sends itself.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots};
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(5);

/// What one request through the tunnel showed.
pub struct Proof {
    /// The status.
    pub status: http::StatusCode,
    /// Time to the end of the answer, in milliseconds.
    pub millis: f64,
    /// The answer came from Culvert itself, not from the service.
    pub by_culvert: bool,
    /// Culvert's reason, when it was.
    pub reason: String,
}

/// Whether a plain listener answers 200.
pub async fn plain(addr: SocketAddr, path: &str) -> bool {
    let asked = async {
        let stream = TcpStream::connect(addr).await.ok()?;
        send(stream, "localhost", path).await.ok()
    };
    let answer = tokio::time::timeout(DEADLINE, asked).await;
    answer
        .ok()
        .flatten()
        .is_some_and(|answer| answer.status().is_success())
}

/// One request over TLS, trusting this CA alone.
pub async fn through_tls(ca: &Path, addr: SocketAddr, path: &str) -> Result<Proof, String> {
    let start = Instant::now();
    let options = ClientTlsOptions {
        roots: Roots::File(ca.to_owned()),
        ..Default::default()
    };
    let asked = async {
        let tls = ClientTls::load(options).map_err(|why| why.to_string())?;
        let stream = TcpStream::connect(addr)
            .await
            .map_err(|why| why.to_string())?;
        let stream = tls
            .connect("localhost", stream)
            .await
            .map_err(|why| why.to_string())?;
        let answer = send(stream, "localhost", path).await?;
        let (head, body) = answer.into_parts();
        body.collect().await.map_err(|why| why.to_string())?;
        let reason = head
            .headers
            .get("culvert-error")
            .map(|value| value.as_bytes().to_vec());
        Ok(Proof {
            status: head.status,
            millis: start.elapsed().as_secs_f64() * 1000.0,
            by_culvert: reason.is_some(),
            reason: String::from_utf8_lossy(&reason.unwrap_or_default()).into_owned(),
        })
    };
    tokio::time::timeout(DEADLINE, asked)
        .await
        .unwrap_or_else(|_| Err("no answer in 5 s".into()))
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
) -> Result<Response<Incoming>, String> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|why| why.to_string())?;
    tokio::spawn(connection);
    let request = Request::builder().uri(path).header(header::HOST, host);
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|why| why.to_string())?;
    sender
        .send_request(request)
        .await
        .map_err(|why| why.to_string())
}

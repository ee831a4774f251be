//! A service on the private site that records what reached it, head for head.
//!
//! | path | answer |
//! |---|---|
//! | `/id/{x}` | `x`, and the body that came |
//! | `/head` | the head exactly as it arrived |
//! | `/version` | the version of a Kubernetes API, as JSON |
//! | `/endless` | 16 KiB chunks for ever |
//! | `/sink` | none, and the body is never read |
//! | `/hold/{ms}` | `held`, after that time |
//! | `/trailed` | `body`, and trailers that its head does not announce |
//! | `/step` | an event for each [`Upstream::step`], and its end at [`Upstream::finish`] |
//! | `/websocket` | RFC 6455 echo |
//! | `/spdy`, `.../exec` | `101` to `SPDY/3.1`, then every byte back |
//! | `/refuse` | `403` to any upgrade |

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_perf::testbed::{Namespace, NamespaceRuntime, SITE};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};

/// A running service; it ends with this value.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<std::sync::Mutex<Vec<String>>>,
    steps: mpsc::UnboundedSender<Option<String>>,
    _runtime: NamespaceRuntime,
}

#[derive(Clone)]
struct Shared {
    seen: Arc<std::sync::Mutex<Vec<String>>>,
    steps: Arc<Mutex<mpsc::UnboundedReceiver<Option<String>>>>,
}

impl Upstream {
    pub fn start(site: &Namespace) -> Result<Upstream> {
        Upstream::start_at(site, SITE)
    }

    /// As [`Upstream::start`], for another site.
    pub fn start_at(site: &Namespace, address: IpAddr) -> Result<Upstream> {
        let runtime = site.runtime()?;
        let listener = runtime.run(async move { TcpListener::bind((address, 0)).await })?;
        Upstream::serve(runtime, listener)
    }

    /// As [`Upstream::start`], on 127.0.0.1 of `namespace`.
    pub fn local(namespace: &Namespace, port: u16) -> Result<Upstream> {
        let runtime = namespace.runtime()?;
        let listener = runtime.run(async move { TcpListener::bind(("127.0.0.1", port)).await })?;
        Upstream::serve(runtime, listener)
    }

    fn serve(runtime: NamespaceRuntime, listener: TcpListener) -> Result<Upstream> {
        let address = listener.local_addr()?;
        let (steps, receiver) = mpsc::unbounded_channel();
        let shared = Shared {
            seen: Arc::default(),
            steps: Arc::new(Mutex::new(receiver)),
        };
        let seen = Arc::clone(&shared.seen);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _ = connection(stream, shared).await;
                });
            }
        });
        Ok(Upstream {
            address,
            seen,
            steps,
            _runtime: runtime,
        })
    }

    /// Every head that arrived, raw.
    pub fn heads(&self) -> Vec<String> {
        self.seen.lock().expect("no holder panics").clone()
    }

    /// Lets `/step` send one more piece.
    pub fn step(&self, text: &str) {
        let _ = self.steps.send(Some(text.to_owned()));
    }

    /// Lets `/step` end its answer.
    pub fn finish(&self) {
        let _ = self.steps.send(None);
    }
}

struct Head {
    raw: String,
    path: String,
    length: usize,
    chunked: bool,
    upgrade: Option<String>,
}

async fn connection(mut stream: TcpStream, shared: Shared) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut buffer).await? {
        shared
            .seen
            .lock()
            .expect("no holder panics")
            .push(head.raw.clone());
        if head.upgrade.is_some() {
            return upgrade(stream, buffer, &head).await;
        }
        if head.path == "/sink" {
            std::future::pending::<()>().await;
        }
        let body = read_body(&mut stream, &mut buffer, &head).await?;
        answer(&mut stream, &shared, &head, &body).await?;
    }
    Ok(())
}

async fn answer(stream: &mut TcpStream, shared: &Shared, head: &Head, body: &[u8]) -> Result<()> {
    let path = head.path.as_str();
    if let Some(id) = path.strip_prefix("/id/") {
        let mut whole = id.as_bytes().to_vec();
        whole.extend_from_slice(body);
        return sized(stream, &whole).await;
    }
    if let Some(wait) = path.strip_prefix("/hold/") {
        tokio::time::sleep(Duration::from_millis(wait.parse()?)).await;
        return sized(stream, b"held").await;
    }
    match path {
        "/head" => sized(stream, head.raw.as_bytes()).await,
        "/version" => sized(stream, br#"{"major":"1","gitVersion":"v1.34.1"}"#).await,
        "/endless" => {
            chunked_head(stream, "application/octet-stream").await?;
            let piece = [b'x'; 16 * 1024];
            loop {
                chunk(stream, &piece).await?;
            }
        }
        "/trailed" => {
            chunked_head(stream, "application/grpc").await?;
            chunk(stream, b"body").await?;
            let end = b"0\r\ngrpc-status: 0\r\nCulvert-Error: forged\r\n\r\n";
            Ok(stream.write_all(end).await?)
        }
        "/step" => {
            chunked_head(stream, "text/event-stream").await?;
            let mut steps = shared.steps.lock().await;
            while let Some(Some(text)) = steps.recv().await {
                chunk(stream, text.as_bytes()).await?;
            }
            Ok(stream.write_all(b"0\r\n\r\n").await?)
        }
        _ => {
            let text = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
            Ok(stream.write_all(text).await?)
        }
    }
}

async fn sized(stream: &mut TcpStream, body: &[u8]) -> Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut whole = head.into_bytes();
    whole.extend_from_slice(body);
    Ok(stream.write_all(&whole).await?)
}

async fn chunked_head(stream: &mut TcpStream, kind: &str) -> Result<()> {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
    Ok(stream.write_all(head.as_bytes()).await?)
}

async fn chunk(stream: &mut TcpStream, data: &[u8]) -> Result<()> {
    let mut whole = format!("{:x}\r\n", data.len()).into_bytes();
    whole.extend_from_slice(data);
    whole.extend_from_slice(b"\r\n");
    Ok(stream.write_all(&whole).await?)
}

async fn upgrade(mut stream: TcpStream, rest: Vec<u8>, head: &Head) -> Result<()> {
    match head.path.as_str() {
        "/websocket" => websocket(stream, head).await,
        path if path == "/spdy" || path.ends_with("/exec") => {
            let answer = "HTTP/1.1 101 Switching Protocols\r\n\
                          Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
            stream.write_all(answer.as_bytes()).await?;
            stream.write_all(&rest).await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            Ok(write.shutdown().await?)
        }
        _ => {
            let answer =
                "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 7\r\n\r\nrefused";
            stream.write_all(answer.as_bytes()).await?;
            // Whatever follows on this connection is recorded: a smuggled head would show here.
            let mut rest = rest;
            let mut shown = [0; 1024];
            while let Ok(count @ 1..) = stream.read(&mut shown).await {
                rest.extend_from_slice(&shown[..count]);
            }
            Ok(())
        }
    }
}

async fn websocket(mut stream: TcpStream, head: &Head) -> Result<()> {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    let key = field(&head.raw, "sec-websocket-key").context("a websocket key")?;
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let proof = base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {proof}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    let mut socket = tokio_websockets::ServerBuilder::new().serve(stream);
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            futures_util::SinkExt::send(&mut socket, message).await?;
        }
    }
    Ok(())
}

/// Bytes that differ with their place.
pub fn pattern(length: u32) -> Vec<u8> {
    (0..length)
        .map(|place| place.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

/// A field's value in a raw head.
pub fn field<'a>(raw: &'a str, name: &str) -> Option<&'a str> {
    raw.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three
            .iter()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - three.len()));
        for place in 0..4 {
            let index = (word >> (18 - 6 * place)) & 63;
            text.push(if place > three.len() {
                '='
            } else {
                ALPHABET[index as usize].into()
            });
        }
    }
    text
}

async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<Head>> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let raw = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let path = raw.split(' ').nth(1).context("a target")?.to_owned();
    let length = field(&raw, "content-length")
        .map(str::parse)
        .transpose()?
        .unwrap_or(0);
    let chunked = field(&raw, "transfer-encoding").is_some();
    let upgrade = field(&raw, "upgrade").map(str::to_owned);
    Ok(Some(Head {
        raw,
        path,
        length,
        chunked,
        upgrade,
    }))
}

async fn read_body(stream: &mut TcpStream, buffer: &mut Vec<u8>, head: &Head) -> Result<Vec<u8>> {
    if !head.chunked {
        while buffer.len() < head.length {
            if stream.read_buf(buffer).await? == 0 {
                anyhow::bail!("a body cut at {} of {}", buffer.len(), head.length);
            }
        }
        return Ok(buffer.drain(..head.length).collect());
    }
    let mut body = Vec::new();
    loop {
        match httparse::parse_chunk_size(buffer) {
            Ok(httparse::Status::Complete((start, size))) => {
                let size = usize::try_from(size)?;
                while buffer.len() < start + size + 2 {
                    if stream.read_buf(buffer).await? == 0 {
                        anyhow::bail!("a chunked body cut");
                    }
                }
                body.extend_from_slice(&buffer[start..start + size]);
                buffer.drain(..start + size + 2);
                if size == 0 {
                    return Ok(body);
                }
            }
            Ok(httparse::Status::Partial) => {
                if stream.read_buf(buffer).await? == 0 {
                    anyhow::bail!("a chunked body cut");
                }
            }
            Err(_) => anyhow::bail!("bad chunk size"),
        }
    }
}

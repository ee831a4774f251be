//! A Radar connector in the field: the `yamux` crate over a WebSocket, no line of ours in it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_perf::testbed::{
    BlackHole, HUB_FOR_SITE, Layout, Namespace, NamespaceRuntime, Testbed, Way, wait_for,
};
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_websockets::{ClientBuilder, Message};

use crate::client::{self, metric};
use crate::hub::{DEV_TOKEN, PUBLIC, dataplane, internal, public, ready, write_clusters};
use crate::load::Load;
use crate::watched::Watched;

/// A connector that answers every request with `tag` in a header, and its path's last part.
pub struct Connector {
    runtime: Option<NamespaceRuntime>,
}

impl Connector {
    /// Dials the hub as W-2 says and serves until dropped or closed.
    pub fn connect(site: &Namespace, path: &str, token: &str, tag: &str) -> Result<Connector> {
        let runtime = site.runtime()?;
        let uri = format!("ws://{HUB_FOR_SITE}:{PUBLIC}{path}").parse::<http::Uri>()?;
        let (token, tag) = (format!("Bearer {token}"), tag.to_owned());
        let socket = runtime.run(async move {
            let field = |name: &'static str| http::HeaderName::from_static(name);
            let (socket, answer) = ClientBuilder::from_uri(uri)
                .add_header(field("authorization"), token.parse()?)?
                .add_header(field("x-radar-version"), "1.4.0".parse()?)?
                .add_header(field("x-radar-self-upgrade-available"), "false".parse()?)?
                .connect()
                .await?;
            ensure!(answer.status() == 101, "{}", answer.status());
            anyhow::Ok(socket)
        })?;
        runtime.spawn(async move {
            let (near, far) = tokio::io::duplex(256 * 1024);
            tokio::spawn(pump(socket, far));
            serve(near, tag).await;
        });
        Ok(Connector {
            runtime: Some(runtime),
        })
    }

    /// Ends at once, as a killed process would.
    pub fn close(mut self) {
        self.runtime.take();
    }
}

/// Copies between the WebSocket's messages and a byte stream.
async fn pump<T>(
    mut socket: tokio_websockets::WebSocketStream<T>,
    stream: tokio::io::DuplexStream,
) -> Result<()>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut read, mut write) = tokio::io::split(stream);
    let mut piece = vec![0; 4096];
    loop {
        tokio::select! {
            message = socket.next() => {
                let message = message.context("the hub closed")??;
                if message.is_binary() {
                    write.write_all(message.as_payload()).await?;
                } else if message.is_text() {
                    bail!("a text message from the hub");
                }
            }
            count = read.read(&mut piece) => {
                let count = count?;
                if count == 0 {
                    return Ok(());
                }
                socket.send(Message::binary(piece[..count].to_vec())).await?;
            }
        }
    }
}

async fn serve(stream: tokio::io::DuplexStream, tag: String) {
    let mut connection = yamux::Connection::new(
        stream.compat(),
        yamux::Config::default(),
        yamux::Mode::Server,
    );
    while let Some(Ok(stream)) =
        std::future::poll_fn(|context| connection.poll_next_inbound(context)).await
    {
        let tag = tag.clone();
        tokio::spawn(async move {
            let _ = request(stream, &tag).await;
        });
    }
}

async fn request(mut stream: yamux::Stream, tag: &str) -> Result<()> {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let count = stream.read(&mut piece).await?;
        ensure!(count > 0, "half a head");
        head.extend_from_slice(&piece[..count]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).context("a target")?;
    if path == "/sink" {
        // Never reads again: what the hub sends stays in its queues.
        std::future::pending::<()>().await;
    }
    if path == "/endless" {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await?;
        loop {
            stream.write_all(b"4\r\nmore\r\n").await?;
        }
    }
    let id = path.rsplit('/').next().unwrap_or_default();
    let body = if id == "head" { head.as_str() } else { id };
    let answer = format!(
        "HTTP/1.1 200 OK\r\nX-Tag: {tag}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.close().await?;
    Ok(())
}

fn bed() -> Result<(Testbed, Watched)> {
    let bed = Testbed::new(Layout::default())?;
    let clusters = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
    let dataplane = dataplane(&bed, "dataplane", &["--clusters", &clusters])?;
    Ok((bed, dataplane))
}

#[test]
fn a_connector_unmodified_serves_a_thousand_requests() -> Result<()> {
    if !ready("a_connector_unmodified_serves_a_thousand_requests", &[]) {
        return Ok(());
    }
    let (bed, _dataplane) = bed()?;
    let path = "/agent?cluster_id=dev&cluster_name=Development";
    let _connector = Connector::connect(&bed.site, path, DEV_TOKEN, "radar")?;
    wait_for(
        "the session to be in the table",
        Duration::from_secs(5),
        || {
            let answer = client::get(&bed.client, internal(), "/tunnel/dev/id/x").ok()?;
            (answer.status == 200).then_some(())
        },
    )?;
    let load = Load::start(&bed.client, internal(), "dev", 8, Duration::ZERO)?;
    load.wait_answered(1000, Duration::from_secs(30))?;
    let tally = load.finish();
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);

    let lines = [
        "X-Forwarded-User: root",
        "Authorization: Bearer stolen",
        "X-Radar-Version: 9",
    ];
    let answer = client::ask(
        &bed.client,
        internal(),
        "GET",
        "/tunnel/dev/head",
        &lines,
        b"",
    )?;
    let head = answer.text().to_ascii_lowercase();
    for word in ["stolen", "root", "x-radar-version"] {
        assert!(!head.contains(word), "{word} reached the connector: {head}");
    }
    Ok(())
}

#[test]
fn a_connector_that_claims_another_cluster_is_refused() -> Result<()> {
    if !ready("a_connector_that_claims_another_cluster_is_refused", &[]) {
        return Ok(());
    }
    let (bed, _dataplane) = bed()?;
    for (path, token) in [
        ("/agent?cluster_id=prod&cluster_name=x", DEV_TOKEN),
        ("/agent", "rhc_unknown_token_0000"),
    ] {
        let lines = [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            &format!("Authorization: Bearer {token}"),
            "X-Radar-Version: 1.4.0",
        ];
        let mut raw = format!("GET {path} HTTP/1.1\r\nHost: hub.test\r\n");
        for line in lines {
            raw.push_str(line);
            raw.push_str("\r\n");
        }
        raw.push_str("\r\n");
        let mut live = client::Live::open(&bed.site, public(), raw.as_bytes())?;
        live.read_text("\r\n\r\n", Duration::from_secs(5))?;
        let text = String::from_utf8_lossy(&live.received).into_owned();
        assert!(text.starts_with("HTTP/1.1 401 "), "{text}");
    }
    Ok(())
}

#[test]
fn a_silent_connector_is_found_within_45_seconds_with_writes_queued() -> Result<()> {
    if !ready(
        "a_silent_connector_is_found_within_45_seconds_with_writes_queued",
        &[],
    ) {
        return Ok(());
    }
    let (bed, _dataplane) = bed()?;
    let _connector = Connector::connect(&bed.site, "/agent", DEV_TOKEN, "radar")?;
    let _upload = QueuedUpload::start(&bed, internal(), "/tunnel/dev/sink")?;
    let hole = BlackHole::dig(&bed.hub, &bed.site, Way::Both, public())?;
    let start = Instant::now();
    wait_for(
        "the hub gives the session up",
        Duration::from_secs(60),
        || {
            let metrics = client::get(&bed.client, internal(), "/metrics")
                .ok()?
                .text();
            (metric(&metrics, "agents_connected") == 0.0).then_some(())
        },
    )?;
    println!(
        "compatible carrier, writes queued: given up after {:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(46),
        "{:?}",
        start.elapsed()
    );
    drop(hole);
    Ok(())
}

/// A client that keeps the hub's queues towards an agent full.
pub struct QueuedUpload {
    _runtime: NamespaceRuntime,
}

impl QueuedUpload {
    pub fn start(bed: &Testbed, to: SocketAddr, target: &str) -> Result<QueuedUpload> {
        let runtime = bed.client.runtime()?;
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: hub.test\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let sent = runtime.run(async move {
            let mut stream = tokio::net::TcpStream::connect(to).await?;
            stream.write_all(head.as_bytes()).await?;
            // Enough to fill the window of the stream and the buffers of the sockets.
            let chunk = [b"2000\r\n".as_slice(), &[b'u'; 0x2000], b"\r\n"].concat();
            let mut sent = 0u64;
            while let Ok(result) =
                tokio::time::timeout(Duration::from_secs(1), stream.write_all(&chunk)).await
            {
                result?;
                sent += 0x2000;
            }
            tokio::spawn(async move {
                let _hold = stream;
                std::future::pending::<()>().await;
            });
            anyhow::Ok(sent)
        })?;
        ensure!(
            sent > 256 * 1024,
            "only {sent} bytes were taken: nothing is queued"
        );
        Ok(QueuedUpload { _runtime: runtime })
    }
}

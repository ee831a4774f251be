//! Audited writes in the background, each with an id of its own, whatever becomes of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use culvert_perf::testbed::{Namespace, NamespaceRuntime, wait_for};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const ANSWER_MAX: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicU64,
    answered: AtomicU64,
}

/// Writes until it is finished.
pub struct Writes {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    runtime: NamespaceRuntime,
}

impl Writes {
    pub fn start(from: &Namespace, to: SocketAddr, connections: u64) -> Result<Writes> {
        let runtime = from.runtime()?;
        let shared = Arc::new(Shared::default());
        let tasks = (0..connections).map(|number| {
            let shared = Arc::clone(&shared);
            runtime.spawn(connection(shared, to, number))
        });
        Ok(Writes {
            tasks: tasks.collect(),
            shared,
            runtime,
        })
    }

    /// Waits until so many more were answered.
    pub fn wait_more(&self, count: u64, limit: Duration) -> Result<()> {
        let wanted = self.shared.answered.load(Ordering::Relaxed) + count;
        wait_for(&format!("{wanted} writes answered"), limit, || {
            (self.shared.answered.load(Ordering::Relaxed) >= wanted).then_some(())
        })
    }

    /// Waits for what is under way; how many were asked and how many answered with 200.
    pub fn finish(mut self) -> (u64, u64) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let tasks = std::mem::take(&mut self.tasks);
        self.runtime.run(async move {
            for task in tasks {
                let _ = tokio::time::timeout(2 * ANSWER_MAX, task).await;
            }
        });
        let Shared {
            asked, answered, ..
        } = &*self.shared;
        (
            asked.load(Ordering::Relaxed),
            answered.load(Ordering::Relaxed),
        )
    }
}

async fn connection(shared: Arc<Shared>, to: SocketAddr, connection: u64) {
    let mut sender = None;
    for number in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("0190163d-8694-7{connection:03x}-8000-{number:012x}");
        shared.asked.fetch_add(1, Ordering::Relaxed);
        let asked = tokio::time::timeout(ANSWER_MAX, write(&mut sender, to, &id)).await;
        if matches!(asked, Ok(Ok(200))) {
            shared.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            sender = None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub type Sender = SendRequest<Full<Bytes>>;

/// One write with this id; its status.
pub async fn write(sender: &mut Option<Sender>, to: SocketAddr, id: &str) -> Result<u16> {
    let usable = match sender {
        Some(open) => open.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (fresh, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        *sender = Some(fresh);
    }
    let open = sender.as_mut().context("just made")?;
    let request = http::Request::post(format!("/tunnel/dev/id/{id}"))
        .header("host", "hub.test")
        .header("x-request-id", id)
        .body(Full::new(Bytes::new()))?;
    let answer = open.send_request(request).await?;
    let status = answer.status().as_u16();
    answer.into_body().collect().await?;
    Ok(status)
}

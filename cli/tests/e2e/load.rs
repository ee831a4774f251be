//! Traffic in the background that counts every request: answered rightly, or failed and why.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use culvert_perf::testbed::{Namespace, NamespaceRuntime, wait_for};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Failures kept with their text.
const FAILURES_MAX: usize = 2_000;

/// What happened so far.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub answered: u64,
    pub failed: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// The longest time between two right answers of one connection.
    pub longest_gap: Duration,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
    longest_gap_us: AtomicU64,
}

impl Shared {
    fn fail(&self, text: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().expect("no holder panics");
        if failures.len() < FAILURES_MAX {
            failures.push(text);
        }
    }
}

/// Requests for `/tunnel/{cluster}/id/{unique}` on keep-alive connections until stopped.
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    runtime: NamespaceRuntime,
}

impl Load {
    /// `pause` lies between an answer and the next request of a connection.
    pub fn start(
        from: &Namespace,
        to: SocketAddr,
        cluster: &str,
        connections: usize,
        pause: Duration,
    ) -> Result<Load> {
        let runtime = from.runtime()?;
        let shared = Arc::new(Shared::default());
        let tasks = (0..connections)
            .map(|number| {
                let prefix = format!("/tunnel/{cluster}/id/{number}");
                runtime.spawn(connection(Arc::clone(&shared), to, prefix, pause))
            })
            .collect();
        Ok(Load {
            shared,
            tasks,
            runtime,
        })
    }

    /// The count at this moment.
    pub fn tally(&self) -> Tally {
        let shared = &self.shared;
        Tally {
            answered: shared.answered.load(Ordering::Relaxed),
            failed: shared.failed.load(Ordering::Relaxed),
            failures: shared.failures.lock().expect("no holder panics").clone(),
            longest_gap: Duration::from_micros(shared.longest_gap_us.load(Ordering::Relaxed)),
        }
    }

    /// Waits until so many requests were answered rightly.
    pub fn wait_answered(&self, count: u64, limit: Duration) -> Result<()> {
        wait_for(&format!("{count} answers"), limit, || {
            (self.tally().answered >= count).then_some(())
        })
        .with_context(|| format!("{:?}", self.tally()))
    }

    /// Waits for the requests under way and gives the final count.
    pub fn finish(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        let tasks = std::mem::take(&mut self.tasks);
        self.runtime.run(async move {
            for task in tasks {
                let _ = tokio::time::timeout(ANSWER_MAX, task).await;
            }
        });
        self.tally()
    }
}

async fn connection(shared: Arc<Shared>, to: SocketAddr, prefix: String, pause: Duration) {
    let mut sender = None;
    let mut last = Instant::now();
    for number in 0u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let path = format!("{prefix}-{number}");
        let asked = tokio::time::timeout(ANSWER_MAX, ask(&mut sender, to, &path)).await;
        match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {ANSWER_MAX:?}"))) {
            Ok(()) => {
                shared.answered.fetch_add(1, Ordering::Relaxed);
                let gap = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
                shared.longest_gap_us.fetch_max(gap, Ordering::Relaxed);
                last = Instant::now();
            }
            Err(error) => {
                sender = None;
                shared.fail(format!("{path}: {error:#}"));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

type Sender = SendRequest<Empty<Bytes>>;

/// One request on the open connection, or on a new one where the last answer closed it.
async fn ask(sender: &mut Option<Sender>, to: SocketAddr, path: &str) -> Result<()> {
    let usable = match sender {
        Some(open) => open.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        *sender = Some(connect(to).await.context("connecting")?);
    }
    let open = sender.as_mut().context("just made")?;
    let request = http::Request::get(path)
        .header("host", "hub.test")
        .body(Empty::<Bytes>::new())?;
    let response = open.send_request(request).await.context("sending")?;
    let status = response.status();
    let reason = response.headers().get("culvert-error").cloned();
    let body = response
        .into_body()
        .collect()
        .await
        .context("reading the body")?
        .to_bytes();
    ensure!(
        status == 200,
        "{status} {reason:?} {:?}",
        String::from_utf8_lossy(&body)
    );
    let id = path.rsplit('/').next().unwrap_or_default();
    ensure!(body == id.as_bytes(), "MIXED UP: asked {id}, got {body:?}");
    Ok(())
}

async fn connect(to: SocketAddr) -> Result<Sender> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (sender, driver) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    Ok(sender)
}

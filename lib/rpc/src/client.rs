//! A data plane's end of the link.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_net::crypto;
use culvert_net::tls::ClientTls;
use culvert_proto::id::Generation;
use culvert_proto::limits::STATE_BYTES_MAX;
use culvert_proto::update::{Report, RotatedFact, Rotation, SignedFrame, Snapshot, Update};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::address::{Address, PeerCheck};
use crate::certify::Certifier;
use crate::generated::Up;
use crate::generated::state_client::StateClient;
use crate::inbox::{Inbox, Taken};
use crate::ship::{Outbox, ship};
use crate::trust::Trust;

/// Events that wait for the data plane; the link stands still above it.
pub const EVENTS_MAX: usize = 16;
/// Room beside a body in its message.
const FRAME_BYTES_MAX: usize = 1024;
/// Connecting and each call, once and for all.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Control beats every 5 s; a link silent for this long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(15);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A link that lived this long starts over at the first backoff.
const HEALTHY: Duration = Duration::from_secs(30);
/// Stored tokens that are repeated in each report.
const ROTATED_MAX: usize = 256;
/// Messages on their way up.
const UPS_MAX: usize = 2;

/// How to reach control and what to believe.
pub struct LinkConfig {
    /// Where control's state link is.
    pub address: Address,
    /// Who may serve a Unix socket.
    pub peer: PeerCheck,
    /// Roots and client certificate for [`Address::Tls`]; its ALPN is `h2`.
    pub tls: Option<Arc<ClientTls>>,
    /// Whose signatures are believed.
    pub trust: Trust,
    /// The state this data plane starts with, from its copy on disk.
    pub held: Option<Held>,
    /// Audit records that wait for control.
    pub outbox: Option<Arc<dyn Outbox>>,
}

/// The state a data plane holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whose state it is.
    pub hub_id: String,
    /// Which version of it.
    pub generation: Generation,
}

/// What came down the link, verified and in order. No `Debug`: it may hold a token.
pub enum Event {
    /// Control answered; state follows when there is news.
    Connected,
    /// The whole state.
    Snapshot {
        /// Decoded.
        snapshot: Snapshot,
        /// As it came, for the copy on disk.
        signed: SignedFrame,
    },
    /// The next change.
    Update {
        /// Decoded; its generation follows that of the event before.
        update: Update,
        /// As it came, for the copy on disk.
        signed: SignedFrame,
    },
    /// A token that the agents of a cluster should store. Keep it in memory only.
    Rotation(Rotation),
    /// The link is down; it comes back by itself.
    Disconnected {
        /// What was seen.
        why: String,
    },
}

/// A data plane's place in control's history. Ends when dropped.
pub struct Subscription {
    events: mpsc::Receiver<Event>,
    reporter: Reporter,
    certifier: Certifier,
    task: JoinHandle<()>,
}

/// The way up; clones share it.
#[derive(Clone)]
pub struct Reporter {
    report: watch::Sender<Bytes>,
    rotated: Arc<Mutex<VecDeque<RotatedFact>>>,
    need_snapshot: watch::Sender<u64>,
}

impl Subscription {
    /// Starts to connect, on the current tokio runtime.
    #[must_use]
    pub fn start(config: LinkConfig) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let reporter = Reporter {
            report: watch::Sender::new(Bytes::new()),
            rotated: Arc::default(),
            need_snapshot: watch::Sender::new(0),
        };
        let inbox = Inbox::new(config.trust.clone(), config.held.clone());
        let (channel, lent) = watch::channel(None);
        let link = Link {
            config,
            inbox,
            events: sender,
            reporter: reporter.clone(),
            channel,
        };
        Self {
            events,
            reporter,
            certifier: Certifier::new(lent),
            task: tokio::spawn(link.run()),
        }
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// The way up.
    #[must_use]
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// Asks control for certificates.
    #[must_use]
    pub fn certifier(&self) -> Certifier {
        self.certifier.clone()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reporter {
    /// Sends `report`. One that has not left yet is replaced: the newest wins.
    /// Stored tokens are repeated in later reports, so that none is lost with a link.
    pub fn report(&self, report: &Report) {
        let mut report = report.clone();
        let mut rotated = self.rotated.lock();
        for fact in report.rotated.drain(..) {
            if !rotated.contains(&fact) {
                rotated.push_back(fact);
            }
        }
        while rotated.len() > ROTATED_MAX {
            rotated.pop_front();
        }
        report.rotated.extend(rotated.iter().cloned());
        self.report.send_replace(report.encode());
    }

    /// Asks for the whole state, because an update could not be applied.
    pub fn need_snapshot(&self) {
        self.need_snapshot.send_modify(|asked| *asked += 1);
    }
}

/// The task behind a subscription.
struct Link {
    config: LinkConfig,
    inbox: Inbox,
    events: mpsc::Sender<Event>,
    reporter: Reporter,
    /// While it is up.
    channel: watch::Sender<Option<Channel>>,
}

impl Link {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let started = tokio::time::Instant::now();
            let why = match self.connected().await {
                Ok(()) => return,
                Err(why) => why,
            };
            self.channel.send_replace(None);
            if started.elapsed() >= HEALTHY {
                failures = 0;
            }
            if self.events.send(Event::Disconnected { why }).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff(failures, crypto::random_bytes())).await;
            failures += 1;
        }
    }

    /// Holds one connection; `Ok` when the data plane is gone.
    async fn connected(&mut self) -> Result<(), String> {
        let channel = timeout(CALL_DEADLINE, self.connect())
            .await
            .map_err(|_| format!("{} did not answer within 5 s", self.config.address))??;
        // Apart from the subscription: state does not wait for records, nor fail with them.
        let outbox = self.config.outbox.clone();
        let shipping = outbox.map(|outbox| tokio::spawn(ship(channel.clone(), outbox)));
        let _shipping = shipping.map(AbortOnDrop);
        let (ups, outbound) = mpsc::channel(UPS_MAX);
        let mut asked = self.reporter.need_snapshot.subscribe();
        let mut reports = self.reporter.report.subscribe();
        asked.mark_unchanged();
        let _ = ups.try_send(self.inbox.up(Bytes::new()));
        let lent = channel.clone();
        let mut client =
            StateClient::new(channel).max_decoding_message_size(STATE_BYTES_MAX + FRAME_BYTES_MAX);
        let call = client.subscribe(tokio_stream::wrappers::ReceiverStream::new(outbound));
        let mut inbound = timeout(CALL_DEADLINE, call)
            .await
            .map_err(|_| "control did not accept the subscription within 5 s".to_owned())?
            .map_err(|status| said(&status))?
            .into_inner();
        self.channel.send_replace(Some(lent));
        if self.events.send(Event::Connected).await.is_err() {
            return Ok(());
        }
        reports.mark_changed();
        loop {
            let up = tokio::select! {
                message = timeout(SILENCE_MAX, inbound.message()) => {
                    let message = message
                        .map_err(|_| format!("no beat from control for {SILENCE_MAX:?}"))?
                        .map_err(|status| said(&status))?
                        .ok_or_else(|| "control ended the subscription".to_owned())?;
                    match self.inbox.take(message).map_err(|refused| refused.to_string())? {
                        Taken::Nothing => continue,
                        Taken::Missed => self.inbox.up(Bytes::new()),
                        Taken::Event(event) => {
                            if self.events.send(*event).await.is_err() {
                                return Ok(());
                            }
                            self.inbox.up(Bytes::new())
                        }
                    }
                }
                Ok(()) = reports.changed() => {
                    let report = reports.borrow_and_update().clone();
                    if report.is_empty() {
                        continue;
                    }
                    self.inbox.up(report)
                }
                Ok(()) = asked.changed() => {
                    self.inbox.ask();
                    self.inbox.up(Bytes::new())
                }
                () = self.events.closed() => return Ok(()),
            };
            send(&ups, up).await?;
        }
    }

    async fn connect(&self) -> Result<Channel, String> {
        let address = self.config.address.clone();
        let (peer, tls) = (self.config.peer, self.config.tls.clone());
        let connector = tower::service_fn(move |_: http::Uri| {
            let (address, tls) = (address.clone(), tls.clone());
            async move { open(&address, peer, tls).await }
        });
        // The connector knows where to go; the URI only fills the request line.
        Endpoint::from_static("http://control.culvert.invalid")
            .connect_with_connector(connector)
            .await
            .map_err(|why| format!("{}: {}", self.config.address, root_cause(&why)))
    }
}

/// A task that ends with the link it belongs to.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

async fn open(
    address: &Address,
    peer: PeerCheck,
    tls: Option<Arc<ClientTls>>,
) -> io::Result<TokioIo<Box<dyn Io>>> {
    let io: Box<dyn Io> = match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            peer.check(&stream).map_err(io::Error::other)?;
            Box::new(stream)
        }
        Address::Tls { host, port } => {
            let tls = tls.ok_or_else(|| {
                io::Error::other("a https link needs a client certificate and a CA")
            })?;
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            culvert_net::socket::set_leg_options(&stream)?;
            Box::new(tls.connect(host, stream).await.map_err(io::Error::other)?)
        }
    };
    Ok(TokioIo::new(io))
}

async fn send(ups: &mpsc::Sender<Up>, up: Up) -> Result<(), String> {
    match timeout(SILENCE_MAX, ups.send(up)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("control closed the way up".to_owned()),
        Err(_) => Err(format!("control took no report for {SILENCE_MAX:?}")),
    }
}

pub(crate) fn said(status: &Status) -> String {
    format!("control said {:?}: {}", status.code(), status.message())
}

fn root_cause(why: &dyn std::error::Error) -> String {
    let mut cause = why;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Full jitter: anywhere between 0 and the doubled ceiling.
pub(crate) fn backoff(failures: u32, random: [u8; 4]) -> Duration {
    let ceiling = BACKOFF_FIRST
        .saturating_mul(1 << failures.min(16))
        .min(BACKOFF_MAX);
    ceiling.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::id::InstanceId;
    use culvert_proto::token::Digest;

    #[test]
    fn a_stored_token_is_repeated_once_in_each_later_report() {
        let reporter = Reporter {
            report: watch::Sender::new(Bytes::new()),
            rotated: Arc::default(),
            need_snapshot: watch::Sender::new(0),
        };
        let fact = |n: u32| RotatedFact {
            cluster: "a".parse().unwrap(),
            instance: InstanceId([1; 16]),
            digest: Digest(crypto::sha256(&n.to_be_bytes())),
        };
        let sent = || Report::decode(&reporter.report.borrow()).unwrap().rotated;
        reporter.report(&Report {
            rotated: vec![fact(1)],
            ..Report::default()
        });
        reporter.report(&Report {
            rotated: vec![fact(1), fact(2)],
            ..Report::default()
        });
        reporter.report(&Report::default());
        assert_eq!(sent(), [fact(1), fact(2)]);
        reporter.report(&Report {
            rotated: (0..1000).map(fact).collect(),
            ..Report::default()
        });
        assert_eq!(sent().len(), ROTATED_MAX);
    }

    #[test]
    fn backoff_grows_to_its_ceiling_and_no_further() {
        assert_eq!(backoff(0, [0; 4]), Duration::ZERO);
        assert_eq!(backoff(0, [0xff; 4]), BACKOFF_FIRST);
        assert_eq!(backoff(3, [0xff; 4]), BACKOFF_FIRST * 8);
        assert_eq!(backoff(u32::MAX, [0xff; 4]), BACKOFF_MAX);
    }
}

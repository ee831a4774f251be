//! Data channels of one session: opened with the hub's tickets, parked until a
//! client comes, or dialled for one open (docs/protocol.md, P14).

mod offer;
mod parked;
pub mod reach;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_net::carrier::Carrier;
use culvert_net::crypto::hmac_sha256;
use culvert_net::dial::{Dialer, HubUrl, Link};
use culvert_proto::channel::{ALPN, Form, PREFACE_BYTES, Preface};
use culvert_proto::control::{ChannelFail, Grant, Ticket, Tickets};
use culvert_proto::id::Epoch;
use culvert_proto::open::DialCode;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::reach::Reach;
use crate::flow::Flows;

/// Channels of one session that are being opened for tickets or are parked. The hub keeps 64 of
/// each form at most.
pub const CHANNELS_MAX: usize = 256;
/// Longest life of a ticket that is believed.
const TICKET_LIFE_MAX: Duration = Duration::from_secs(30);

/// What all sessions of a process need to open channels.
pub struct Opener {
    dialer: Arc<Dialer>,
    reach: Mutex<Reach>,
    began: Instant,
    flows: Arc<Flows>,
}

/// Where a session's hub answers.
#[derive(Clone)]
pub struct Way {
    /// The hub's address as it was configured or advised.
    pub url: HubUrl,
    /// Where the carrier's TCP connection goes.
    pub peer: SocketAddr,
    /// The session's.
    pub epoch: Epoch,
}

/// What the hub granted last; nothing before its first word.
#[derive(Default)]
pub struct Granted(RwLock<Option<Arc<Grant>>>);

/// The channels of one session.
pub struct Channels {
    opener: Arc<Opener>,
    way: Way,
    carrier: Carrier,
    granted: Arc<Granted>,
    places: Arc<Semaphore>,
    over: CancellationToken,
}

/// Why there is no channel.
#[derive(Debug)]
struct Failed {
    /// For the hub.
    code: DialCode,
    /// For the metric.
    word: &'static str,
    /// What was seen and what to do.
    text: String,
    /// It tells something about the path to the hub.
    is_path: bool,
}

impl Granted {
    /// The grant, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Grant>> {
        self.0.read().clone()
    }

    /// Replaces it; gives back what held before.
    pub fn set(&self, grant: Grant) -> Option<Arc<Grant>> {
        self.0.write().replace(Arc::new(grant))
    }
}

impl Opener {
    /// An opener that dials as carriers are dialled.
    #[must_use]
    pub fn new(dialer: Arc<Dialer>, flows: Arc<Flows>) -> Self {
        Self {
            dialer,
            reach: Mutex::default(),
            began: Instant::now(),
            flows,
        }
    }
}

impl Channels {
    /// The channels of the session on `carrier`; none is opened yet.
    #[must_use]
    pub fn new(opener: Arc<Opener>, way: Way, carrier: Carrier, granted: Arc<Granted>) -> Self {
        Self {
            opener,
            way,
            carrier,
            granted,
            places: Arc::new(Semaphore::new(CHANNELS_MAX)),
            over: CancellationToken::new(),
        }
    }

    /// The session is over or about to be: parked channels end, flows go on.
    pub fn retire(&self) {
        self.over.cancel();
    }

    /// Opens a channel for each ticket, all at the same time.
    pub fn open_all(self: &Arc<Self>, tickets: Tickets) {
        let life = Duration::from_secs(tickets.ttl_s.into()).min(TICKET_LIFE_MAX);
        for ticket in tickets.tickets {
            let channels = self.clone();
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                let text = format!("{CHANNELS_MAX} channels of this session are open already");
                self.give_back(&ticket, &Failed::of(DialCode::Overload, "overload", text));
                continue;
            };
            tokio::spawn(async move {
                let parked = channels.park(&ticket, tickets.form, life);
                if let Err(why) = Box::pin(parked).await {
                    channels.give_back(&ticket, &why);
                }
                drop(place);
            });
        }
    }

    fn give_back(&self, ticket: &Ticket, why: &Failed) {
        self.failed(why);
        let fail = ChannelFail {
            id: ticket.id,
            code: why.code,
            reason: why.text.clone(),
        };
        if let Err(error) = self.carrier.channel_fail(fail) {
            tracing::debug!(%error, "the hub did not hear that a channel failed");
        }
    }

    /// A connection of `form` to the data plane of this session. The preface is not shown yet.
    async fn connect(&self, form: Form, limit: Duration) -> Result<Link<TcpStream>, Failed> {
        let Way { url, peer, .. } = &self.way;
        if self.is_barred() {
            let text = format!("channels to {url} failed before; they are tried again later");
            return Err(Failed::of(DialCode::Unreachable, "barred", text));
        }
        if !self.opener.flows.services().use_form(form) {
            let text = "no service here may be served on a channel without TLS; use --sealed-service or --allow-plaintext-data-channels";
            return Err(Failed::of(DialCode::NotAllowed, "form", text.to_owned()));
        }
        let alpn = (form == Form::Tls).then_some(ALPN);
        if alpn.is_some() && !url.is_tls() {
            let text = format!(
                "{url} has no TLS for a channel to run in; use a wss:// address, or --allow-plaintext-data-channels on both sides"
            );
            return Err(Failed::of(DialCode::Tls, "form", text));
        }
        match timeout(limit, self.opener.dialer.link_again(url, *peer, alpn)).await {
            Ok(Ok(linked)) => {
                let spoken = linked.tls.and_then(|tls| tls.alpn);
                if spoken.as_deref() == alpn {
                    return Ok(linked.link);
                }
                let text = format!(
                    "what answers at {peer} does not speak culvert-data/1; let the hub's TLS reach it unopened"
                );
                Err(Failed::of_path(DialCode::Tls, "alpn", text))
            }
            Ok(Err(why)) => {
                let word = why.step().as_str();
                Err(Failed::of_path(
                    DialCode::Unreachable,
                    word,
                    why.to_string(),
                ))
            }
            Err(_) => {
                let text = format!("{peer} did not let a channel in within {limit:?}");
                Err(Failed::of_path(DialCode::Timeout, "timeout", text))
            }
        }
    }

    fn preface(&self, ticket: &Ticket, form: Form) -> [u8; PREFACE_BYTES] {
        let preface = Preface {
            form,
            ticket: ticket.id,
            epoch: self.way.epoch,
        };
        preface.encode(&hmac_sha256(&ticket.key, &preface.signed_part()))
    }

    fn is_barred(&self) -> bool {
        let now = self.opener.began.elapsed();
        self.opener.reach.lock().is_barred(&self.way.url, now)
    }

    fn opened(&self, form: Form) {
        self.opener.flows.metrics().channel_opened(form);
        self.opener.reach.lock().opened(&self.way.url);
    }

    fn failed(&self, why: &Failed) {
        self.opener.flows.metrics().channel_failed(why.word);
        tracing::debug!(reason = why.word, seen = why.text, "no data channel");
        if !why.is_path {
            return;
        }
        let now = self.opener.began.elapsed();
        let barred = self.opener.reach.lock().failed(&self.way.url, now);
        if let Some(wait) = barred {
            tracing::warn!(
                hub = %self.way.url, reason = why.word, seen = why.text, retry_in_s = wait.as_secs(),
                "data channels do not reach the hub: connections run on the carrier until the next try; let TCP connections to the hub's address through unopened"
            );
        }
    }
}

impl Failed {
    fn of(code: DialCode, word: &'static str, text: String) -> Self {
        Self {
            code,
            word,
            text,
            is_path: false,
        }
    }

    fn of_path(code: DialCode, word: &'static str, text: String) -> Self {
        Self {
            is_path: true,
            ..Self::of(code, word, text)
        }
    }
}

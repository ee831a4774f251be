//! One relayed TCP connection: from who asks for it to its end.
//!
//! `open` finds the agent's leg, this file joins the two, `lives` cuts what lost
//! its right.

pub mod lives;
mod open;
mod told;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpStream;

use culvert_engine::legs::Leg;
use culvert_engine::{Join, Joined, Live, Summary};
use culvert_net::crypto::random_bytes;
use culvert_net::relay::{Early, End, relay_told};
use culvert_observe::{ConnId, Offsets};
use culvert_proto::close::CloseReason;
use culvert_proto::id::{RequestId, SessionKey};
use culvert_proto::token::Digest;

use crate::accept::Place;
use crate::ingress::Refusal;
use crate::observe::socket::{Copied, Identity};
use crate::observe::{Watched, pair};
use crate::plane::{Plane, Work, unix_ms};
use crate::routes::Way;
use crate::sessions::PairSlot;
use crate::table::RequestSlot;
use lives::{Asked, Flow, Registered, Shown};
use open::{Opened, ServiceLeg};

/// What led a client to a service, and may be taken away again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A port forward.
    Tcp(SocketAddr),
    /// A server name, on the public listener or an address of its own.
    Sealed {
        /// The address.
        at: Option<SocketAddr>,
        /// The name.
        name: Box<str>,
    },
    /// A person's token.
    Forward {
        /// Of the token.
        digest: Digest,
        /// Whose it is.
        principal: Arc<str>,
    },
}

impl Origin {
    /// The word in logs and labels.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Sealed { .. } => "sealed",
            Self::Forward { .. } => "forward",
        }
    }
}

/// A client that wants to be joined to a service.
pub struct Ask {
    plane: Arc<Plane>,
    origin: Origin,
    way: Way,
    peer: SocketAddr,
    early: Bytes,
    id: RequestId,
    conn: ConnId,
    began: Instant,
}

/// Everything that a flow holds until it ends.
struct Life {
    plane: Arc<Plane>,
    registered: Registered,
    pair: Option<PairSlot>,
    _slot: RequestSlot,
    _work: Work,
    id: RequestId,
    datapath: &'static str,
    /// The agent's end of the data channel.
    channel: Option<SocketAddr>,
    /// Bytes of the client that went along with the open.
    sent: u64,
}

/// A flow whose service is connected.
pub struct Begun {
    life: Life,
    opened: Opened,
}

impl Ask {
    /// `early` was read from the client.
    pub fn new(
        plane: &Arc<Plane>,
        origin: Origin,
        way: Way,
        peer: SocketAddr,
        early: Bytes,
    ) -> Self {
        Self {
            plane: plane.clone(),
            origin,
            way,
            peer,
            early,
            id: RequestId::v7(unix_ms(), random_bytes()),
            conn: plane.metrics.sight.number(),
            began: Instant::now(),
        }
    }

    /// What the client's connection turned out to be.
    pub fn identity(&self) -> Identity {
        let table = self.plane.table.load();
        let cluster = table.get(self.way.cluster.as_str());
        let seen = cluster.map(|cluster| cluster.metrics.seen.clone());
        Identity {
            seen: seen.unwrap_or_else(|| self.plane.metrics.sight.nobody()),
            leg: Leg::Client,
            conn: Some(self.conn),
        }
    }

    /// As the request that asked is called.
    #[must_use]
    pub fn called(mut self, id: RequestId) -> Self {
        self.id = id;
        self
    }

    /// Connects the service, through an agent.
    ///
    /// # Errors
    /// Why the client cannot be served.
    pub async fn begin(self) -> Result<Begun, Refusal> {
        let mode = self.origin.mode();
        let (plane, peer, id) = (self.plane.clone(), self.peer, self.id);
        let (cluster, service) = (self.way.cluster.clone(), self.way.service.clone());
        let begun = self.connect().await;
        if let Err(refusal) = &begun {
            let labels = [mode, refusal.reason.as_str()];
            plane.metrics.flows.refused.with_label_values(&labels).inc();
            tracing::debug!(
                mode, %cluster, %service, %peer, request_id = %id, reason = %refusal.reason,
                detail = refusal.detail, "flow refused"
            );
        }
        begun
    }

    async fn connect(self) -> Result<Begun, Refusal> {
        let work = self.plane.begin();
        let work = work.ok_or_else(|| Refusal::new(CloseReason::Draining, ""))?;
        let table = self.plane.table.load_full();
        let cluster = table.get(self.way.cluster.as_str()).cloned();
        let cluster = cluster.ok_or_else(|| Refusal::new(CloseReason::UnknownCluster, ""))?;
        if !cluster.state.enabled {
            return Err(Refusal::new(CloseReason::Disabled, ""));
        }
        let slot = cluster.admit()?;
        self.plane.limit_rate()?;
        let asked = Asked {
            origin: self.origin,
            conn: self.conn,
            peer: self.peer,
            began: self.began,
        };
        let registered = self
            .plane
            .flows
            .register(&self.plane, cluster, self.way.service, asked);
        let flow = registered.flow().clone();
        let wanted = open::Wanted {
            flow: &flow,
            id: self.id,
            peer: self.peer,
            early: self.early,
        };
        let opened = tokio::select! {
            opened = open::open(&self.plane, wanted) => opened?,
            reason = flow.cut() => return Err(Refusal::new(reason, "")),
        };
        let seconds = self.began.elapsed().as_secs_f64();
        let labels: [&str; 0] = [];
        let metrics = &self.plane.metrics.flows;
        metrics
            .open_seconds
            .with_label_values(&labels)
            .observe(seconds);
        Ok(Begun {
            life: Life {
                plane: self.plane,
                registered,
                pair: None,
                _slot: slot,
                _work: work,
                id: self.id,
                datapath: "stream",
                channel: opened.peer,
                sent: opened.sent,
            },
            opened,
        })
    }
}

impl Begun {
    /// Joins a plain socket with the service, and returns at once.
    pub fn join_socket(self, client: TcpStream, watched: Watched, place: Place) {
        match self.opened.leg {
            ServiceLeg::Plain(_) => self.splice(client, watched, place),
            ServiceLeg::Tls(ref channel) => {
                // Where the channel's socket lives, so that no byte wakes two threads.
                let home = channel.home.clone();
                if let Ok(client) = client.into_std() {
                    home.spawn(async move {
                        if let Ok(client) = TcpStream::from_std(client) {
                            self.copy_socket(client, watched, place).await;
                        }
                    });
                }
            }
            ServiceLeg::Stream(..) => {
                drop(tokio::spawn(self.copy_socket(client, watched, place)));
            }
        }
    }

    async fn copy_socket(self, client: TcpStream, watched: Watched, place: Place) {
        let mut client = Copied::new(client, watched);
        let reason = self.copy(&mut client.io, Bytes::new()).await;
        client.ends(reason);
        drop((client, place));
    }

    /// Two plain sockets: the engine's.
    fn splice(mut self, client: TcpStream, watched: Watched, place: Place) {
        let ServiceLeg::Plain(channel) = self.opened.leg else {
            return;
        };
        self.life.pair = Some(self.opened.pair);
        self.life.datapath = "splice";
        let (Ok(client), Ok(service)) = (client.into_std(), channel.stream.into_std()) else {
            return self.life.ended(CloseReason::Internal, [0; 2]);
        };
        // Of the client nothing was answered, and what it said was sent but for the rest.
        let of_client = Offsets {
            consumed: self.opened.sent,
            written: 0,
        };
        let measured = pair::Place::default();
        let (both, used) = ([watched, channel.watched], [of_client, channel.used]);
        let watch = pair::Watch::new(both, Some(used), measured.clone());
        let join = Join {
            client: client.into(),
            service: service.into(),
            from_client: self.opened.from_client.to_vec(),
            from_service: self.opened.from_service.to_vec(),
            cluster: self.life.flow().cluster.number(),
        };
        match self.life.plane.engine.join_observed(join, Some(watch)) {
            Ok(joined) => {
                self.life.flow().relays(Shown {
                    live: joined.live.clone(),
                    sent: self.opened.sent,
                    datapath: "splice",
                    channel: self.life.channel,
                    pair: Some((joined.handle(), measured)),
                });
                self.life.counted();
                tokio::spawn(follow(self.life, joined, (place, channel.place)));
            }
            Err(reason) => {
                self.life.plane.metrics.engine.refused(reason);
                self.life.ended(reason, [0; 2]);
            }
        }
    }

    /// Anything else: copied on this thread, to its end. `from_client` was read
    /// since the ask.
    pub async fn copy<C: End>(mut self, client: &mut C, from_client: Bytes) -> CloseReason {
        let to_service = match self.opened.from_client.is_empty() {
            true => from_client,
            false => [&self.opened.from_client[..], &from_client].concat().into(),
        };
        let early = Early {
            to_service,
            to_client: std::mem::take(&mut self.opened.from_service),
        };
        self.life.pair = Some(self.opened.pair);
        let life = &mut self.life;
        match self.opened.leg {
            ServiceLeg::Plain(channel) => {
                life.datapath = "copy";
                let mut service = Copied::new(channel.stream, channel.watched);
                let reason = life.copy(client, &mut service.io, early).await;
                service.ends(reason);
                drop((service, channel.place));
                reason
            }
            ServiceLeg::Tls(mut channel) => {
                life.datapath = "copy";
                life.copy(client, &mut channel.stream, early).await
            }
            ServiceLeg::Stream(mut stream, _slot) => {
                let reason = life.copy(client, &mut stream, early).await;
                if reason != CloseReason::Finished {
                    stream.reset(reason);
                }
                reason
            }
        }
    }

    /// The client is gone before it could be joined.
    pub fn dropped(self, reason: CloseReason) {
        self.life.ended(reason, [0; 2]);
    }
}

impl Life {
    fn flow(&self) -> &Arc<Flow> {
        self.registered.flow()
    }

    fn counted(&self) {
        let labels = [self.flow().origin.mode(), self.datapath];
        let flows = &self.plane.metrics.flows;
        flows.begun.with_label_values(&labels).inc();
    }

    async fn copy<C: End, S: End>(
        &self,
        client: &mut C,
        service: &mut S,
        early: Early,
    ) -> CloseReason {
        self.counted();
        let live = Arc::new(Live::default());
        self.flow().relays(Shown {
            live: live.clone(),
            sent: self.sent,
            datapath: self.datapath,
            channel: self.channel,
            pair: None,
        });
        let metrics = &self.flow().cluster.metrics;
        let joined = Instant::now();
        let mut bytes = [0; 2];
        let tell = |to_service, to_client| {
            if to_client > 0 && bytes[1] == 0 {
                let first_ns = u64::try_from(joined.elapsed().as_nanos()).unwrap_or(u64::MAX);
                live.first_byte_ns.store(first_ns.max(1), Ordering::Relaxed);
            }
            bytes[0] += to_service;
            bytes[1] += to_client;
            live.to_service.store(bytes[0], Ordering::Relaxed);
            live.to_client.store(bytes[1], Ordering::Relaxed);
            metrics.bytes_to_service.inc_by(to_service);
            metrics.bytes_to_client.inc_by(to_client);
            if let Some(legs) = metrics.legs.as_ref().filter(|_| self.channel.is_some()) {
                legs.delivered(to_service, to_client);
            }
        };
        // Cut, both are dropped as they are armed.
        let reason = tokio::select! {
            relayed = relay_told(client, service, early, tell) => relayed.reason,
            reason = self.flow().cut() => reason,
        };
        self.ended(reason, bytes);
        reason
    }

    /// The one summary of a flow: {bytes each way, duration, datapath, reason}.
    fn ended(&self, reason: CloseReason, [to_service, to_client]: [u64; 2]) {
        let metrics = &self.plane.metrics;
        metrics
            .relays_closed
            .with_label_values(&[reason.as_str()])
            .inc();
        let flow = self.flow();
        let to_service = to_service + flow.sent();
        self.told(flow, reason, [to_service, to_client]);
        let session = flow.session().as_ref().map(SessionKey::to_string);
        tracing::debug!(
            mode = flow.origin.mode(), cluster = %flow.cluster.state.id, service = %flow.service,
            peer = %flow.peer, request_id = %self.id, session, to_service, to_client,
            duration_s = flow.began.elapsed().as_secs_f64(), datapath = self.datapath, %reason,
            "flow ended"
        );
    }
}

/// Waits for the end of a pair, and ends it when it loses its right.
async fn follow(life: Life, mut joined: Joined, places: (Place, Place)) {
    let mut is_cut = false;
    let ended = loop {
        tokio::select! {
            ended = &mut joined.ended => break ended,
            reason = life.flow().cut(), if !is_cut => {
                is_cut = true;
                joined.cut(reason);
            }
        }
    };
    // An engine thread that ended has told nothing, and reset both.
    let broken = |_| Summary {
        reason: CloseReason::Internal,
        to_service: 0,
        to_client: 0,
        spliced: 0,
        life_ms: 0,
    };
    let summary = ended.unwrap_or_else(broken);
    life.flow().count();
    life.ended(summary.reason, [summary.to_service, summary.to_client]);
    drop(places);
}

/// Longest wait for a service, ms on the wire.
const OPEN_MAX: Duration = Duration::from_millis(culvert_proto::limits::DIAL_ANSWER_TIMEOUT_MS);

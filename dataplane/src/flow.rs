//! One relayed TCP connection: from who asks for it to its end.
//!
//! `open` finds the agent's leg, this file joins the two, `lives` cuts what lost
//! its right.

pub mod lives;
mod open;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpStream;

use culvert_engine::{Join, Joined, Summary};
use culvert_net::crypto::random_bytes;
use culvert_net::relay::{Early, End, relay_told};
use culvert_proto::close::CloseReason;
use culvert_proto::id::{RequestId, SessionKey};
use culvert_proto::token::Digest;

use crate::accept::Place;
use crate::ingress::Refusal;
use crate::plane::{Plane, Work, unix_ms};
use crate::routes::Way;
use crate::sessions::PairSlot;
use crate::table::RequestSlot;
use lives::{Flow, Registered};
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
    peer: SocketAddr,
    began: Instant,
    datapath: &'static str,
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
            began: Instant::now(),
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
        let registered =
            self.plane
                .flows
                .register(&self.plane, cluster, self.way.service, self.origin);
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
                peer: self.peer,
                began: self.began,
                datapath: "stream",
            },
            opened,
        })
    }
}

impl Begun {
    /// Joins a plain socket with the service, and returns at once.
    pub fn join_socket(self, client: TcpStream, place: Place) {
        match self.opened.leg {
            ServiceLeg::Plain(_) => self.splice(client, place),
            ServiceLeg::Tls(ref channel) => {
                // Where the channel's socket lives, so that no byte wakes two threads.
                let home = channel.home.clone();
                if let Ok(client) = client.into_std() {
                    home.spawn(async move {
                        if let Ok(client) = TcpStream::from_std(client) {
                            self.copy_socket(client, place).await;
                        }
                    });
                }
            }
            ServiceLeg::Stream(..) => drop(tokio::spawn(self.copy_socket(client, place))),
        }
    }

    async fn copy_socket(self, mut client: TcpStream, place: Place) {
        self.copy(&mut client, Bytes::new()).await;
        drop((client, place));
    }

    /// Two plain sockets: the engine's.
    fn splice(mut self, client: TcpStream, place: Place) {
        let ServiceLeg::Plain(channel) = self.opened.leg else {
            return;
        };
        self.life.pair = Some(self.opened.pair);
        self.life.datapath = "splice";
        let (Ok(client), Ok(service)) = (client.into_std(), channel.stream.into_std()) else {
            return self.life.ended(CloseReason::Internal, [0; 2]);
        };
        let joined = self.life.plane.engine.join(Join {
            client: client.into(),
            service: service.into(),
            from_client: self.opened.from_client.to_vec(),
            from_service: self.opened.from_service.to_vec(),
            cluster: self.life.flow().cluster.number(),
        });
        match joined {
            Ok(joined) => {
                self.life.flow().relays(joined.live.clone());
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
    pub async fn copy<C: End>(mut self, client: &mut C, from_client: Bytes) {
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
            ServiceLeg::Plain(mut channel) => {
                life.datapath = "copy";
                life.copy(client, &mut channel.stream, early).await;
            }
            ServiceLeg::Tls(mut channel) => {
                life.datapath = "copy";
                life.copy(client, &mut channel.stream, early).await;
            }
            ServiceLeg::Stream(mut stream, _slot) => {
                let reason = life.copy(client, &mut stream, early).await;
                if reason != CloseReason::Finished {
                    stream.reset(reason);
                }
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
        let metrics = &self.flow().cluster.metrics;
        let mut bytes = [0; 2];
        let tell = |to_service, to_client| {
            bytes[0] += to_service;
            bytes[1] += to_client;
            metrics.bytes_to_service.inc_by(to_service);
            metrics.bytes_to_client.inc_by(to_client);
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
        let session = flow.session().as_ref().map(SessionKey::to_string);
        tracing::debug!(
            mode = flow.origin.mode(), cluster = %flow.cluster.state.id, service = %flow.service,
            peer = %self.peer, request_id = %self.id, session, to_service, to_client,
            duration_s = self.began.elapsed().as_secs_f64(), datapath = self.datapath, %reason,
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

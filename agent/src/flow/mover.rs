//! What moves the bytes of connections that are joined: the engine where both
//! ends are plain TCP, else a copy.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use culvert_engine::legs::{Connection, Leg};
use culvert_engine::{Engine, Join, Joined, Observe};
use culvert_net::dial::Link;
use culvert_net::relay::{Early, End, Relayed, arm, relay_told};
use culvert_proto::close::CloseReason;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::leg::Counted;
use crate::metrics::{AgentMetrics, Datapath};

/// Pairs in the engine; one more is reset.
pub const PAIRS_MAX: usize = 65_536;

/// Moves bytes until told to stop.
pub struct Mover {
    metrics: Arc<AgentMetrics>,
    /// What its connections are: nearer the client, nearer the service.
    legs: [Leg; 2],
    /// Absent where nothing can be spliced.
    engine: Option<Engine>,
    running: TaskTracker,
    cut: CancellationToken,
}

impl Mover {
    /// Without an `engine` everything is copied.
    #[must_use]
    pub fn new(engine: Option<Engine>, metrics: Arc<AgentMetrics>) -> Self {
        let running = TaskTracker::new();
        running.close();
        Self {
            metrics,
            legs: [Leg::Data, Leg::Upstream],
            engine,
            running,
            cut: CancellationToken::new(),
        }
    }

    /// Between these in place of data channels and services.
    #[must_use]
    pub fn between(mut self, legs: [Leg; 2]) -> Self {
        self.legs = legs;
        self
    }

    /// Brings the engine's counters into the metrics.
    pub fn count(&self) {
        if let Some(engine) = &self.engine {
            self.metrics.follow(engine);
        }
    }

    /// Waits until nothing that was started runs any more.
    pub async fn idle(&self) {
        self.running.wait().await;
    }

    /// Resets everything.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Joins two connections in a task of its own, which ends with them. `early` is delivered
    /// first.
    pub fn start(
        self: &Arc<Self>,
        client: Link<TcpStream>,
        service: Link<TcpStream>,
        early: Early,
    ) -> Option<JoinHandle<()>> {
        let mover = self.clone();
        match (client, service, &self.engine) {
            (Link::Plain(client), Link::Plain(service), Some(engine)) => {
                let watch = self.watch();
                match splice(engine, client, service, early, watch) {
                    Ok(joined) => Some(self.running.spawn(mover.spliced(joined))),
                    Err(reason) => {
                        self.metrics.engine().refused(reason);
                        self.metrics.flow_ended(Datapath::Splice, reason);
                        None
                    }
                }
            }
            (client, service, _) => Some(self.running.spawn(async move {
                mover.copy(Datapath::Copy, client, service, early).await;
            })),
        }
    }

    async fn spliced(self: Arc<Self>, mut joined: Joined) {
        let _open = self.metrics.open_flow(Datapath::Splice);
        let ended = tokio::select! {
            ended = &mut joined.ended => ended,
            () = self.cut.cancelled() => {
                joined.cut(CloseReason::DrainDeadline);
                (&mut joined.ended).await
            }
        };
        let Ok(summary) = ended else {
            // Broken before it was joined.
            self.metrics
                .flow_ended(Datapath::Splice, CloseReason::ClientReset);
            return;
        };
        self.metrics.flow_ended(Datapath::Splice, summary.reason);
        tracing::debug!(
            code = summary.reason.as_str(),
            to_service = summary.to_service,
            to_client = summary.to_client,
            spliced = summary.spliced,
            "connection ended"
        );
    }

    /// Counts both ends of a pair of the engine.
    fn watch(&self) -> Legs {
        Legs(self.legs.map(|leg| {
            let mut connection = Connection::new(self.metrics.legs(), leg);
            connection.becomes(self.metrics.named(), leg);
            connection
        }))
    }

    /// Copies between two ends until both are done, or all is cut.
    pub async fn copy<C: End, S: End>(
        &self,
        datapath: Datapath,
        client: C,
        service: S,
        early: Early,
    ) {
        let _open = self.metrics.open_flow(datapath);
        let [near, far] = self.legs;
        let (mut client, near) = Counted::look(&self.metrics, near, client);
        let (mut service, far) = Counted::look(&self.metrics, far, service);
        let tell = |to_service, to_client| self.metrics.relayed(to_service, to_client);
        let relayed = tokio::select! {
            relayed = relay_told(&mut client, &mut service, early, tell) => relayed,
            // Dropped while they are armed, both are reset.
            () = self.cut.cancelled() => Relayed {
                reason: CloseReason::DrainDeadline,
                to_service: 0,
                to_client: 0,
            },
        };
        for leg in near.iter().chain(&far) {
            leg.ends(relayed.reason);
        }
        self.metrics.flow_ended(datapath, relayed.reason);
        tracing::debug!(
            code = relayed.reason.as_str(),
            to_service = relayed.to_service,
            to_client = relayed.to_client,
            "connection ended"
        );
    }
}

/// What an end has to hear first is written here: the engine's thread may be asleep.
fn splice(
    engine: &Engine,
    client: TcpStream,
    service: TcpStream,
    mut early: Early,
    watch: Legs,
) -> Result<Joined, CloseReason> {
    let armed = |tcp: &TcpStream| arm(tcp.as_fd()).map_err(|_| CloseReason::Internal);
    armed(&client)?;
    armed(&service)?;
    say(&client, &mut early.to_client).map_err(|_| CloseReason::ClientReset)?;
    say(&service, &mut early.to_service).map_err(|_| CloseReason::UpstreamReset)?;
    let own = |tcp: TcpStream| match tcp.into_std() {
        Ok(tcp) => Ok(OwnedFd::from(tcp)),
        Err(_) => Err(CloseReason::Internal),
    };
    let join = Join {
        client: own(client)?,
        service: own(service)?,
        from_client: early.to_service.into(),
        from_service: early.to_client.into(),
        cluster: 0,
    };
    engine.join_observed(join, Some(Box::new(watch)))
}

/// The connections of one flow, as they are counted.
struct Legs([Connection; 2]);

impl Observe for Legs {
    fn joined(&mut self, _: [BorrowedFd<'_>; 2]) {}

    fn sample(&mut self, sockets: [BorrowedFd<'_>; 2]) {
        for (leg, socket) in self.0.iter_mut().zip(sockets) {
            leg.sample(socket);
        }
    }

    fn ended(&mut self, sockets: [BorrowedFd<'_>; 2], reason: CloseReason) {
        for (leg, socket) in self.0.iter_mut().zip(sockets) {
            leg.sample(socket);
            leg.ends(reason);
        }
    }
}

fn say(to: &TcpStream, words: &mut Bytes) -> io::Result<()> {
    if words.is_empty() {
        return Ok(());
    }
    match to.try_write(words) {
        Ok(wrote) => {
            let _ = words.split_to(wrote);
            Ok(())
        }
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(why) => Err(why),
    }
}

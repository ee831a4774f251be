//! Two sides become a pair.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use culvert_engine::{Join, Joined, Observe, Summary};
use culvert_net::introduction::{Disturbance, Settled};
use culvert_net::relay::{Early, End as _, arm, relay_told};
use culvert_proto::close::CloseReason;
use culvert_proto::pair::Role;

use super::desk::PairPlace;
use super::hall::Hall;
use super::wait::{self, Party};

/// The other side's task is told at the same time; it has nothing to wait for.
const GIVE_MAX: Duration = Duration::from_secs(5);
/// MATCHED fits any socket.
const MATCHED_MAX: Duration = Duration::from_secs(5);

/// Takes the other side over, tells both, and has their bytes moved.
pub async fn lead(
    hall: &Arc<Hall>,
    mut own: Party,
    other: oneshot::Receiver<Party>,
    place: PairPlace,
) {
    let Ok(Ok(other)) = timeout(GIVE_MAX, other).await else {
        drop(place);
        return wait::enter(hall, own);
    };
    if let Some(what) = own.disturbance_now() {
        drop(place);
        wait::enter(hall, other);
        return own.disturbed(hall, what);
    }
    let (peers, role) = ([other.peer, own.peer], own.role);
    // First the one that waited: when it is gone, nobody was told anything yet.
    let Some(other) = matched(hall, other).await else {
        drop(place);
        return wait::enter(hall, own);
    };
    let Some(own) = matched(hall, own).await else {
        return reset(&other);
    };
    hall.metrics.matches.inc();
    let (bridge, broker) = match role {
        Role::Bridge => (own, other),
        Role::Broker => (other, own),
    };
    let pair = Pair {
        hall: hall.clone(),
        peers,
        began: Instant::now(),
        _place: place,
    };
    match (bridge, broker) {
        (Settled::Plain(bridge), Settled::Plain(broker)) => pair.splice(bridge, broker).await,
        (bridge, broker) => pair.copy(bridge, broker).await,
    }
}

/// Tells it; from here on its connection can only end in RST, or cleanly.
async fn matched(hall: &Hall, party: Party) -> Option<Settled<TcpStream>> {
    let Party {
        peer,
        role,
        waiter,
        counted,
        ..
    } = party;
    let settled = timeout(MATCHED_MAX, waiter.matched()).await;
    drop(counted);
    match settled {
        Ok(Ok(settled)) => {
            if let Some(socket) = settled.socket()
                && let Err(why) = arm(socket)
            {
                tracing::debug!(%peer, %why, "a socket cannot be armed");
            }
            Some(settled)
        }
        _ => {
            let what = Disturbance::Gone;
            hall.metrics.refused("gone");
            tracing::debug!(%peer, role = role.as_str(), ?what, "gone before it was matched");
            None
        }
    }
}

/// It was told that it is matched, and is not.
fn reset(settled: &Settled<TcpStream>) {
    if let Some(socket) = settled.socket() {
        let _ = arm(socket);
    }
}

/// A pair until its end.
struct Pair {
    hall: Arc<Hall>,
    peers: [SocketAddr; 2],
    began: Instant,
    _place: PairPlace,
}

impl Pair {
    async fn splice(self, bridge: TcpStream, broker: TcpStream) {
        let joined = self.hand_over(bridge, broker);
        match joined {
            Ok(joined) => drop(tokio::spawn(self.follow(joined))),
            Err(reason) => self.ended(&summary(reason), "none"),
        }
    }

    fn hand_over(&self, bridge: TcpStream, broker: TcpStream) -> Result<Joined, CloseReason> {
        let plain = |stream: TcpStream| stream.into_std().map_err(|_| CloseReason::Internal);
        let observer = self.observer([&broker, &bridge]);
        let join = Join {
            client: plain(broker)?.into(),
            service: plain(bridge)?.into(),
            from_client: Vec::new(),
            from_service: Vec::new(),
            cluster: 0,
        };
        let joined = self.hall.engine.join_observed(join, observer);
        joined.inspect_err(|reason| self.hall.metrics.engine.refused(*reason))
    }

    #[cfg(feature = "hub")]
    fn observer(&self, sides: [&TcpStream; 2]) -> Option<Box<dyn Observe>> {
        Some(self.hall.eye.get()?.watch(sides))
    }

    /// A relay alone is built without.
    #[cfg(not(feature = "hub"))]
    fn observer(&self, _: [&TcpStream; 2]) -> Option<Box<dyn Observe>> {
        None
    }

    async fn follow(self, joined: Joined) {
        // An engine thread that ended has told nothing, and reset both.
        let ended = joined.ended.await;
        let ended = ended.unwrap_or_else(|_| summary(CloseReason::Internal));
        self.ended(&ended, "splice");
    }

    /// For outer TLS that is kept. Dropped, both are armed.
    async fn copy(self, mut bridge: Settled<TcpStream>, mut broker: Settled<TcpStream>) {
        let copied = &self.hall.metrics.copied_bytes;
        let tell = |to_service, to_client| copied.inc_by(to_service + to_client);
        let relayed = relay_told(&mut broker, &mut bridge, Early::default(), tell).await;
        let ended = Summary {
            to_service: relayed.to_service,
            to_client: relayed.to_client,
            ..summary(relayed.reason)
        };
        self.ended(&ended, "copy");
    }

    fn ended(&self, ended: &Summary, datapath: &'static str) {
        let reason = ended.reason;
        self.hall.metrics.closed(reason);
        let [waited, came] = self.peers;
        tracing::debug!(
            %waited, %came, %reason, datapath, to_bridge = ended.to_service,
            to_broker = ended.to_client, duration_s = self.began.elapsed().as_secs_f64(),
            "pair ended"
        );
    }
}

fn summary(reason: CloseReason) -> Summary {
    Summary {
        reason,
        to_service: 0,
        to_client: 0,
        spliced: 0,
        life_ms: 0,
    }
}

//! The life of one agent session, from attach to its end.

use std::sync::Arc;
use std::time::Duration;

use culvert_net::carrier::{CarrierEnd, Driver, SessionEvent};
use culvert_proto::channel::Form;
use culvert_proto::close::CloseReason;
use culvert_proto::control::{ControlMessage, Drain, Rotate};
use culvert_proto::registry::Standing;

use crate::certified::{offer_cas, renew};
use crate::flow;
use crate::plane::Plane;
use crate::sessions::Session;

/// Runs an attached session until its carrier ends, then takes it out.
pub async fn live<T>(plane: &Arc<Plane>, session: &Arc<Session>, driver: Driver<T>)
where
    Driver<T>: Future<Output = CarrierEnd>,
{
    let facts = &session.facts;
    tracing::info!(
        session = %session.key, peer = %facts.peer, carrier = facts.kind.as_str(),
        version = facts.version, "agent connected"
    );
    // A revocation between admission and attach found no session to cut.
    if !plane.may_serve(&session.key.cluster, session.key.epoch) {
        session.carrier.close(CloseReason::Revoked);
    }
    plane.sessions_changed();
    let (end, ()) = tokio::join!(driver, listen(plane, session));
    plane.sessions.detach(session);
    if let Some(channels) = &session.channels {
        channels.close();
    }
    flow::lives::orphaned(plane, &session.key);
    plane.sessions_changed();
    if !end.reason.is_clean() {
        let labels = [end.reason.as_str()];
        plane.metrics.sessions_dead.with_label_values(&labels).inc();
    }
    tracing::info!(
        session = %session.key, reason = %end.reason, detail = end.detail,
        lived_s = facts.began.elapsed().as_secs(), "agent session ended"
    );
}

async fn listen(plane: &Arc<Plane>, session: &Arc<Session>) {
    loop {
        let event = tokio::select! {
            event = session.carrier.event() => event,
            () = refill(session) => continue,
        };
        let Some(event) = event else {
            return;
        };
        match event {
            SessionEvent::Established(facts) => {
                if let Some(streams_max) = facts.streams_max {
                    session.advertise(streams_max);
                }
                let _ = session.agent.set(facts);
                open_channels(plane, session);
                offer_rotation(plane, session);
                offer_cas(plane, session);
                if plane.is_draining() {
                    drain(plane, session);
                }
                plane.sessions_changed();
            }
            SessionEvent::PeerDraining => {
                plane.sessions.set_standing(session, Standing::Closed);
            }
            SessionEvent::Message(ControlMessage::ChannelFail(fail)) => {
                let reason = fail.reason.as_str();
                tracing::debug!(session = %session.key, reason, "a data channel was not opened");
                if let Some(channels) = &session.channels {
                    channels.failed(&fail);
                }
            }
            SessionEvent::Message(ControlMessage::Renew { csr }) => renew(plane, session, csr),
            SessionEvent::Rotated(digest) => {
                tracing::info!(session = %session.key, "agent stored its new token");
                plane.links.rotated(session, digest);
                plane.sessions_changed();
            }
            event => tracing::trace!(session = %session.key, ?event, "session event"),
        }
    }
}

/// Asks for the data channels that are missing, once there is something to do.
async fn refill(session: &Session) {
    let Some(channels) = &session.channels else {
        return std::future::pending().await;
    };
    channels.due().await;
    for tickets in channels.tick() {
        let copy = tickets.clone();
        if let Err(why) = session.carrier.tickets(tickets) {
            tracing::debug!(session = %session.key, %why, "no tickets to this agent");
            channels.unsent(&copy);
        }
    }
}

/// The agent said what it serves: it is asked for channels, and granted what a
/// token for every service reaches.
fn open_channels(plane: &Plane, session: &Session) {
    if let Some(channels) = &session.channels
        && !plane.is_draining()
    {
        channels.open();
    }
    take_routes(plane, session);
}

/// Tells the agent what the table leads to it, where that is news, and how many
/// channels should wait.
pub fn take_routes(plane: &Plane, session: &Session) {
    let table = plane.table.load();
    let Some(cluster) = table.get(session.key.cluster.as_str()) else {
        return;
    };
    if let Some(channels) = &session.channels {
        let needs = cluster.forms(|sealed| plane.form(session.caps, sealed));
        for form in Form::ALL {
            channels.set_routed(form, needs.contains(&form));
        }
    }
    if !session.facts.kind.is_culvert() {
        return;
    }
    let announced = session.agent.get().map_or(&[][..], |agent| &agent.targets);
    let targets = cluster.targets(announced);
    let mut granted = session.granted.lock();
    if *granted == targets {
        return;
    }
    match session.carrier.grant(targets.clone()) {
        Ok(()) => *granted = targets,
        Err(why) => tracing::debug!(session = %session.key, %why, "no grant to this agent"),
    }
}

/// Hands the agent the token that waits for its cluster, if it has not come with it.
pub fn offer_rotation(plane: &Plane, session: &Session) {
    let rotate = plane
        .links
        .rotation(session)
        .map(|(not_before_unix_s, token)| Rotate {
            not_before_unix_s,
            token,
        });
    if let Some(rotate) = rotate
        && let Err(why) = session.carrier.rotate(rotate)
    {
        tracing::debug!(session = %session.key, %why, "no rotation through this session");
    }
}

/// Tells the agent to move elsewhere.
pub fn drain(plane: &Plane, session: &Session) {
    let grace = plane.config.drain_grace;
    ask_to_move(session, grace / 2, grace);
}

/// Tells the agent to come in anew within a time, and by when this session ends.
pub fn ask_to_move(session: &Session, within: Duration, deadline: Duration) {
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let advice = Drain {
        reconnect_within_ms: millis(within),
        deadline_ms: millis(deadline),
        addresses: Vec::new(),
    };
    if let Err(why) = session.carrier.drain(advice) {
        tracing::debug!(session = %session.key, %why, "this agent cannot be told to move");
    }
}

/// Lets a replaced session finish its streams, at most for `grace`.
pub async fn retire(session: Arc<Session>, grace: Duration) {
    let _ = tokio::time::timeout(grace, async {
        tokio::select! {
            () = session.idle() => {}
            _ = session.carrier.closed() => {}
        }
    })
    .await;
    session.carrier.close(CloseReason::Replaced);
}

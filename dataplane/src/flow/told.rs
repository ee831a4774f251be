//! What is told of a flow that ended: how soon its first byte came back, and a
//! line of the flow log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use culvert_engine::legs::Leg;
use culvert_observe::Tier;
use culvert_proto::close::CloseReason;

use super::lives::Flow;
use super::{Life, Origin};
use crate::observe::flowlog::Relay;

impl Life {
    /// Tells of its end; `bytes` were delivered to the service and to the client.
    pub(super) fn told(&self, flow: &Arc<Flow>, reason: CloseReason, bytes: [u64; 2]) {
        let sight = &self.plane.metrics.sight;
        let first_byte = self.first_byte(flow);
        // Where the kernel stamps first bytes, its records tell.
        if let Some(took) = first_byte.filter(|_| sight.observer.tier() < Tier::Skb) {
            sight.first_byte(&flow.cluster.metrics.seen, took);
        }
        sight.ends.put(|| {
            let data = self.channel.map(|peer| (Leg::Data, Some(peer)));
            Relay {
                id: flow.conn,
                at: SystemTime::now(),
                cluster: flow.cluster.state.id.as_str().into(),
                mode: flow.origin.mode(),
                datapath: self.datapath,
                reason,
                life: flow.began.elapsed(),
                first_byte,
                bytes,
                legs: [
                    // A person's forward is a request on a connection of its own numbering.
                    (!matches!(flow.origin, Origin::Forward { .. }))
                        .then_some((Leg::Client, Some(flow.peer))),
                    data,
                ],
            }
        });
    }

    /// From the client's connection to the first byte back.
    fn first_byte(&self, flow: &Flow) -> Option<Duration> {
        let shown = flow.shown()?;
        let first_ns = shown.live.first_byte_ns.load(Ordering::Relaxed);
        (first_ns > 0).then(|| flow.opened().unwrap_or_default() + Duration::from_nanos(first_ns))
    }
}

//! An upgraded connection: raw bytes both ways after the service's own 101.

use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use culvert_net::carrier::Stream;
use culvert_net::relay::{Early, End, relay_told};
use culvert_net::tls::ServerStream;
use culvert_proto::close::CloseReason;
use culvert_proto::limits::UPGRADE_TIMEOUT_MS;

use super::tracked::Tracked;
use crate::conn::ClientSocket;
use crate::sessions::StreamSlot;

/// Joins the client, once it has its 101, with the agent's stream.
pub struct Join {
    /// The agent's stream.
    pub stream: Stream,
    /// Bytes that came with the head of the service's 101.
    pub early: Bytes,
    /// What the request holds.
    pub tracked: Tracked,
    /// The stream's place in its session.
    pub slot: StreamSlot,
}

impl Join {
    /// Relays until both directions ended or one broke.
    pub async fn run(mut self, client: OnUpgrade) {
        let reason = self.relay(client).await;
        if reason != CloseReason::Finished {
            self.tracked.conn().abort();
            self.stream.reset(reason);
        }
        self.slot.closed(reason);
        self.tracked.ends(reason);
    }

    async fn relay(&mut self, client: OnUpgrade) -> CloseReason {
        let wait = Duration::from_millis(UPGRADE_TIMEOUT_MS);
        let (mut client, to_service) = match tokio::time::timeout(wait, client).await {
            Ok(Ok(client)) => match raw(client) {
                Some(raw) => raw,
                None => return CloseReason::Internal,
            },
            Ok(Err(_)) => return CloseReason::ClientReset,
            Err(_) => return CloseReason::ClientTimeout,
        };
        let early = Early {
            to_service,
            to_client: std::mem::take(&mut self.early),
        };
        let meter = self.tracked.meter();
        let tell = |to_service, to_client| {
            meter.to_service(to_service);
            meter.to_client(to_client);
        };
        relay_told(&mut client, &mut self.stream, early, tell)
            .await
            .reason
    }
}

/// A client's connection without hyper's layer, and what hyper had read ahead.
pub fn raw(upgraded: Upgraded) -> Option<(Box<dyn End + Send>, Bytes)> {
    let upgraded = match upgraded.downcast::<TokioIo<ClientSocket>>() {
        Ok(parts) => return Some((Box::new(parts.io.into_inner()), parts.read_buf)),
        Err(upgraded) => upgraded,
    };
    let parts = upgraded.downcast::<TokioIo<ServerStream<ClientSocket>>>();
    let parts = parts.ok()?;
    Some((Box::new(parts.io.into_inner()), parts.read_buf))
}

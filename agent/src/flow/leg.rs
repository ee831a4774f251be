//! Connections of the agent, as they are counted: looked at every 30 s and at their end.

use std::sync::Arc;

use culvert_engine::legs::{Connection, Leg, SAMPLE_INTERVAL};
use culvert_net::look::{Look, Looked};
use culvert_net::relay::End;
use culvert_proto::close::CloseReason;
use parking_lot::Mutex;

use crate::metrics::AgentMetrics;

/// A connection that somebody else reads and writes.
#[derive(Clone)]
pub struct Counted(Arc<Mutex<Connection>>);

impl Counted {
    /// The connection behind `look`.
    #[must_use]
    pub fn new(metrics: &AgentMetrics, leg: Leg, look: &Look) -> Self {
        let mut connection = Connection::new(metrics.legs(), leg);
        connection.becomes(metrics.named(), leg);
        let counted = Self(Arc::new(Mutex::new(connection)));
        let eye = counted.clone();
        look.set(move |socket, is_due| {
            if is_due {
                eye.0.lock().sample(socket);
            }
        });
        counted
    }

    /// `end`, and itself as a connection, if it is one.
    pub fn look<E: End>(metrics: &AgentMetrics, leg: Leg, end: E) -> (Looked<E>, Option<Self>) {
        let is_connection = end.socket().is_some();
        let looked = Looked::new(end, SAMPLE_INTERVAL);
        let counted = is_connection.then(|| Self::new(metrics, leg, &looked.look()));
        (looked, counted)
    }

    /// Why it will have ended.
    pub fn ends(&self, reason: CloseReason) {
        self.0.lock().ends(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test(start_paused = true)]
    async fn a_carrier_is_counted_looked_at_every_30_s_and_ends_for_its_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap());
        let (far, accepted) = tokio::join!(far, listener.accept());
        let (mut far, (near, _)) = (far.unwrap(), accepted.unwrap());
        let metrics = AgentMetrics::new("prod");
        let (mut near, counted) = Counted::look(&metrics, Leg::Carrier, near);
        let counted = counted.unwrap();
        let told = |name: &str| {
            let text = metrics.registry.render();
            let line = text.lines().find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            number.unwrap_or(0.0)
        };
        let sent = "culvert_tcp_segments_total{direction=\"tx\",leg=\"carrier\"}";
        let open = "culvert_connections{cluster=\"prod\",leg=\"carrier\"}";
        near.write_all(&[7; 100_000]).await.unwrap();
        far.read_exact(&mut [0; 100_000]).await.unwrap();
        assert_eq!((told(open), told(sent)), (1.0, 0.0));
        // Nothing comes; the clock goes on by itself.
        let patience = SAMPLE_INTERVAL + SAMPLE_INTERVAL / 2;
        let idle = tokio::time::timeout(patience, near.read_u8()).await;
        assert!(idle.is_err());
        let first = told(sent);
        assert!(first > 0.0, "{first}");
        near.write_all(&[7; 100_000]).await.unwrap();
        far.read_exact(&mut [0; 100_000]).await.unwrap();
        counted.ends(CloseReason::CarrierLost);
        drop((near, counted));
        assert!(told(sent) > first, "the last look");
        assert_eq!(told(open), 0.0);
        let closed = "culvert_connections_closed_total{cluster=\"prod\",leg=\"carrier\",reason=\"carrier_lost\"}";
        assert_eq!(told(closed), 1.0);
    }
}

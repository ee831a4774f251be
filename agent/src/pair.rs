//! Pair mode: a bridge that has a service and a broker that has its clients, joined from end to
//! end by TLS of their own.
//!
//! ```text
//!  client ─► broker ══ end-to-end TLS 1.3, mutual, bridge = server ══► bridge ─► service
//!               └─ dials ─► relay ◄─ dials ─┘      mode relay
//!               ◄──────────────────── dials ┘      mode reverse
//!               └─ dials ──────────────────►       mode direct
//! ```
//! `post` keeps connections at the places where the other side may be found, `reach` makes one of
//! them ready for the end-to-end TLS, `party` holds what proves who we are. The `broker` carries
//! its clients' connections on one long-lived pair (`keep`), each as a stream that `open` asks for,
//! or gives each a pair of its own. The `bridge` waits with spare connections and `welcome`s what
//! comes, whichever of the two it is.

pub mod bridge;
pub mod broker;
mod keep;
mod open;
mod party;
mod pool;
mod post;
mod reach;
mod welcome;

use std::sync::Arc;
use std::time::Duration;

use culvert_net::dial::Link;
use culvert_net::tls::TlsError;
use culvert_net::tls::pair::{IdentityError, PairStream};
use culvert_proto::control::Grant;
use culvert_proto::id::Epoch;
use culvert_proto::update::ServiceName;
use tokio::net::TcpStream;

/// One connection of the pair.
pub type Joined = PairStream<Link<TcpStream>>;

/// What the one service of a bridge is called on the wire.
const SERVICE: &str = "pair";
/// Longest wait between two attempts: both sides may wait, one after the other, and a pair is to
/// stand again 5 s after a relay listens.
pub const RETRY_MAX: Duration = Duration::from_secs(3);
/// Longest wait for a TCP connection. The kernel asks after 0, 1 and 3 s: no gap in which nobody
/// asks is longer than [`RETRY_MAX`] and a second.
pub const CONNECT_MAX: Duration = Duration::from_secs(4);
/// Connections that a bridge keeps waiting at each address.
pub const SPARE: usize = 2;

/// Why a role could not start.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A TLS file changed for the worse since the configuration was checked.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// So did the side's own certificate.
    #[error("the pair's certificate: {0}")]
    Identity(#[from] IdentityError),
    /// An address cannot be listened on.
    #[error("{0}; choose another --{1}")]
    Listen(std::io::Error, &'static str),
    /// The health address cannot be listened on.
    #[error("cannot serve /healthz and /metrics: {0}; set --health-addr")]
    Health(std::io::Error),
}

/// What a bridge may be asked for: its one service, at any time.
fn grant() -> Grant {
    Grant {
        epoch: Epoch(1),
        targets: vec![Arc::from(SERVICE)],
    }
}

fn service_name() -> ServiceName {
    ServiceName::new(SERVICE).expect("a lower-case word is a name")
}

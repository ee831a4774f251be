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
//! comes, whichever of the two it is. A broker without a certificate asks for its first one (`boot`,
//! `state`), a bridge with a store serves what is registered there (`follow`, `issue`).
//!
//! Where bytes go: TLS ends at the two agents, so each of them copies in user space between its
//! local socket and the pair. What is spliced is the middle: a relay joins two plain sockets, for
//! the outer TLS has ended by then. With `--outer-tls keep` the relay copies too.

mod aloud;
mod boot;
pub mod bridge;
pub mod broker;
mod follow;
mod issue;
mod keep;
mod open;
mod party;
mod pool;
mod post;
mod reach;
mod state;
mod welcome;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_net::introduction::{Link, OuterClient};
use culvert_net::listen::{Acceptor, ListenOptions, Listener};
use culvert_net::tls::pair::{IdentityError, PairStream};
use culvert_net::tls::{Reload, TlsError, keep_fresh};
use culvert_pair::{MakeError, StoreError};
use culvert_proto::control::Grant;
use culvert_proto::id::Epoch;
use culvert_proto::pair::Role;
use culvert_proto::update::ServiceName;
use tokio::net::TcpStream;

use self::reach::Reach;
use crate::config::OuterOptions;
use crate::health::Ticker;

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
/// How often the loop shows that it runs.
const TICK: Duration = Duration::from_secs(1);
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
    /// A key or certificate cannot be made.
    #[error("{0}")]
    Make(MakeError),
    /// The state of the broker cannot be read or kept.
    #[error("the broker's state: {0}")]
    Store(#[from] StoreError),
    /// There is no key to prove who this broker is.
    #[error("{0} holds no bootstrap key: run culvert pair fingerprint, or give --join")]
    NoKey(String),
    /// It came too late.
    #[error(
        "the pair join string is expired and no certificate was kept: make a new one with culvert pair init"
    )]
    Expired,
    /// The registration names no relay, and neither does the bridge.
    #[error("it names no relay; set --relay, or register it again with relays")]
    NoRelay,
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

/// The way to relays.
fn relay(options: &OuterOptions, role: Role) -> Result<Reach, TlsError> {
    let outer = Arc::new(OuterClient::load(options.outer, options.tls.clone())?);
    if let Some(tls) = outer.tls() {
        tokio::spawn(keep_fresh(tls.clone() as Arc<dyn Reload>, |result| {
            if let Err(why) = result {
                tracing::warn!(%why, "changed TLS files not used; the old ones stay");
            }
        }));
    }
    Ok(Reach::Relay { outer, role })
}

fn bind(addr: SocketAddr, flag: &'static str) -> Result<Acceptor, PairError> {
    let options = ListenOptions {
        reuse_port: false,
        ..ListenOptions::default()
    };
    let failed = |why| PairError::Listen(why, flag);
    let listener = Listener::bind(addr, options).map_err(failed)?;
    listener.start().map_err(failed)
}

/// Shows that the event loop runs.
async fn tick(ticker: Ticker) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        ticker.tick();
    }
}

/// Unix time, s.
fn unix_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn service_name() -> ServiceName {
    ServiceName::new(SERVICE).expect("a lower-case word is a name")
}

//! Dialling out: every address of every hub, through whatever proxy stands in the way.
//!
//! Names are resolved again at each attempt, all at the same time; TCP connections race 250 ms
//! apart, in the order of the hubs, as soon as there is an address; the proxy and TLS
//! steps follow on the winner, and on its failure the race goes on with the rest. Each step has its
//! deadline, and each error says which step failed and whose side that is.

mod backoff;
mod connect;
mod error;
mod link;
mod order;
mod proxy;
mod race;
mod url;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_proto::close::CloseReason;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use backoff::{Backoff, RETRY_AFTER_MAX, Setback};
pub use error::{DialError, DialFailure, Step};
pub use link::{Link, Linked};
pub use order::attempt_order;
pub use proxy::{ProxyConfig, ProxyConfigError};
pub use url::{HubUrl, UrlError, WEIGHT_MAX};

use self::link::Secure;
use crate::hangup::Hangup;
use crate::look::Look;
use crate::socket::set_leg_options;
use crate::tls::{ClientTls, TlsInfo};
use crate::transport::{Choices, Transport};

/// Between the starts of two connection attempts.
pub const STAGGER: Duration = Duration::from_millis(250);
/// One TCP connection, proxy step or TLS handshake.
pub const STEP_MAX: Duration = Duration::from_secs(10);
/// One whole dial, over all addresses.
pub const DIAL_MAX: Duration = Duration::from_secs(30);
/// A name that takes longer to resolve has the address that last worked tried meanwhile.
pub const LOOKUP_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at a carrier's socket, for whoever counts.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Addresses tried in one dial.
pub const CANDIDATES_MAX: usize = 64;

/// Dials hubs.
pub struct Dialer {
    tls: Arc<ClientTls>,
    proxy: ProxyConfig,
    /// Address that last worked, for when the resolver does not (C-16).
    last_good: Mutex<HashMap<(String, u16), SocketAddr>>,
    /// Hubs that a raw upgrade does not reach.
    pub(crate) choices: Mutex<Choices>,
    started: Instant,
}

impl Dialer {
    /// A dialler that trusts what `tls` trusts.
    #[must_use]
    pub fn new(tls: Arc<ClientTls>, proxy: ProxyConfig) -> Dialer {
        Dialer {
            tls,
            proxy,
            last_good: Mutex::default(),
            choices: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Connects to the first of `urls`, in their order, that lets itself be connected to.
    ///
    /// # Errors
    /// When none does; the error lists what happened at each address.
    pub async fn dial(&self, urls: &[HubUrl]) -> Result<Conn, DialError> {
        in_time(urls.first(), connect::dial(self, urls)).await
    }

    /// As [`Dialer::dial`], for a connection that is relayed: a plain one can be had for splicing.
    ///
    /// # Errors
    /// As there.
    pub async fn link(&self, urls: &[HubUrl]) -> Result<Linked, DialError> {
        let tuned = |stream| set_leg_options(&stream).map(|()| stream);
        in_time(urls.first(), connect::dial_link(self, urls, tuned)).await
    }

    /// A further connection to the hub that answers at `peer` ([`Conn::peer`]), through the same
    /// proxy. With `alpn` it is TLS that offers this protocol alone, whatever the URL says; without
    /// it there is no TLS.
    ///
    /// # Errors
    /// As [`Dialer::dial`].
    pub async fn link_again(
        &self,
        url: &HubUrl,
        peer: SocketAddr,
        alpn: Option<&[u8]>,
    ) -> Result<Linked, DialError> {
        let secure = alpn.map_or(Secure::No, Secure::Alpn);
        in_time(Some(url), connect::dial_again(self, url, peer, secure)).await
    }

    /// Milliseconds since this dialler was made.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn in_time<T>(
    url: Option<&HubUrl>,
    dial: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    match tokio::time::timeout(DIAL_MAX, dial).await {
        Ok(result) => result,
        Err(_) => Err(DialError::one(DialFailure {
            target: url.map(ToString::to_string).unwrap_or_default(),
            step: Step::Deadline,
            reason: CloseReason::HubTimeout,
            problem: format!("no address answered within {} s", DIAL_MAX.as_secs()),
        })),
    }
}

/// An established connection to a hub: TCP, perhaps through a proxy, perhaps inside TLS.
pub struct Conn {
    /// Its bytes.
    pub io: Box<dyn Transport>,
    /// Orders the TCP connection to be reset.
    pub(crate) hangup: Hangup,
    /// Looks at the TCP connection.
    pub(crate) look: Look,
    /// Which of the given URLs it leads to.
    pub url_index: usize,
    /// The address of the TCP connection: the hub's, or the proxy's.
    pub peer: SocketAddr,
    /// The proxy it goes through, without credentials.
    pub proxy: Option<String>,
    /// What TLS agreed on; `None` on plain `ws` and `http`.
    pub tls: Option<TlsInfo>,
}

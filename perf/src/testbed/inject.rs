//! Faults of the path. An injector proves that it bites before it is believed.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, bail};

use super::Namespace;

/// Which packets a black hole swallows, seen from the namespace that holds the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What comes in from the peer.
    In,
    /// What goes out to the peer.
    Out,
    /// Both.
    Both,
}

/// Silence between two namespaces, established connections included, until dropped.
pub struct BlackHole<'bed> {
    at: &'bed Namespace,
    since: Instant,
}

impl<'bed> BlackHole<'bed> {
    /// Swallows packets at `at` from or to the network of `listening`, the address at `at` that
    /// `peer` dials; the proof is that `peer` reached it before and does not after.
    ///
    /// # Errors
    /// When nft refuses, when the peer could not dial before, or still can after.
    pub fn dig(
        at: &'bed Namespace,
        peer: &Namespace,
        way: Way,
        listening: SocketAddr,
    ) -> Result<BlackHole<'bed>> {
        if !peer.probe(listening) {
            bail!("black hole: {listening} was not reachable before it was dug");
        }
        let address = listening.ip();
        let incoming = match way {
            Way::In | Way::Both => format!("ip daddr {address} counter drop;"),
            Way::Out => String::new(),
        };
        let outgoing = match way {
            Way::Out | Way::Both => format!("ip saddr {address} counter drop;"),
            Way::In => String::new(),
        };
        at.nft(&format!(
            "table inet hole {{
               chain in {{ type filter hook input priority -200; {incoming} }};
               chain out {{ type filter hook output priority -200; {outgoing} }}; }}"
        ))?;
        let since = Instant::now();
        let hole = BlackHole { at, since };
        if peer.probe(listening) {
            bail!("black hole {way:?} towards {listening} does not bite");
        }
        Ok(hole)
    }

    /// A moment at which it was silent already.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }
}

impl Drop for BlackHole<'_> {
    fn drop(&mut self) {
        let _ = self.at.nft("delete table inet hole");
    }
}

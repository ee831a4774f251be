//! Faults of the path. An injector proves that it bites before it is believed.

use std::net::SocketAddr;

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
        let hole = BlackHole { at };
        if peer.probe(listening) {
            bail!("black hole {way:?} towards {listening} does not bite");
        }
        Ok(hole)
    }
}

impl Drop for BlackHole<'_> {
    fn drop(&mut self) {
        let _ = self.at.nft("delete table inet hole");
    }
}

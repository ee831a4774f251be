//! From an accepted socket to a party that waits.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use culvert_net::introduction::{Guest, NotLetIn, receive};
use culvert_net::listen::Listener;
use culvert_proto::pair::{Reply, ReplyCode};
use culvert_proto::relay::{Patience, Place, Source, Verdict};

use super::hall::Hall;
use super::wait::{self, Party};

/// Accepts on this thread until the relay ends; while it drains everybody is told.
///
/// # Errors
/// When the runtime cannot take the socket.
pub async fn accept(hall: Arc<Hall>, listener: Listener) -> std::io::Result<()> {
    let acceptor = listener.start()?;
    loop {
        let (stream, peer) = tokio::select! {
            accepted = acceptor.accept() => accepted,
            () = hall.exiting() => return Ok(()),
        };
        admit(&hall, stream, peer);
    }
}

/// The rate of its source comes first: nothing was spent on it yet.
fn admit(hall: &Arc<Hall>, stream: TcpStream, peer: SocketAddr) {
    let source = Source::of(peer.ip());
    let verdict = hall.sources.lock().admit(hall.now_ms(), source);
    let refused = match verdict {
        Verdict::Admit => None,
        Verdict::Refuse { retry_after_s } => Some(Reply {
            code: ReplyCode::RateLimit,
            retry_after_s,
        }),
        Verdict::Drop => {
            hall.metrics.refused(ReplyCode::RateLimit.as_str());
            let _ = stream.set_zero_linger();
            return;
        }
    };
    tokio::spawn(introduce(hall.clone(), stream, peer, refused));
}

async fn introduce(hall: Arc<Hall>, stream: TcpStream, peer: SocketAddr, refused: Option<Reply>) {
    let counted = hall.party();
    let (guest, told) = hall.lobby.enter();
    let received = tokio::select! {
        received = receive(stream, &hall.outer, hall.door(refused)) => received,
        () = told.notified() => {
            hall.metrics.refused("evicted");
            tracing::debug!(%peer, "the oldest silent connection made room for a new one");
            return;
        }
    };
    drop(guest);
    match received {
        Ok(Guest {
            role,
            proof,
            id,
            waiter,
        }) => {
            let party = Party {
                peer,
                source: Source::of(peer.ip()),
                place: Place::new(proof, id),
                role,
                waiter,
                patience: Patience::new(hall.now_ms()),
                counted,
            };
            tracing::debug!(%peer, role = role.as_str(), proof = proof.as_str(), %id, "arrived");
            wait::enter(&hall, party);
        }
        Err(why) => keep_out(&hall, peer, &why),
    }
}

/// Scanners come every minute of the day: none of it is more than DEBUG.
fn keep_out(hall: &Hall, peer: SocketAddr, why: &NotLetIn) {
    hall.metrics.refused(why.as_str());
    tracing::debug!(%peer, reason = why.as_str(), %why, "not let in");
}

//! The two sockets of a relayed connection, on the engine thread that owns them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use culvert_engine::Observe;
use culvert_net::listen::{totals, unacknowledged};
use culvert_observe::{Offsets, Role, Slot, SlotId};
use culvert_proto::close::CloseReason;
use parking_lot::Mutex;

use super::Watched;

/// Where the residence of a pair is measured, while it is.
pub type Place = Arc<Mutex<Option<SlotId>>>;

/// Watches a pair; the client's side first.
pub struct Watch {
    watched: [Watched; 2],
    /// Unknown, they are asked of the kernel when the two are joined.
    offsets: Option<[Offsets; 2]>,
    place: Place,
    slot: Option<Slot>,
}

impl Watch {
    /// Of two connections that were used so far already.
    pub fn new(watched: [Watched; 2], offsets: Option<[Offsets; 2]>, place: Place) -> Box<Self> {
        Box::new(Self {
            watched,
            offsets,
            place,
            slot: None,
        })
    }
}

impl Observe for Watch {
    fn joined(&mut self, sockets: [BorrowedFd<'_>; 2]) {
        let [mut near, mut far] = self.watched.each_ref().map(Watched::tag);
        (near.role, far.role, far.conn) = (Role::Client, Role::Service, near.conn);
        let observer = &self.watched[0].sight().observer;
        let offsets = self.offsets.or_else(|| {
            let [near, far] = sockets.map(used);
            Some([near?, far?])
        });
        self.slot = offsets.and_then(|offsets| observer.join(sockets, [near, far], offsets));
        *self.place.lock() = self.slot.as_ref().map(Slot::id);
    }

    fn sample(&mut self, sockets: [BorrowedFd<'_>; 2]) {
        for (watched, socket) in self.watched.iter_mut().zip(sockets) {
            watched.sample(socket);
        }
    }

    fn ended(&mut self, sockets: [BorrowedFd<'_>; 2], reason: CloseReason) {
        for (watched, socket) in self.watched.iter_mut().zip(sockets) {
            watched.ended(socket, reason);
        }
        *self.place.lock() = None;
        // Before the sockets are closed: what comes of them then is nobody's residence.
        self.slot = None;
    }
}

/// Looks in which bytes came meanwhile, and that are taken again.
const LOOKS_MAX: usize = 8;

/// How far an accepted socket was used, as the kernel knows it: nothing was read
/// from it that is still to be forwarded.
fn used(socket: BorrowedFd<'_>) -> Option<Offsets> {
    for _ in 0..LOOKS_MAX {
        let before = totals(&socket).ok()?;
        let unread = rustix::io::ioctl_fionread(socket).ok()?;
        let unacked = u64::from(unacknowledged(&socket).ok()?);
        let after = totals(&socket).ok()?;
        let is_still = before.bytes_received == after.bytes_received
            && before.bytes_acked == after.bytes_acked;
        if is_still {
            let fin = u64::from(after.is_half_closed);
            return Some(Offsets {
                consumed: after.bytes_received.checked_sub(fin + unread)?,
                written: after.bytes_acked + unacked,
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    #[test]
    fn the_kernel_knows_how_far_an_accepted_socket_was_used() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut near, _) = listener.accept().unwrap();
        let fresh = used(near.as_fd()).unwrap();
        assert_eq!((fresh.consumed, fresh.written), (0, 0));
        far.write_all(&[1; 100]).unwrap();
        near.read_exact(&mut [0; 60]).unwrap();
        near.write_all(&[2; 7]).unwrap();
        far.read_exact(&mut [0; 7]).unwrap();
        let seen = used(near.as_fd()).unwrap();
        assert_eq!((seen.consumed, seen.written), (60, 7), "40 bytes wait");
        far.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).unwrap();
        let seen = used(near.as_fd()).unwrap();
        assert_eq!((seen.consumed, seen.written), (100, 7), "FIN is no byte");
    }
}

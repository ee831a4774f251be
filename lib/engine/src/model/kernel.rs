//! A kernel that answers as it likes, within what Linux may answer.

use std::cell::RefCell;

use rustix::io::Errno;

use culvert_net::listen::Progress;

use super::world::Shared;
use crate::kernel::Kernel;

/// One side's socket.
pub struct Socket(pub Shared, pub usize);

impl Drop for Socket {
    fn drop(&mut self) {
        let peer = &mut self.0.borrow_mut().peers[self.1];
        // Always armed; what has ended both ways has nothing left to reset.
        peer.closed = Some(!(peer.fin_read && peer.fin_acked));
    }
}

/// Which bytes of which source it holds: first position and count.
pub struct ModelPipe(Shared, RefCell<(usize, usize, usize)>);

impl Drop for ModelPipe {
    fn drop(&mut self) {
        self.0.borrow_mut().pipes -= 1;
    }
}

pub fn pattern(source: usize, at: usize) -> u8 {
    let mixed = (at as u64 ^ (source as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// The kernel of a world.
pub struct Model(pub Shared);

/// The byte at a place of what a side sends.
impl Kernel for Model {
    type Socket = Socket;
    type Pipe = ModelPipe;

    fn recv(&mut self, from: &Socket, into: &mut [u8]) -> Result<usize, Errno> {
        let mut world = self.0.borrow_mut();
        let at = world.peers[from.1].taken;
        let got = world.take(from.1, into.len(), true)?;
        for (offset, byte) in into[..got].iter_mut().enumerate() {
            *byte = pattern(from.1, at + offset);
        }
        Ok(got)
    }

    fn send(&mut self, to: &Socket, data: &[u8]) -> Result<usize, Errno> {
        assert!(!data.is_empty(), "an empty send");
        let mut world = self.0.borrow_mut();
        let at = world.peers[to.1].accepted;
        for (offset, byte) in data.iter().enumerate() {
            assert_eq!(
                *byte,
                pattern(1 - to.1, at + offset),
                "byte {}",
                at + offset
            );
        }
        world.give(to.1, data.len())
    }

    fn pipe(&mut self, bytes: usize) -> Result<(ModelPipe, usize), Errno> {
        let mut world = self.0.borrow_mut();
        let faults = world.faults;
        if world.random.one_in(faults) {
            return Err(Errno::MFILE);
        }
        world.pipes += 1;
        let little = world.random.one_in(faults);
        let size = if little { 8 << 10 } else { bytes };
        Ok((ModelPipe(self.0.clone(), RefCell::default()), size))
    }

    fn splice_in(&mut self, from: &Socket, into: &ModelPipe, bytes: usize) -> Result<usize, Errno> {
        let mut world = self.0.borrow_mut();
        if world.unspliceable {
            return Err(Errno::INVAL);
        }
        let mut held = into.1.borrow_mut();
        assert_eq!(held.2, 0, "spliced into a pipe that holds bytes");
        // Slots run out before bytes do.
        let slots = world.full_pipe;
        let at = world.peers[from.1].taken;
        let got = world.take(from.1, bytes.min(slots), false)?;
        *held = (from.1, at, got);
        Ok(got)
    }

    fn splice_out(&mut self, from: &ModelPipe, to: &Socket, bytes: usize) -> Result<usize, Errno> {
        let mut world = self.0.borrow_mut();
        let mut held = from.1.borrow_mut();
        assert_eq!(held.2, bytes, "the pipe's own count");
        assert_eq!(
            (held.0, held.1),
            (1 - to.1, world.peers[to.1].accepted),
            "order"
        );
        let sent = world.give(to.1, bytes)?;
        if sent < bytes && world.random.one_in(2) {
            world.peers[to.1].resets_unheard();
        }
        held.1 += sent;
        held.2 -= sent;
        Ok(sent)
    }

    fn fin_came(&mut self, socket: &Socket) -> bool {
        let peer = &self.0.borrow().peers[socket.1];
        peer.fin && !peer.reset
    }

    fn finish(&mut self, socket: &Socket) -> Result<(), Errno> {
        let mut world = self.0.borrow_mut();
        let source = &world.peers[1 - socket.1];
        assert!(
            source.fin_read && source.taken == source.total,
            "a FIN nobody sent"
        );
        let whole = source.total;
        let peer = &mut world.peers[socket.1];
        assert!(peer.stands, "FIN ends a connection that is being opened");
        assert_eq!(peer.accepted, whole, "FIN before the last byte");
        if peer.reset {
            return Err(Errno::NOTCONN);
        }
        peer.finished = true;
        Ok(())
    }

    fn unacked(&mut self, socket: &Socket) -> Option<u32> {
        let unacked = self.0.borrow().peers[socket.1].unacked();
        Some(u32::try_from(unacked).unwrap())
    }

    fn error(&mut self, socket: &Socket) -> Option<Errno> {
        self.0.borrow().peers[socket.1].broken()
    }

    fn progress(&mut self, socket: &Socket) -> Option<Progress> {
        let world = self.0.borrow();
        let peer = &world.peers[socket.1];
        let unacked = peer.unacked() + usize::from(!peer.stands);
        let silence_ms = match peer.is_gone() {
            true => world.now_ms - peer.last_ack_ms,
            false => 0,
        };
        Some(Progress {
            segments_unacked: u32::try_from(unacked).unwrap(),
            bytes_unsent: 0,
            bytes_acked: peer.acked as u64,
            window_bytes: 1,
            last_ack_ms: u32::try_from(silence_ms).unwrap(),
        })
    }
}

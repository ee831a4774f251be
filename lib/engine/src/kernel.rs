//! What the engine asks of the kernel, as a trait, so that a model can answer
//! in any order; and the kernel itself.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags};

use culvert_net::listen::{self, Progress};

/// The calls of a relay. None blocks. Dropping a socket or a pipe closes it, and
/// the close of a socket that has not ended both ways is RST.
pub trait Kernel {
    /// One end of a pair.
    type Socket;
    /// A pipe, both of its ends.
    type Pipe;

    /// Takes bytes; 0 is the peer's FIN.
    fn recv(&mut self, from: &Self::Socket, into: &mut [u8]) -> Result<usize, Errno>;
    /// Gives bytes, perhaps not all of them.
    fn send(&mut self, to: &Self::Socket, data: &[u8]) -> Result<usize, Errno>;
    /// A pipe of `bytes`, and the size that it got.
    fn pipe(&mut self, bytes: usize) -> Result<(Self::Pipe, usize), Errno>;
    /// Moves bytes from a socket into an empty pipe; 0 is the peer's FIN.
    fn splice_in(
        &mut self,
        from: &Self::Socket,
        into: &Self::Pipe,
        bytes: usize,
    ) -> Result<usize, Errno>;
    /// Moves bytes from a pipe to a socket.
    fn splice_out(
        &mut self,
        from: &Self::Pipe,
        to: &Self::Socket,
        bytes: usize,
    ) -> Result<usize, Errno>;
    /// Sends FIN after everything that was sent.
    fn finish(&mut self, socket: &Self::Socket) -> Result<(), Errno>;
    /// Bytes that a socket's peer has not acknowledged, FIN counted as one; a reset
    /// leaves it as it was. `None` when it does not say.
    fn unacked(&mut self, socket: &Self::Socket) -> Option<u32>;
    /// What broke a socket, if something did.
    fn error(&mut self, socket: &Self::Socket) -> Option<Errno>;
    /// How the bytes of a socket get on; `None` when it does not say.
    fn progress(&mut self, socket: &Self::Socket) -> Option<Progress>;
}

/// Linux.
#[derive(Debug, Default)]
pub struct Linux;

/// Both ends of a pipe.
#[derive(Debug)]
pub struct PipeEnds {
    read: OwnedFd,
    write: OwnedFd,
}

const MOVE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

impl Kernel for Linux {
    type Socket = OwnedFd;
    type Pipe = PipeEnds;

    fn recv(&mut self, from: &OwnedFd, into: &mut [u8]) -> Result<usize, Errno> {
        let (got, _) = retry_on_intr(|| rustix::net::recv(from, &mut *into, RecvFlags::DONTWAIT))?;
        Ok(taken(got))
    }

    fn send(&mut self, to: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        retry_on_intr(|| rustix::net::send(to, data, flags))
    }

    fn pipe(&mut self, bytes: usize) -> Result<(PipeEnds, usize), Errno> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused beyond the user's share of pipe pages: the size then tells.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, bytes);
        let size = rustix::pipe::fcntl_getpipe_size(&write)?;
        Ok((PipeEnds { read, write }, size))
    }

    fn splice_in(&mut self, from: &OwnedFd, into: &PipeEnds, bytes: usize) -> Result<usize, Errno> {
        splice(from, &into.write, bytes).map(taken)
    }

    fn splice_out(&mut self, from: &PipeEnds, to: &OwnedFd, bytes: usize) -> Result<usize, Errno> {
        splice(&from.read, to, bytes)
    }

    fn finish(&mut self, socket: &OwnedFd) -> Result<(), Errno> {
        rustix::net::shutdown(socket, Shutdown::Write)
    }

    fn unacked(&mut self, socket: &OwnedFd) -> Option<u32> {
        listen::unacknowledged(socket).ok()
    }

    fn error(&mut self, socket: &OwnedFd) -> Option<Errno> {
        match sockopt::socket_error(socket) {
            Ok(Ok(())) => None,
            Ok(Err(why)) | Err(why) => Some(why),
        }
    }

    fn progress(&mut self, socket: &OwnedFd) -> Option<Progress> {
        listen::progress(socket).ok()
    }
}

/// Bytes that came from a socket.
fn taken(bytes: usize) -> usize {
    #[cfg(debug_assertions)]
    if bytes > 0 {
        crate::drag::wait();
    }
    bytes
}

fn splice(from: impl AsFd, to: impl AsFd, bytes: usize) -> Result<usize, Errno> {
    retry_on_intr(|| rustix::pipe::splice(&from, None, &to, None, bytes, MOVE))
}

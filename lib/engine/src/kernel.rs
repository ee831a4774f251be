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

    /// Takes bytes; 0 is the peer's FIN, if [`fin_came`](Self::fin_came) says so.
    fn recv(&mut self, from: &Self::Socket, into: &mut [u8]) -> Result<usize, Errno>;
    /// Gives bytes, perhaps not all of them.
    fn send(&mut self, to: &Self::Socket, data: &[u8]) -> Result<usize, Errno>;
    /// A pipe of `bytes`, and the size that it got.
    fn pipe(&mut self, bytes: usize) -> Result<(Self::Pipe, usize), Errno>;
    /// Moves bytes from a socket into an empty pipe; 0 as in [`recv`](Self::recv).
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
    /// Whether the peer sent FIN and no RST since. A splice sends 16 pages at a time: a reset that
    /// comes between two of them ends the splice short, is told to nobody, and reads like an end
    /// from then on. (Linux 6.18: 4,067 of 56,511 resets amid splices of 3,000-byte packets.)
    fn fin_came(&mut self, socket: &Self::Socket) -> bool;
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

    fn fin_came(&mut self, socket: &OwnedFd) -> bool {
        // What is no TCP has no reset either.
        listen::totals(socket).map_or(true, |totals| totals.is_half_closed)
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{Shutdown as Way, TcpListener, TcpStream};

    use super::*;

    fn connection() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (far, listener.accept().unwrap().0.into())
    }

    fn wait_readable(socket: &OwnedFd) {
        use rustix::event::{PollFd, PollFlags, poll};
        let readable = poll(&mut [PollFd::new(socket, PollFlags::IN)], None);
        assert_eq!(readable.unwrap(), 1);
    }

    #[test]
    fn a_reset_that_was_told_already_reads_like_an_end_and_is_none() {
        let (mut far, near) = connection();
        far.write_all(b"abc").unwrap();
        sockopt::set_socket_linger(&far, Some(std::time::Duration::ZERO)).unwrap();
        drop(far);
        wait_readable(&near);
        assert_eq!(Linux.error(&near), Some(Errno::CONNRESET));
        let mut bytes = [0; 8];
        assert_eq!(Linux.recv(&near, &mut bytes), Ok(3));
        assert_eq!(Linux.recv(&near, &mut bytes), Ok(0), "this is why");
        assert!(!Linux.fin_came(&near));
    }

    #[test]
    fn an_end_is_one_and_so_is_that_of_what_is_no_tcp() {
        let (far, near) = connection();
        assert!(!Linux.fin_came(&near));
        far.shutdown(Way::Write).unwrap();
        wait_readable(&near);
        assert_eq!(Linux.recv(&near, &mut [0]), Ok(0));
        assert!(Linux.fin_came(&near));
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Linux.fin_came(&near.into()));
    }
}

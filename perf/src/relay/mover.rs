//! One direction of a pair: in only when nothing is held, out until nothing is.

use std::os::fd::OwnedFd;

use anyhow::Result;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// The knee on loopback.
const PIPE_BYTES: usize = 256 * 1024;
/// Operations in a turn: the others wait meanwhile.
const TURN_MAX: usize = 16;

/// What holds bytes between the two sockets.
pub(super) enum Store {
    Pipe {
        read: OwnedFd,
        write: OwnedFd,
    },
    /// What a full sink left over; the buffer itself belongs to the thread.
    Rest(Vec<u8>),
}

/// One direction.
pub(super) struct Mover {
    store: Store,
    held: usize,
    /// The source has announced its end: read on to the 0.
    pub ending: bool,
    pub done: bool,
}

/// Why a turn ended.
#[derive(PartialEq)]
pub(super) enum Turn {
    /// The source is empty or the sink is full: an edge will tell.
    Waits,
    /// Nothing stands in the way: again, behind the others.
    More,
}

impl Mover {
    pub fn new(splices: bool) -> Result<Mover> {
        let store = if splices {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            fcntl_setpipe_size(&write, PIPE_BYTES)?;
            Store::Pipe { read, write }
        } else {
            Store::Rest(Vec::new())
        };
        Ok(Mover {
            store,
            held: 0,
            ending: false,
            done: false,
        })
    }

    /// Moves from `source` to `sink`.
    pub fn turn(
        &mut self,
        source: &OwnedFd,
        sink: &OwnedFd,
        buffer: &mut [u8],
    ) -> Result<Turn, Errno> {
        for _ in 0..TURN_MAX {
            if self.done || (self.held > 0 && !self.drain(sink)?) {
                return Ok(Turn::Waits);
            }
            let (count, emptied) = match self.fill(source, sink, buffer) {
                Ok(moved) => moved,
                Err(Errno::AGAIN) => return Ok(Turn::Waits),
                Err(error) => return Err(error),
            };
            if count == 0 {
                self.done = true;
                // The other side may have closed both ways already.
                let _ = rustix::net::shutdown(sink, Shutdown::Write);
                return Ok(Turn::Waits);
            }
            if self.held == 0 && emptied && !self.ending {
                return Ok(Turn::Waits);
            }
        }
        Ok(Turn::More)
    }

    /// Bytes that came in, and whether the source is known to be empty.
    fn fill(
        &mut self,
        source: &OwnedFd,
        sink: &OwnedFd,
        buffer: &mut [u8],
    ) -> Result<(usize, bool), Errno> {
        match &mut self.store {
            Store::Pipe { write, .. } => {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                self.held = splice(source, None, write, None, PIPE_BYTES, flags)?;
                Ok((self.held, false))
            }
            Store::Rest(rest) => {
                let (_, count) = rustix::net::recv(source, &mut *buffer, RecvFlags::empty())?;
                let sent = match rustix::net::send(sink, &buffer[..count], SendFlags::NOSIGNAL) {
                    Ok(sent) => sent,
                    Err(Errno::AGAIN) => 0,
                    Err(error) => return Err(error),
                };
                rest.extend_from_slice(&buffer[sent..count]);
                self.held = rest.len();
                Ok((count, count < buffer.len()))
            }
        }
    }

    /// Whether nothing is held any more.
    fn drain(&mut self, sink: &OwnedFd) -> Result<bool, Errno> {
        while self.held > 0 {
            let moved = match &mut self.store {
                Store::Pipe { read, .. } => {
                    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                    splice(read, None, sink, None, self.held, flags)
                }
                Store::Rest(rest) => {
                    let sent = rustix::net::send(sink, rest, SendFlags::NOSIGNAL);
                    sent.inspect(|count| drop(rest.drain(..*count)))
                }
            };
            match moved {
                Ok(count) => self.held -= count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

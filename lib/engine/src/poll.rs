//! Which sockets are ready: the one seam between the engine and epoll or
//! io_uring. Readiness is edge-triggered on both.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::backend::{Backend, IoEngine};
use crate::pair::Readiness;
use crate::ring::Ring;

/// Events taken from the kernel at once.
pub const EVENTS_MAX: usize = 256;

/// What is watched for.
const INTEREST: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP);

/// One socket has news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The token it was added with.
    pub token: u64,
    /// The news.
    pub told: Readiness,
    /// It is not watched any more: add it again.
    pub ended: bool,
}

/// Tells of readiness.
pub enum Poll {
    /// By epoll.
    Epoll(Epoll),
    /// By io_uring's multishot poll.
    Ring(Box<Ring>),
}

/// An epoll instance.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    /// For the thread that calls, which alone may use it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(uring: bool) -> io::Result<Self> {
        Ok(match uring {
            true => Self::Ring(Box::new(Ring::new()?)),
            false => Self::Epoll(Epoll {
                fd: epoll::create(CreateFlags::CLOEXEC)?,
                events: Vec::with_capacity(EVENTS_MAX),
            }),
        })
    }

    /// Watches `fd`; what it is ready for already is told too.
    ///
    /// # Errors
    /// The operating system's; io_uring's come with an event instead.
    pub fn add(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        match self {
            Self::Epoll(epoll) => {
                let data = EventData::new_u64(token);
                epoll::add(&epoll.fd, fd, data, INTEREST | EventFlags::ET)?;
                Ok(())
            }
            Self::Ring(ring) => ring.add(fd, INTEREST.bits(), token),
        }
    }

    /// Stops watching what was added with `token`, before it is closed: io_uring
    /// holds on to a file that it polls, and the peer would see no end.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(&mut self, token: u64) -> io::Result<()> {
        match self {
            // The close does it: nobody else holds the socket.
            Self::Epoll(_) => Ok(()),
            Self::Ring(ring) => ring.remove(token),
        }
    }

    /// Waits at most `timeout`, for ever without one, and adds what happened.
    ///
    /// # Errors
    /// The operating system's.
    pub fn wait(&mut self, timeout: Option<Duration>, into: &mut Vec<Event>) -> io::Result<()> {
        match self {
            Self::Epoll(epoll) => epoll.wait(timeout, into),
            Self::Ring(ring) => ring.wait(timeout, into),
        }
    }
}

impl Epoll {
    fn wait(&mut self, timeout: Option<Duration>, into: &mut Vec<Event>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        let buffer = spare_capacity(&mut self.events);
        match epoll::wait(&self.fd, buffer, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
        into.extend(self.events.iter().map(|event| Event {
            token: event.data.u64(),
            told: readiness(event.flags),
            ended: false,
        }));
        Ok(())
    }
}

/// What poll flags mean for a pair.
pub(crate) fn readiness(flags: EventFlags) -> Readiness {
    let has = |flag| flags.intersects(flag);
    Readiness {
        readable: has(EventFlags::IN),
        writable: has(EventFlags::OUT),
        hup: has(EventFlags::RDHUP | EventFlags::HUP),
        error: has(EventFlags::ERR),
    }
}

/// Tries what `engine` asks for, down to a multishot poll that tells twice.
///
/// # Errors
/// When io_uring is required and does not do.
pub fn probe(engine: IoEngine) -> io::Result<Backend> {
    engine.choose(try_ring)
}

fn try_ring() -> io::Result<()> {
    const PROBE_WAIT: Duration = Duration::from_secs(1);
    let mut poll = Poll::new(true)?;
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    poll.add(near.as_fd(), 7)?;
    let mut told = Vec::new();
    for round in 0..3 {
        if round > 0 {
            rustix::io::write(&far, b"x")?;
        }
        told.clear();
        poll.wait(Some(PROBE_WAIT), &mut told)?;
        let expected = |event: &Event| event.token == 7 && !event.ended && !event.told.error;
        if !told.iter().any(expected) {
            return Err(Errno::NOSYS.into());
        }
    }
    poll.remove(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    fn polls() -> Vec<Poll> {
        let mut polls = vec![Poll::new(false).unwrap()];
        if probe(IoEngine::Auto).unwrap().uring {
            polls.push(Poll::new(true).unwrap());
        }
        polls
    }

    fn wait(poll: &mut Poll, ms: u64) -> Vec<Event> {
        let mut told = Vec::new();
        poll.wait(Some(Duration::from_millis(ms)), &mut told)
            .unwrap();
        told
    }

    #[test]
    fn edges_are_told_once_and_again() {
        for mut poll in polls() {
            let (mut near, mut far) = UnixStream::pair().unwrap();
            poll.add(near.as_fd(), 42).unwrap();
            let first = wait(&mut poll, 1000);
            assert!(
                first.iter().any(|e| e.token == 42 && e.told.writable),
                "{first:?}"
            );
            assert!(first.iter().all(|e| !e.told.readable));
            assert!(wait(&mut poll, 20).is_empty(), "an edge, no level");
            for _ in 0..3 {
                far.write_all(b"x").unwrap();
                let told = wait(&mut poll, 1000);
                assert!(told.iter().any(|e| e.told.readable && !e.ended), "{told:?}");
                near.read_exact(&mut [0]).unwrap();
            }
            far.shutdown(std::net::Shutdown::Write).unwrap();
            let told = wait(&mut poll, 1000);
            assert!(told.iter().any(|e| e.told.hup), "{told:?}");
        }
    }

    /// Also when an event of it is on its way.
    #[test]
    fn a_socket_removed_and_closed_is_gone_for_its_peer() {
        for mut poll in polls() {
            for pending in [false, true] {
                let (near, mut far) = UnixStream::pair().unwrap();
                poll.add(near.as_fd(), 1).unwrap();
                wait(&mut poll, 1000);
                if pending {
                    far.write_all(b"x").unwrap();
                }
                poll.remove(1).unwrap();
                drop(near);
                wait(&mut poll, 20);
                assert!(wait(&mut poll, 20).is_empty());
                far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                match far.read(&mut [0]) {
                    Ok(0) => assert!(!pending),
                    Err(why) if why.kind() == io::ErrorKind::ConnectionReset => assert!(pending),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn the_choice_says_why() {
        assert_eq!(probe(IoEngine::Epoll).unwrap().reason, "requested");
        let auto = probe(IoEngine::Auto).unwrap();
        assert_eq!(auto.uring, auto.reason == "available", "{auto:?}");
    }
}

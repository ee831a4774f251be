//! Listening sockets whose connections an engine thread accepts and relays by
//! itself: no session thread, no hand-over. For one hop on one machine, and for
//! measuring what such a hop costs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use culvert_net::listen::bound_probes;
use culvert_net::socket::{lift_user_timeout, set_leg_options};

use crate::inbox::{Arrival, Places};
use crate::poll::{Event, Poll};
use crate::slab::TOKEN_MAX;

/// Hops of one thread.
pub const HOPS_MAX: usize = 64;
/// Connections that one hop accepts before the pairs have their turn.
const ACCEPTS_MAX: usize = 64;
/// How long a hop waits when no descriptor or no memory is left, ms.
const PAUSE_MS: u64 = 100;
/// The tokens of doors: above those of the pairs.
pub const DOORS: u64 = TOKEN_MAX + 1;

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// What [`Engine::hop`](crate::Engine::hop) serves until the engine ends.
pub struct Hop {
    /// Listens. What it accepts inherits its options: NODELAY, keepalive 15/5/3
    /// and a close that is RST are set on it.
    pub listener: OwnedFd,
    /// Each accepted connection is joined to one that is opened to here, with
    /// NODELAY and without keepalive: it is meant to be local. Bytes of the
    /// client wait in its socket until that connection stands. Refused, the
    /// client is reset; without an answer, after as long as the kernel tries,
    /// 130 s at most.
    pub target: SocketAddr,
    /// A number for the cluster, as in [`Join`](crate::Join).
    pub cluster: u32,
}

/// A hop at work.
pub struct Door {
    listener: OwnedFd,
    target: SocketAddr,
    cluster: u32,
    places: Arc<Places>,
    /// A poll told of it since it was last asked how many wait.
    ready: bool,
    /// Connections that wait to be accepted, as far as is known.
    waiting: u32,
    paused_until_ms: Option<u64>,
    /// Accepted connections are probed at most 5 s apart.
    probed: bool,
}

/// What an attempt to accept brought.
enum Guest {
    Came(Arrival),
    /// It could not be served, and was reset.
    Refused,
    Nobody,
    /// The listener is no more.
    Broke(Errno),
}

impl Door {
    /// Sets what accepted connections inherit.
    ///
    /// # Errors
    /// The operating system's, for a socket that does not listen for TCP.
    pub fn new(hop: Hop, places: Arc<Places>) -> io::Result<Self> {
        let Hop {
            listener,
            target,
            cluster,
        } = hop;
        if !sockopt::socket_acceptconn(&listener)? {
            return Err(io::Error::other("the socket of a hop does not listen"));
        }
        rustix::io::ioctl_fionbio(&listener, true)?;
        set_leg_options(&listener)?;
        lift_user_timeout(&listener)?;
        sockopt::set_socket_linger(&listener, Some(Duration::ZERO))?;
        let probed = bound_probes(&listener).is_ok();
        Ok(Self {
            listener,
            target,
            cluster,
            places,
            ready: true,
            waiting: 0,
            paused_until_ms: None,
            probed,
        })
    }

    fn opens(&mut self, now_ms: u64) -> bool {
        self.paused_until_ms = self.paused_until_ms.filter(|until| *until > now_ms);
        (self.ready || self.waiting > 0) && self.paused_until_ms.is_none()
    }

    /// How many wait. An accept that finds nobody costs the kernel a file and an
    /// inode; this costs it nothing.
    fn count(&mut self) {
        if self.waiting == 0 && std::mem::take(&mut self.ready) {
            let told = culvert_net::listen::progress(&self.listener);
            // `tcpi_unacked` of a listener is the length of its queue.
            self.waiting = told.map_or(u32::MAX, |told| told.segments_unacked);
        }
    }

    /// Accepts one connection and begins to open the other.
    fn accept(&mut self, now_ms: u64) -> Guest {
        self.count();
        if self.waiting == 0 {
            return Guest::Nobody;
        }
        let client = match rustix::net::accept_with(&self.listener, FLAGS) {
            Ok(client) => client,
            // Somebody else took it.
            Err(Errno::AGAIN) => {
                self.waiting = 0;
                return Guest::Nobody;
            }
            // No event comes for those that wait already.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                self.paused_until_ms = Some(now_ms + PAUSE_MS);
                return Guest::Nobody;
            }
            Err(why @ (Errno::BADF | Errno::INVAL | Errno::NOTSOCK)) => return Guest::Broke(why),
            // It broke while it waited.
            Err(_) => {
                self.waiting -= 1;
                return Guest::Refused;
            }
        };
        self.waiting -= 1;
        let Ok(place) = self.places.take(self.cluster) else {
            return Guest::Refused;
        };
        match connect(self.target) {
            Ok(service) => Guest::Came(Arrival {
                sockets: [client, service],
                early: [Vec::new(), Vec::new()],
                probed: [self.probed, false],
                cluster: self.cluster,
                live: Arc::default(),
                ended: None,
                place,
                observer: None,
            }),
            Err(why) => {
                tracing::debug!(target_addr = %self.target, %why, "a hop opens no connection");
                Guest::Refused
            }
        }
    }
}

/// A connection on its way.
fn connect(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, FLAGS, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(why) => Err(why),
    }
}

/// The hops of one thread.
#[derive(Default)]
pub struct Doors {
    doors: Vec<Option<Door>>,
    refused: u64,
}

impl Doors {
    /// Opens one more.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(&mut self, door: Door, poll: &mut Poll) -> io::Result<()> {
        if self.doors.len() >= HOPS_MAX {
            tracing::error!(limit = HOPS_MAX, "a thread has as many hops as it may");
            return Ok(());
        }
        poll.add(door.listener.as_fd(), DOORS + self.doors.len() as u64)?;
        self.doors.push(Some(door));
        Ok(())
    }

    /// Closes all.
    ///
    /// # Errors
    /// The operating system's.
    pub fn close(&mut self, poll: &mut Poll) -> io::Result<()> {
        for (door, token) in self.doors.iter_mut().zip(DOORS..) {
            if door.take().is_some() {
                poll.remove(token)?;
            }
        }
        Ok(())
    }

    /// A poll told of one.
    ///
    /// # Errors
    /// The operating system's.
    pub fn knock(&mut self, event: &Event, poll: &mut Poll) -> io::Result<()> {
        let number = usize::try_from(event.token - DOORS).unwrap_or(usize::MAX);
        if let Some(Some(door)) = self.doors.get_mut(number) {
            door.ready = true;
            if event.ended {
                poll.add(door.listener.as_fd(), event.token)?;
            }
        }
        Ok(())
    }

    /// Whether there is something to accept now, else when to ask again, in ms
    /// of the clock.
    pub fn wants(&mut self, now_ms: u64) -> Result<(), Option<u64>> {
        let mut next = None;
        for door in self.doors.iter_mut().flatten() {
            if door.opens(now_ms) {
                return Ok(());
            }
            next = next.into_iter().chain(door.paused_until_ms).min();
        }
        Err(next)
    }

    /// Accepts what waits, a bounded number at each door.
    ///
    /// # Errors
    /// The operating system's.
    pub fn admit(
        &mut self,
        now_ms: u64,
        poll: &mut Poll,
        into: &mut Vec<Arrival>,
    ) -> io::Result<()> {
        for (place, token) in self.doors.iter_mut().zip(DOORS..) {
            for _ in 0..ACCEPTS_MAX {
                let Some(door) = place else { break };
                if !door.opens(now_ms) {
                    break;
                }
                match door.accept(now_ms) {
                    Guest::Came(arrival) => into.push(arrival),
                    Guest::Refused => self.refused += 1,
                    Guest::Nobody => break,
                    Guest::Broke(why) => {
                        tracing::error!(%why, "the listener of a hop broke; it is closed");
                        *place = None;
                        poll.remove(token)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Connections that were accepted and could not be joined.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

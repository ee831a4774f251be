//! The relay engine: moves the bytes of established pairs of TCP connections.
//!
//! `flow` is one direction and `pair` two of them, both pure over `kernel`.
//! `pipe` lends pipes, `poll` tells of readiness by epoll or io_uring
//! (`backend` says which), `thread` owns the pairs of one thread, `hop`
//! lets it accept by itself, `metrics` tells, with `tally` for turns and `legs`
//! for connections, `observe` lets others look at a pair's sockets. This file
//! places pairs and can cut them.
#![deny(unsafe_code)]

mod backend;
#[cfg(debug_assertions)]
pub mod drag;
mod flow;
mod hop;
mod inbox;
mod kernel;
pub mod legs;
mod metrics;
#[cfg(test)]
mod model;
mod observe;
mod pair;
mod pipe;
mod poll;
mod ring;
mod slab;
mod spin;
mod tally;
mod thread;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use culvert_net::listen::{bound_probes, lift_user_timeout};
use culvert_proto::close::CloseReason;

use hop::Door;
use inbox::{Arrival, Command, Inbox, Places};
use thread::Worker;

pub use backend::{Backend, IoEngine, refusal};
pub use hop::{HOPS_MAX, Hop};
pub use inbox::{Gauges, Live, Summary};
pub use metrics::EngineMetrics;
pub use observe::{Handle, Observe};
pub use pair::Limits;
pub use poll::probe;
pub use thread::Share;

/// What one turn of one pair is, over a kernel of the caller's: for benches that
/// count what it costs.
pub mod step {
    pub use culvert_net::listen::Progress;

    pub use crate::flow::{COPY_BYTES, Env, Rests};
    pub use crate::kernel::Kernel;
    pub use crate::pair::{Outcome, Pair, Readiness, Side};
    pub use crate::pipe::Pool;
}

/// Bytes read from a side before the pair was joined.
pub const EARLY_BYTES_MAX: usize = 64 << 10;

/// What an engine may use.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Threads.
    pub threads: usize,
    /// What they are told of readiness by.
    pub backend: Backend,
    /// Pairs, over all threads.
    pub pairs_max: usize,
    /// Pairs of one cluster.
    pub cluster_pairs_max: usize,
    /// What each thread may use.
    pub share: Share,
}

/// Two connections to be joined.
pub struct Join {
    /// Who asked. Nobody else may hold or watch it.
    pub client: OwnedFd,
    /// The agent's leg. Nobody else may hold or watch it. It may still be
    /// connecting: bytes then wait, and a refusal ends the pair with
    /// [`CloseReason::DialRefused`].
    pub service: OwnedFd,
    /// Read from the client already, at most [`EARLY_BYTES_MAX`].
    pub from_client: Vec<u8>,
    /// Read from the service already, at most [`EARLY_BYTES_MAX`].
    pub from_service: Vec<u8>,
    /// A number for the cluster.
    pub cluster: u32,
}

/// A pair in an engine.
pub struct Joined {
    /// Its counters.
    pub live: Arc<Live>,
    /// How it ended; an error when it was broken before it was joined.
    pub ended: oneshot::Receiver<Summary>,
    inbox: Arc<Inbox>,
}

/// Engine threads. Dropped, they end, and every pair is reset.
pub struct Engine {
    threads: Vec<(Arc<Inbox>, JoinHandle<()>)>,
    places: Arc<Places>,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(settings: &Settings) -> io::Result<Self> {
        let mut engine = Self {
            threads: Vec::new(),
            places: Places::new(settings.pairs_max, settings.cluster_pairs_max),
        };
        for number in 0..settings.threads.max(1) {
            let inbox = Inbox::new()?;
            let (started, wait) = mpsc::channel();
            let (own, uring, share) = (inbox.clone(), settings.backend.uring, settings.share);
            let thread = std::thread::Builder::new()
                .name(format!("engine-{number}"))
                .spawn(move || work(own, uring, share, &started))?;
            engine.threads.push((inbox, thread));
            let gone = |_| io::Error::other("an engine thread ended before it served");
            wait.recv().map_err(gone)??;
        }
        Ok(engine)
    }

    /// Joins two connections on the least loaded thread. What is refused is
    /// reset.
    ///
    /// # Errors
    /// The limit that is reached, or [`CloseReason::Internal`] for sockets that
    /// are none.
    pub fn join(&self, join: Join) -> Result<Joined, CloseReason> {
        self.join_observed(join, None)
    }

    /// The same, with somebody who watches the pair.
    ///
    /// # Errors
    /// As [`Engine::join`].
    pub fn join_observed(
        &self,
        join: Join,
        observer: Option<Box<dyn Observe>>,
    ) -> Result<Joined, CloseReason> {
        let sockets = [join.client, join.service];
        for socket in &sockets {
            prepare(socket).map_err(|_| CloseReason::Internal)?;
        }
        if join.from_client.len().max(join.from_service.len()) > EARLY_BYTES_MAX {
            return Err(CloseReason::Internal);
        }
        let place = self.places.take(join.cluster)?;
        let probed = sockets
            .each_ref()
            .map(|socket| bound_probes(&socket.as_fd()).is_ok());
        let inbox = self.least_loaded().map_err(|_| CloseReason::Internal)?;
        let (tell, ended) = oneshot::channel();
        let live = Arc::new(Live::default());
        inbox.gauges.pairs.fetch_add(1, Ordering::Relaxed);
        inbox.put(Command::Join(Box::new(Arrival {
            sockets,
            early: [join.from_client, join.from_service],
            probed,
            cluster: join.cluster,
            live: live.clone(),
            ended: Some(tell),
            place,
            observer,
        })));
        let inbox = inbox.clone();
        Ok(Joined { live, ended, inbox })
    }

    fn least_loaded(&self) -> io::Result<&Arc<Inbox>> {
        let load = |(inbox, _): &&(Arc<Inbox>, _)| inbox.gauges.pairs.load(Ordering::Relaxed);
        let least = self.threads.iter().min_by_key(load);
        let none = || io::Error::other("the engine has no thread");
        least.map(|(inbox, _)| inbox).ok_or_else(none)
    }

    /// Accepts from a listener on the thread with the fewest pairs, until the
    /// engine ends, and joins each connection to one that it opens. Pairs of a
    /// hop count towards the limits; over one, the client is reset. How a pair
    /// ended is logged at debug level.
    ///
    /// # Errors
    /// The operating system's, for a socket that does not listen for TCP.
    pub fn hop(&self, hop: Hop) -> io::Result<()> {
        let door = Door::new(hop, self.places.clone())?;
        self.least_loaded()?.put(Command::Open(Box::new(door)));
        Ok(())
    }

    /// The counters of each thread.
    pub fn gauges(&self) -> impl Iterator<Item = &Gauges> {
        self.threads.iter().map(|(inbox, _)| &inbox.gauges)
    }
}

impl Joined {
    /// Leads to it.
    pub fn handle(&self) -> Handle {
        Handle {
            live: self.live.clone(),
            inbox: self.inbox.clone(),
        }
    }

    /// Resets both ends; the summary says `reason`.
    pub fn cut(&self, reason: CloseReason) {
        self.inbox.put(Command::Cut(self.live.clone(), reason));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for (inbox, _) in &self.threads {
            inbox.put(Command::Stop);
        }
        for (_, thread) in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an engine thread panicked");
            }
        }
    }
}

/// Armed first: a refusal has to look like one. The user timeout would cut a
/// peer that pauses.
fn prepare(socket: &OwnedFd) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
    rustix::io::ioctl_fionbio(socket, true)?;
    lift_user_timeout(socket)
}

fn work(inbox: Arc<Inbox>, uring: bool, share: Share, started: &mpsc::Sender<io::Result<()>>) {
    let worker = match Worker::new(inbox, uring, &share) {
        Ok(worker) => worker,
        Err(why) => {
            let _ = started.send(Err(why));
            return;
        }
    };
    let _ = started.send(Ok(()));
    if let Err(why) = worker.run() {
        tracing::error!(%why, "an engine thread ended; its pairs are reset");
    }
}

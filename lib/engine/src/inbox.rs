//! What reaches an engine thread from outside, and what it tells.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use culvert_proto::close::CloseReason;

use crate::hop::Door;
use crate::observe::{Observe, Visit};
use crate::tally::Turns;

/// Counters of one pair that may be read while it lives. Bytes count when they
/// were delivered to the other side's socket.
#[derive(Debug)]
pub struct Live {
    /// Towards the service.
    pub to_service: AtomicU64,
    /// Towards the client.
    pub to_client: AtomicU64,
    /// Of both, bytes that no copy touched.
    pub spliced: AtomicU64,
    /// Time in which bytes waited for room in the other side's socket, towards
    /// the service and towards the client.
    pub stalled_ns: [AtomicU64; 2],
    /// From the join to the first byte towards the client; 0 before it.
    pub first_byte_ns: AtomicU64,
    /// Where the thread finds it.
    pub(crate) place: AtomicU64,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            to_service: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            spliced: AtomicU64::new(0),
            stalled_ns: Default::default(),
            first_byte_ns: AtomicU64::new(0),
            // Nowhere, until it is joined.
            place: AtomicU64::new(u64::MAX),
        }
    }
}

/// How a pair ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Why.
    pub reason: CloseReason,
    /// Bytes delivered to the service.
    pub to_service: u64,
    /// Bytes delivered to the client.
    pub to_client: u64,
    /// Of both, bytes that no copy touched.
    pub spliced: u64,
    /// Its life in ms.
    pub life_ms: u64,
}

/// Counters of one thread.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Pairs now.
    pub pairs: AtomicUsize,
    /// Bytes delivered so far, both ways, of all its pairs.
    pub bytes: AtomicU64,
    /// Of those, the ones that no copy touched.
    pub spliced_bytes: AtomicU64,
    /// Pipes in use now.
    pub pipes: AtomicUsize,
    /// Pipes kept for the next direction.
    pub pipes_idle: AtomicUsize,
    /// How often a direction had to copy for want of a pipe.
    pub pipes_exhausted: AtomicU64,
    /// Bytes read and not sent now.
    pub rest_bytes: AtomicUsize,
    /// Time spun, in us.
    pub spun_us: AtomicU64,
    /// Connections that hops had to reset in place of joining them.
    pub hops_refused: AtomicU64,
    /// Turns of pairs that panicked: each a defect, and the reset of its pair.
    pub panics: AtomicU64,
    /// Turns of pairs.
    pub turns: Turns,
}

/// A pair on its way into a thread.
pub(crate) struct Arrival {
    pub sockets: [OwnedFd; 2],
    pub early: [Vec<u8>; 2],
    pub probed: [bool; 2],
    pub cluster: u32,
    pub live: Arc<Live>,
    /// Who wants to hear of its end.
    pub ended: Option<oneshot::Sender<Summary>>,
    pub place: Place,
    pub observer: Option<Box<dyn Observe>>,
}

pub(crate) enum Command {
    Join(Box<Arrival>),
    Open(Box<Door>),
    Cut(Arc<Live>, CloseReason),
    Visit(Visit),
    Stop,
}

/// The way into one thread.
pub(crate) struct Inbox {
    commands: Mutex<Vec<Command>>,
    /// Wakes the thread.
    pub bell: OwnedFd,
    rung: AtomicBool,
    pub gauges: Gauges,
}

impl Inbox {
    pub fn new() -> std::io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            commands: Mutex::default(),
            bell,
            rung: AtomicBool::new(false),
            gauges: Gauges::default(),
        }))
    }

    /// Bounded by the places that are given out.
    pub fn put(&self, command: Command) {
        self.commands.lock().push(command);
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Full means rung.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    pub fn take(&self) -> Vec<Command> {
        // Edge-triggered: a later ring is an edge, read or not. Reading keeps
        // the count from filling up.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        self.rung.store(false, Ordering::Release);
        std::mem::take(&mut self.commands.lock())
    }
}

/// How many pairs there may be, in all and for one cluster.
#[derive(Debug)]
pub(crate) struct Places {
    pairs_max: usize,
    cluster_pairs_max: usize,
    taken: Mutex<(usize, HashMap<u32, usize>)>,
}

/// A pair's place. Dropping it gives it back.
pub(crate) struct Place {
    places: Arc<Places>,
    cluster: u32,
}

impl Places {
    pub fn new(pairs_max: usize, cluster_pairs_max: usize) -> Arc<Self> {
        Arc::new(Self {
            pairs_max,
            cluster_pairs_max,
            taken: Mutex::default(),
        })
    }

    /// A place for a pair of `cluster`, or which limit is reached.
    pub fn take(self: &Arc<Self>, cluster: u32) -> Result<Place, CloseReason> {
        let mut taken = self.taken.lock();
        let (all, by_cluster) = &mut *taken;
        if *all >= self.pairs_max {
            return Err(CloseReason::Overload);
        }
        let own = by_cluster.entry(cluster).or_default();
        if *own >= self.cluster_pairs_max {
            return Err(CloseReason::TooManyStreams);
        }
        *own += 1;
        *all += 1;
        drop(taken);
        Ok(Place {
            places: self.clone(),
            cluster,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        let (all, by_cluster) = &mut *taken;
        *all -= 1;
        if let Some(own) = by_cluster.get_mut(&self.cluster) {
            *own -= 1;
            if *own == 0 {
                by_cluster.remove(&self.cluster);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_each_cluster_and_come_back() {
        let places = Places::new(3, 2);
        let refused = |cluster| places.take(cluster).err();
        let first = places.take(1).ok().unwrap();
        let _second = places.take(1).ok().unwrap();
        assert_eq!(refused(1), Some(CloseReason::TooManyStreams));
        let _third = places.take(2).ok().unwrap();
        assert_eq!(refused(2), Some(CloseReason::Overload));
        drop(first);
        assert_eq!(refused(1), None, "and given back at once");
        assert_eq!(places.taken.lock().0, 2);
    }
}

//! The records that the kernel leaves of closed connections.

use aya::maps::{MapData, RingBuf};
use culvert_abi::{Close, SELF_TEST, maps};
use parking_lot::MutexGuard;

use crate::kernel::Kernel;
use crate::observer::Observer;

/// Records that one drain gives: as many as fit into the ring.
const DRAIN_MAX: usize = maps::CLOSE_BYTES as usize / (Close::BYTES + 8);

/// A drain of the ring. One runs at a time.
pub struct Closes<'a> {
    ring: Option<MutexGuard<'a, RingBuf<MapData>>>,
    left: usize,
}

impl Iterator for Closes<'_> {
    type Item = Close;

    fn next(&mut self) -> Option<Close> {
        let ring = self.ring.as_mut()?;
        while self.left > 0 {
            self.left -= 1;
            let close = Kernel::next_close(ring)?;
            if close.cluster != SELF_TEST {
                return Some(close);
            }
        }
        None
    }
}

impl Observer {
    /// Drains the ring of close records; every 250 ms will do. What found no room meanwhile is
    /// counted in [`culvert_abi::Own::ClosesLost`].
    pub fn closes(&self) -> Closes<'_> {
        let kernel = self.shared.kernel.as_ref();
        Closes {
            ring: kernel.map(|it| it.closes.lock()),
            left: DRAIN_MAX,
        }
    }
}

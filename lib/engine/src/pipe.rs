//! The pipes of one engine thread: made when needed, kept for the next, bounded
//! as a whole and for each cluster (performance.md 2.3).

use std::collections::HashMap;

use rustix::io::Errno;

use crate::kernel::Kernel;

/// Size of a pipe while there is room for many.
pub const PIPE_BYTES: usize = 256 << 10;
/// Size above half of the share, and the least that is used at all.
pub const PIPE_BYTES_LOW: usize = 64 << 10;
/// After the kernel refused a pipe, none is asked for this long, ms.
const REFUSED_WAIT_MS: u64 = 1_000;

/// A pipe in use.
#[derive(Debug)]
pub struct Pipe<P> {
    /// Its ends.
    pub ends: P,
    /// How much it takes.
    pub size: usize,
    /// Bytes in it.
    pub filled: usize,
}

/// What a thread may use, and what it uses.
#[derive(Debug)]
pub struct Pool<P> {
    idle: Vec<Pipe<P>>,
    lent: usize,
    lent_by: HashMap<u32, usize>,
    pipes_max: usize,
    refused_until_ms: u64,
    exhausted: u64,
}

impl<P> Pool<P> {
    /// At most `pipes_max` pipes, a quarter of them for one cluster.
    pub fn new(pipes_max: usize) -> Self {
        Self {
            idle: Vec::new(),
            lent: 0,
            lent_by: HashMap::new(),
            pipes_max,
            refused_until_ms: 0,
            exhausted: 0,
        }
    }

    /// An empty pipe for a pair of `cluster`; `None` where it has to copy.
    pub fn borrow<K: Kernel<Pipe = P>>(
        &mut self,
        kernel: &mut K,
        cluster: u32,
        now_ms: u64,
    ) -> Option<Pipe<P>> {
        let cluster_max = self.pipes_max.div_ceil(4);
        let by_cluster = self.lent_by.get(&cluster).copied().unwrap_or(0);
        let pipe = match self.lent < self.pipes_max && by_cluster < cluster_max {
            true => self.idle.pop().or_else(|| self.make(kernel, now_ms)),
            false => None,
        };
        if pipe.is_some() {
            self.lent += 1;
            *self.lent_by.entry(cluster).or_default() += 1;
        } else {
            self.exhausted += 1;
        }
        pipe
    }

    fn make<K: Kernel<Pipe = P>>(&mut self, kernel: &mut K, now_ms: u64) -> Option<Pipe<P>> {
        if now_ms < self.refused_until_ms {
            return None;
        }
        let many = self.lent >= self.pipes_max.div_ceil(2);
        let wanted = if many { PIPE_BYTES_LOW } else { PIPE_BYTES };
        let made: Result<_, Errno> = kernel.pipe(wanted);
        match made {
            Ok((ends, size)) if size >= PIPE_BYTES_LOW => Some(Pipe {
                ends,
                size,
                filled: 0,
            }),
            // Beyond its share a user gets two slots, or no descriptor is left.
            Ok(_) | Err(_) => {
                self.refused_until_ms = now_ms + REFUSED_WAIT_MS;
                None
            }
        }
    }

    /// Takes a pipe back. One that holds a byte is closed: it would give that
    /// byte to the next borrower.
    pub fn give_back(&mut self, cluster: u32, pipe: Pipe<P>) {
        self.lent = self.lent.saturating_sub(1);
        if let Some(by_cluster) = self.lent_by.get_mut(&cluster) {
            *by_cluster -= 1;
            if *by_cluster == 0 {
                self.lent_by.remove(&cluster);
            }
        }
        if pipe.filled == 0 && self.idle.len() + self.lent < self.pipes_max {
            self.idle.push(pipe);
        }
    }

    /// Pipes in use.
    pub fn lent(&self) -> usize {
        self.lent
    }

    /// Pipes that wait for the next.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// How often there was none.
    pub fn exhausted(&self) -> u64 {
        self.exhausted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Linux;

    #[test]
    fn a_pipe_that_holds_a_byte_is_never_lent_again() {
        let mut pool = Pool::new(8);
        let mut pipe = pool.borrow(&mut Linux, 1, 0).unwrap();
        assert!(pipe.size >= PIPE_BYTES_LOW);
        pipe.filled = 1;
        pool.give_back(1, pipe);
        assert!(pool.idle.is_empty());
        let pipe = pool.borrow(&mut Linux, 1, 0).unwrap();
        pool.give_back(1, pipe);
        assert_eq!((pool.idle.len(), pool.lent()), (1, 0));
    }

    #[test]
    fn one_cluster_gets_a_quarter_and_all_get_no_more_than_there_are() {
        let mut pool = Pool::new(8);
        let mut held = Vec::new();
        for cluster in 1..=5 {
            for _ in 0..3 {
                held.extend(
                    pool.borrow(&mut Linux, cluster, 0)
                        .map(|pipe| (cluster, pipe)),
                );
            }
        }
        assert_eq!(held.len(), 8, "two for each of four clusters");
        assert_eq!(pool.exhausted(), 7);
        assert!(
            held[0].1.size > held[7].1.size,
            "small ones when half is out"
        );
        for (cluster, pipe) in held {
            pool.give_back(cluster, pipe);
        }
        assert_eq!((pool.lent(), pool.lent_by.len()), (0, 0));
    }
}

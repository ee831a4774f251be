//! One direction of a pair: small messages are copied through the thread's
//! buffer, bulk is spliced through a borrowed pipe.
//!
//! Readiness is edge-triggered: a flag falls only on EAGAIN, or on a short
//! read, after which the kernel tells of the next byte. A pipe is filled only
//! when it is empty, so EAGAIN on the way in means that the source is empty,
//! and on the way out that the sink is full (performance.md 2.2).

use std::ops::ControlFlow::{self, Break, Continue};

use rustix::io::Errno;

use crate::kernel::Kernel;
use crate::pipe::{Pipe, Pool};

/// The buffer that all copies of a thread go through.
pub const COPY_BYTES: usize = 64 << 10;
/// Calls of one turn, and bytes.
pub const TURN_OPS_MAX: u32 = 16;
/// See [`TURN_OPS_MAX`].
pub const TURN_BYTES_MAX: u64 = 256 << 10;
/// Full reads in a row after which a direction splices.
pub const PROMOTE_READS: u8 = 1;
/// Splices in a row under [`THIN_BYTES`] after which it copies again.
pub const DEMOTE_SPLICES: u8 = 8;
/// See [`DEMOTE_SPLICES`].
pub const THIN_BYTES: usize = 16 << 10;
/// A read while the budget of unsent rests is used up.
pub const LEAN_READ_BYTES: usize = 4 << 10;

/// What the flows of one thread share, and whom this one belongs to.
pub struct Env<'a, K: Kernel> {
    /// Answers.
    pub kernel: &'a mut K,
    /// Lends pipes.
    pub pool: &'a mut Pool<K::Pipe>,
    /// Bounds what is copied and not sent.
    pub rests: &'a mut Rests,
    /// [`COPY_BYTES`] for everybody's use.
    pub scratch: &'a mut [u8],
    /// Whose pair this is.
    pub cluster: u32,
    /// The clock.
    pub now_ms: u64,
}

/// Bytes that were read and not sent, over all pairs of a thread.
#[derive(Debug)]
pub struct Rests {
    held: usize,
    bytes_max: usize,
}

impl Rests {
    /// At most `bytes_max`, beside [`LEAN_READ_BYTES`] for each direction.
    pub fn new(bytes_max: usize) -> Self {
        Self { held: 0, bytes_max }
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held
    }

    fn read_max(&self) -> usize {
        match self.held + COPY_BYTES <= self.bytes_max {
            true => COPY_BYTES,
            false => LEAN_READ_BYTES,
        }
    }
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It waits for readiness.
    Waits,
    /// It may go on: its share of this round is used up.
    Again,
    /// The kernel is short of memory: later.
    Starved,
    /// EOF was relayed after the last byte.
    Done,
    /// The source broke.
    SourceBroke(Errno),
    /// The sink broke.
    SinkBroke(Errno),
}

/// One direction.
#[derive(Debug)]
pub struct Flow<P> {
    /// The source may have something.
    pub readable: bool,
    /// The sink may take something.
    pub writable: bool,
    /// The source's FIN is on its way: read on to the 0.
    pub hup: bool,
    /// The other direction sent FIN to the source.
    pub answered: bool,
    eof: bool,
    done: bool,
    splicing: bool,
    unspliceable: bool,
    full_reads: u8,
    thin: u8,
    rest: Vec<u8>,
    rest_at: usize,
    pipe: Option<Pipe<P>>,
    moved: u64,
    spliced: u64,
}

impl<P> Flow<P> {
    /// A direction that delivers `early` first. The poll tells what it may do.
    pub fn new(early: Vec<u8>, rests: &mut Rests) -> Self {
        rests.held += early.len();
        Self {
            readable: false,
            writable: false,
            hup: false,
            answered: false,
            eof: false,
            done: false,
            splicing: false,
            unspliceable: false,
            full_reads: 0,
            thin: 0,
            rest: early,
            rest_at: 0,
            pipe: None,
            moved: 0,
            spliced: 0,
        }
    }

    /// Bytes delivered.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Of those, the ones that no copy touched.
    pub fn spliced(&self) -> u64 {
        self.spliced
    }

    /// Whether EOF was relayed.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether it moves bulk.
    pub fn is_splicing(&self) -> bool {
        self.splicing
    }

    /// Bytes taken from the source that the sink does not take.
    pub fn pending(&self) -> usize {
        let piped = self.pipe.as_ref().map_or(0, |pipe| pipe.filled);
        self.rest.len() - self.rest_at + piped
    }

    /// Whether they wait for room.
    pub fn waits_for_room(&self) -> bool {
        !self.writable && self.pending() > 0
    }

    /// Moves what can be moved, within a fair share.
    pub fn turn<K: Kernel<Pipe = P>>(
        &mut self,
        from: &K::Socket,
        to: &K::Socket,
        env: &mut Env<'_, K>,
    ) -> Turn {
        let before = self.moved;
        let mut ended = Turn::Again;
        for _ in 0..TURN_OPS_MAX {
            if let Break(turn) = self.step(from, to, env) {
                ended = turn;
                break;
            }
            if self.moved - before >= TURN_BYTES_MAX {
                break;
            }
        }
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.filled == 0) {
            env.pool.give_back(env.cluster, pipe);
        }
        ended
    }

    /// Gives everything back that it holds.
    pub fn release<K: Kernel<Pipe = P>>(&mut self, env: &mut Env<'_, K>) {
        env.rests.held -= self.rest.len();
        self.rest = Vec::new();
        self.rest_at = 0;
        if let Some(pipe) = self.pipe.take() {
            env.pool.give_back(env.cluster, pipe);
        }
    }

    fn step<K: Kernel<Pipe = P>>(
        &mut self,
        from: &K::Socket,
        to: &K::Socket,
        env: &mut Env<'_, K>,
    ) -> ControlFlow<Turn> {
        if self.done {
            return Break(Turn::Done);
        }
        if !self.writable {
            // FIN waits too: it would end a connection that is being opened.
            return Break(Turn::Waits);
        }
        if self.pending() > 0 {
            return match self.rest.is_empty() {
                true => self.drain_pipe(to, env),
                false => self.drain_rest(to, env),
            };
        }
        if self.eof {
            if let Err(why) = env.kernel.finish(to) {
                return Break(Turn::SinkBroke(why));
            }
            self.done = true;
            return Break(Turn::Done);
        }
        if !self.readable {
            return Break(Turn::Waits);
        }
        if self.splicing && self.pipe.is_none() {
            self.pipe = env.pool.borrow(env.kernel, env.cluster, env.now_ms);
            self.splicing = self.pipe.is_some();
        }
        match self.splicing {
            true => self.fill_pipe(from, env),
            false => self.copy(from, to, env),
        }
    }

    fn copy<K: Kernel<Pipe = P>>(
        &mut self,
        from: &K::Socket,
        to: &K::Socket,
        env: &mut Env<'_, K>,
    ) -> ControlFlow<Turn> {
        let asked = env.rests.read_max();
        let got = match env.kernel.recv(from, &mut env.scratch[..asked]) {
            Ok(got) => got,
            Err(why) => return self.source_said(why),
        };
        if got == 0 {
            return self.ended(from, env);
        }
        if got == asked {
            self.full_reads = self.full_reads.saturating_add(1);
            self.splicing = self.full_reads >= PROMOTE_READS && !self.unspliceable;
        } else {
            self.full_reads = 0;
            // The next byte, or the FIN behind these, raises it again.
            self.readable = self.hup;
        }
        let (sent, said) = match env.kernel.send(to, &env.scratch[..got]) {
            Ok(sent) => (sent, Continue(())),
            Err(why) => (0, self.sink_said(why)),
        };
        self.moved += sent as u64;
        if sent < got {
            self.rest = env.scratch[sent..got].to_vec();
            env.rests.held += self.rest.len();
        }
        said
    }

    fn drain_rest<K: Kernel<Pipe = P>>(
        &mut self,
        to: &K::Socket,
        env: &mut Env<'_, K>,
    ) -> ControlFlow<Turn> {
        match env.kernel.send(to, &self.rest[self.rest_at..]) {
            Ok(sent) => {
                self.moved += sent as u64;
                self.rest_at += sent;
                if self.rest_at == self.rest.len() {
                    env.rests.held -= self.rest.len();
                    self.rest = Vec::new();
                    self.rest_at = 0;
                }
                Continue(())
            }
            Err(why) => self.sink_said(why),
        }
    }

    fn fill_pipe<K: Kernel<Pipe = P>>(
        &mut self,
        from: &K::Socket,
        env: &mut Env<'_, K>,
    ) -> ControlFlow<Turn> {
        let Some(pipe) = &mut self.pipe else {
            return Continue(());
        };
        match env.kernel.splice_in(from, &pipe.ends, pipe.size) {
            Ok(0) => return self.ended(from, env),
            Ok(got) => {
                pipe.filled = got;
                let thin = got < THIN_BYTES;
                self.thin = if thin { self.thin + 1 } else { 0 };
                if self.thin >= DEMOTE_SPLICES {
                    self.demote();
                }
            }
            // A socket that cannot be spliced from is copied from.
            Err(Errno::INVAL) => {
                self.unspliceable = true;
                self.demote();
            }
            Err(why) => return self.source_said(why),
        }
        Continue(())
    }

    /// A read gave 0.
    fn ended<K: Kernel<Pipe = P>>(
        &mut self,
        from: &K::Socket,
        env: &mut Env<'_, K>,
    ) -> ControlFlow<Turn> {
        // A socket that was finished both ways is as closed as a reset one; that nothing is sent to
        // it any more leaves nobody who could have swallowed a reset.
        if !self.answered && !env.kernel.fin_came(from) {
            return Break(Turn::SourceBroke(Errno::CONNRESET));
        }
        self.eof = true;
        Continue(())
    }

    fn drain_pipe<K: Kernel<Pipe = P>>(
        &mut self,
        to: &K::Socket,
        env: &mut Env<'_, K>,
    ) -> ControlFlow<Turn> {
        let Some(pipe) = &mut self.pipe else {
            return Continue(());
        };
        match env.kernel.splice_out(&pipe.ends, to, pipe.filled) {
            Ok(0) => Break(Turn::SinkBroke(Errno::PIPE)),
            Ok(sent) => {
                pipe.filled -= sent;
                self.moved += sent as u64;
                self.spliced += sent as u64;
                Continue(())
            }
            Err(why) => self.sink_said(why),
        }
    }

    fn demote(&mut self) {
        self.splicing = false;
        self.thin = 0;
        self.full_reads = 0;
    }

    fn source_said(&mut self, why: Errno) -> ControlFlow<Turn> {
        Break(match why {
            Errno::AGAIN => {
                self.readable = false;
                Turn::Waits
            }
            Errno::NOBUFS | Errno::NOMEM => Turn::Starved,
            why => Turn::SourceBroke(why),
        })
    }

    fn sink_said(&mut self, why: Errno) -> ControlFlow<Turn> {
        Break(match why {
            Errno::AGAIN => {
                self.writable = false;
                Turn::Waits
            }
            Errno::NOBUFS | Errno::NOMEM => Turn::Starved,
            why => Turn::SinkBroke(why),
        })
    }
}

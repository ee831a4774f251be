//! Looks at a socket while bytes wait for its peer.
//!
//! A timer only where something was written, so that idle flows cost nothing and n busy ones cost n
//! looks in 5 s.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep};

use crate::listen::{bound_probes, progress};
use crate::peer::{LOOK_INTERVAL, Life, Watch};

/// The watch over one socket.
pub struct Vigil {
    watch: Watch,
    began: Instant,
    /// Runs while there is a reason to look.
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes were written since the last look.
    wrote: bool,
}

impl Vigil {
    /// Over `socket`, whose user timeout somebody lifts; of nothing, it finds nothing.
    #[must_use]
    pub fn new(socket: Option<BorrowedFd<'_>>) -> Vigil {
        let probed = socket.is_some_and(|socket| bound_probes(&socket).is_ok());
        Vigil {
            watch: Watch::new(probed),
            began: Instant::now(),
            timer: None,
            wrote: false,
        }
    }

    /// Bytes were handed to the kernel.
    pub fn wrote(&mut self) {
        self.wrote = true;
    }

    /// Looks when it is time, and has the task woken for the next look.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn poll(&mut self, cx: &mut Context<'_>, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(socket) = socket else {
            return Ok(());
        };
        if self.timer.is_none() && std::mem::take(&mut self.wrote) {
            self.timer = Some(Box::pin(sleep(LOOK_INTERVAL)));
        }
        while let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx) == Poll::Ready(())
        {
            let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            match self.watch.look(now_ms, progress(&socket)?) {
                Life::Quiet if !std::mem::take(&mut self.wrote) => self.timer = None,
                Life::Quiet | Life::Waiting => {
                    timer.as_mut().reset(Instant::now() + LOOK_INTERVAL);
                }
                Life::Dead => {
                    let why = "the peer acknowledges nothing and answers no probe";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
            }
        }
        Ok(())
    }
}

//! Looks at a client socket while bytes wait for its peer.
//!
//! A timer only where something was written, so that idle connections cost
//! nothing and n busy ones cost n looks in 5 s.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use culvert_net::listen::{bound_probes, lift_user_timeout, progress};

use culvert_net::peer::{LOOK_INTERVAL, Life, Watch};

/// The watch over one relaying client socket.
pub struct Vigil {
    watch: Watch,
    began: Instant,
    timer: Pin<Box<Sleep>>,
    /// The timer runs.
    looking: bool,
    /// Bytes were written since the last look.
    wrote: bool,
}

impl Vigil {
    /// Takes the place of the user timeout of `stream`.
    ///
    /// # Errors
    /// When the kernel keeps the user timeout, which then stays the only watch.
    pub fn new(stream: &TcpStream) -> io::Result<Self> {
        lift_user_timeout(stream)?;
        Ok(Self {
            watch: Watch::new(bound_probes(stream).is_ok()),
            began: Instant::now(),
            timer: Box::pin(tokio::time::sleep(LOOK_INTERVAL)),
            looking: false,
            wrote: false,
        })
    }

    /// Bytes were handed to the kernel.
    pub fn wrote(&mut self) {
        self.wrote = true;
    }

    /// Looks when it is time, and has the task woken for the next look.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn poll(&mut self, cx: &mut Context<'_>, stream: &TcpStream) -> io::Result<()> {
        if !self.looking {
            if !std::mem::take(&mut self.wrote) {
                return Ok(());
            }
            self.looking = true;
            self.timer.as_mut().reset(Instant::now() + LOOK_INTERVAL);
        }
        while self.timer.as_mut().poll(cx) == Poll::Ready(()) {
            let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            match self.watch.look(now_ms, progress(stream)?) {
                Life::Quiet if !std::mem::take(&mut self.wrote) => {
                    self.looking = false;
                    return Ok(());
                }
                Life::Quiet | Life::Waiting => {
                    self.timer.as_mut().reset(Instant::now() + LOOK_INTERVAL);
                }
                Life::Dead => {
                    let why = "the client acknowledges nothing and answers no probe";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
            }
        }
        Ok(())
    }
}

//! A look at a socket now and then, by whoever owns it, for whoever wants to know: under TLS and
//! WebSocket layers the owner is out of reach, and a descriptor that another thread looks at may be
//! another connection by then.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::relay::End;

/// What looks: told whether the period has passed, or there was just nothing to read.
type Eye = Box<dyn FnMut(BorrowedFd<'_>, bool) + Send>;

/// Who looks at a socket, once somebody wants to. Clones are one.
#[derive(Clone, Default)]
pub struct Look(Arc<Mutex<Option<Eye>>>);

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Look")
            .field(&self.0.lock().is_some())
            .finish()
    }
}

impl Look {
    /// From now on `eye` looks: whenever the reader finds nothing, which must cost next to nothing,
    /// and with `true` when the period has passed and when the socket is closed.
    pub fn set(&self, eye: impl FnMut(BorrowedFd<'_>, bool) + Send + 'static) {
        *self.0.lock() = Some(Box::new(eye));
    }

    fn look(&self, socket: BorrowedFd<'_>, is_due: bool) {
        if let Some(eye) = &mut *self.0.lock() {
            eye(socket, is_due);
        }
    }
}

/// A connection that is looked at, if it has a socket of its own.
pub struct Looked<IO: End> {
    io: IO,
    look: Look,
    period: Duration,
    due: Pin<Box<Sleep>>,
}

impl<IO: End> Looked<IO> {
    /// `io`, at least every `period`, by whoever asks for it in [`look`](Self::look).
    pub fn new(io: IO, period: Duration) -> Self {
        Self {
            io,
            look: Look::default(),
            period,
            due: Box::pin(tokio::time::sleep(period)),
        }
    }

    /// Who looks.
    pub fn look(&self) -> Look {
        self.look.clone()
    }

    /// Looks, and wakes the reader when it is time again.
    fn poll_look(&mut self, cx: &mut Context<'_>) {
        let mut is_due = false;
        while self.due.as_mut().poll(cx).is_ready() {
            is_due = true;
            self.due.as_mut().reset(Instant::now() + self.period);
        }
        self.look_now(is_due);
    }

    fn look_now(&self, is_due: bool) {
        if let Some(socket) = self.io.socket() {
            self.look.look(socket, is_due);
        }
    }
}

impl<IO: End> Drop for Looked<IO> {
    fn drop(&mut self) {
        self.look_now(true);
        // What it holds ends with the connection.
        *self.look.0.lock() = None;
    }
}

impl<IO: End> End for Looked<IO> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.io.socket()
    }
}

impl<IO: End> AsyncRead for Looked<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_pending() {
            self.poll_look(cx);
        }
        polled
    }
}

crate::write_through!([IO: End] Looked<IO>, io);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn an_idle_connection_is_looked_at_every_period_and_at_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap());
        let (far, accepted) = tokio::join!(far, listener.accept());
        let (_far, (near, _)) = (far.unwrap(), accepted.unwrap());
        let period = Duration::from_millis(20);
        let mut looked = Looked::new(near, period);
        let looks = Arc::new(Mutex::new(Vec::new()));
        let seen = looks.clone();
        looked.look().set(move |_, is_due| seen.lock().push(is_due));
        let began = Instant::now();
        let read = looked.read_u8();
        assert!(tokio::time::timeout(period * 10, read).await.is_err());
        let periods = began.elapsed().as_millis() / period.as_millis();
        let due = looks.lock().iter().filter(|due| **due).count();
        assert!(due >= 3 && due as u128 <= periods, "{due} of {periods}");
        assert!(!looks.lock()[0], "the first look is before its time");
        drop(looked);
        assert_eq!(looks.lock().iter().filter(|due| **due).count(), due + 1);
        assert_eq!(Arc::strong_count(&looks), 1, "who looked is gone");
    }
}

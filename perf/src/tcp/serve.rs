//! One connection of the rig, either end, and what it does with readiness.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use rustix::event::epoll::EventFlags;
use rustix::net::RecvFlags;

use super::{DISCARD, ECHO, EXCHANGE, MESSAGE_BYTES_MAX, SEND};
use crate::service::{PIECE_BYTES, pattern};

/// Writes of 64 KiB in a turn of a source: the others wait meanwhile.
const WRITES_MAX: usize = 4;

/// A message under way: number, when it was due, how much of it is back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub number: u64,
    pub due: Instant,
    pub back: usize,
}

/// Who a connection is.
pub(super) enum End {
    /// Service: so many bytes of preface are left, then the byte that says what is wanted.
    New { skip: usize },
    /// Service: sends back what comes.
    Echo,
    /// Sends the pattern; discards too where both ways flow.
    Source { position: u64, discards: bool },
    /// Discards.
    Sink,
    /// Client: not connected yet; then it sends what is unsent and becomes the other.
    Connecting(Box<End>),
    /// Client of messages; none under way when it is `None`.
    Caller(Option<Message>),
    /// Client that never reads.
    Stalled,
}

pub(super) struct Connection {
    pub stream: TcpStream,
    pub end: End,
    pub client: bool,
    pub unsent: Vec<u8>,
    pub interest: EventFlags,
}

/// What came of a readiness.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// A client is connected and may send messages.
    Ready,
    /// So many bytes were discarded.
    Discarded(usize),
    /// All of it is back, and unchanged; it was as long.
    Answered(Instant, usize),
    /// A clean end.
    End,
}

/// The bytes of a message: the command, its number, then the pattern.
pub(super) fn message(number: u64, bytes: usize, out: &mut Vec<u8>) {
    out.push(ECHO);
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(pattern(number, bytes.clamp(9, MESSAGE_BYTES_MAX) - 9));
}

fn is_message(number: u64, came: &[u8]) -> bool {
    came[0] == ECHO
        && came[1..9] == number.to_be_bytes()
        && came[9..] == *pattern(number, came.len() - 9)
}

impl Connection {
    /// Handles readiness; `bytes` is the length of messages.
    pub fn ready(&mut self, flags: EventFlags, scratch: &mut [u8], bytes: usize) -> Result<Step> {
        if let End::Connecting(_) = self.end {
            return self.connected();
        }
        let readable = flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR);
        let mut step = Step::Nothing;
        if readable {
            step = match &mut self.end {
                End::New { .. } => self.learn(scratch)?,
                End::Echo => self.echo(scratch)?,
                End::Sink | End::Source { discards: true, .. } => self.discard(scratch)?,
                End::Source { .. } | End::Stalled => self.watch_end(scratch)?,
                End::Caller(_) => self.reply(scratch, bytes)?,
                End::Connecting(_) => Step::Nothing,
            };
        }
        if flags.contains(EventFlags::OUT) && step != Step::End {
            self.flush()?;
        }
        Ok(step)
    }

    fn connected(&mut self) -> Result<Step> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error.into());
        }
        if let End::Connecting(then) = std::mem::replace(&mut self.end, End::Stalled) {
            self.end = *then;
        }
        self.flush()?;
        Ok(Step::Ready)
    }

    /// Service: behind the preface one byte says what is wanted.
    fn learn(&mut self, scratch: &mut [u8]) -> Result<Step> {
        let Some(count) = self.read(scratch)? else {
            return Ok(Step::Nothing);
        };
        if count == 0 {
            return Ok(Step::End);
        }
        let End::New { skip } = &mut self.end else {
            return Ok(Step::Nothing);
        };
        let skipped = count.min(*skip);
        *skip -= skipped;
        let Some(command) = scratch[skipped..count].first().copied() else {
            return Ok(Step::Nothing);
        };
        let source = |discards| End::Source {
            position: 0,
            discards,
        };
        self.end = match command {
            ECHO => {
                self.unsent.extend_from_slice(&scratch[skipped..count]);
                End::Echo
            }
            SEND => source(false),
            EXCHANGE => source(true),
            DISCARD => End::Sink,
            other => bail!("unknown command {other}"),
        };
        self.flush()?;
        match self.end {
            End::Sink => Ok(Step::Discarded(count - skipped)),
            _ => Ok(Step::Nothing),
        }
    }

    fn echo(&mut self, scratch: &mut [u8]) -> Result<Step> {
        let Some(count) = self.read(&mut scratch[..PIECE_BYTES])? else {
            return Ok(Step::Nothing);
        };
        if count == 0 {
            return Ok(Step::End);
        }
        if self.unsent.is_empty() {
            let sent = match self.stream.write(&scratch[..count]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error.into()),
            };
            self.unsent.extend_from_slice(&scratch[sent..count]);
        } else {
            self.unsent.extend_from_slice(&scratch[..count]);
        }
        Ok(Step::Nothing)
    }

    /// The kernel throws the bytes away: nothing is copied, all is counted.
    fn discard(&mut self, scratch: &mut [u8]) -> Result<Step> {
        match rustix::net::recv(&self.stream, scratch, RecvFlags::TRUNC) {
            Ok((_, 0)) => Ok(Step::End),
            Ok((_, count)) => Ok(Step::Discarded(count)),
            Err(rustix::io::Errno::AGAIN) => Ok(Step::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    fn watch_end(&mut self, scratch: &mut [u8]) -> Result<Step> {
        match self.read(&mut scratch[..1])? {
            Some(0) => Ok(Step::End),
            _ => Ok(Step::Nothing),
        }
    }

    fn reply(&mut self, scratch: &mut [u8], bytes: usize) -> Result<Step> {
        let Some(count) = self.read(&mut scratch[..MESSAGE_BYTES_MAX])? else {
            return Ok(Step::Nothing);
        };
        if count == 0 {
            return Ok(Step::End);
        }
        let End::Caller(Some(under_way)) = &mut self.end else {
            bail!("{count} bytes without a message");
        };
        let from = under_way.back;
        let came = &scratch[..count];
        let same = if from == 0 && count == bytes {
            is_message(under_way.number, came)
        } else {
            let mut wanted = Vec::with_capacity(bytes);
            message(under_way.number, bytes, &mut wanted);
            wanted.get(from..from + count) == Some(came)
        };
        ensure!(
            same,
            "wrong bytes behind {from} of message {}",
            under_way.number
        );
        under_way.back += count;
        let Message { due, back, .. } = *under_way;
        if back < bytes {
            return Ok(Step::Nothing);
        }
        self.end = End::Caller(None);
        Ok(Step::Answered(due, bytes))
    }

    /// Writes what waits, then what a source owes, until the socket is full.
    pub fn flush(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        let End::Source { position, .. } = &mut self.end else {
            return Ok(());
        };
        for _ in 0..WRITES_MAX {
            match self.stream.write(pattern(*position, PIECE_BYTES)) {
                Ok(count) => *position += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What epoll should tell of it.
    pub fn wants(&self) -> EventFlags {
        let out = match &self.end {
            End::Connecting(_) => return EventFlags::OUT,
            End::Source { .. } => true,
            _ => !self.unsent.is_empty(),
        };
        let read = match &self.end {
            End::Stalled => EventFlags::empty(),
            _ => EventFlags::IN,
        };
        if out { read | EventFlags::OUT } else { read }
    }

    fn read(&mut self, scratch: &mut [u8]) -> Result<Option<usize>> {
        match self.stream.read(scratch) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

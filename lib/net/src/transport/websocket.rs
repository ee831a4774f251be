//! A byte stream over WebSocket BINARY messages (contract W-1), both ends.
//!
//! Message boundaries mean nothing. No extension is offered or accepted. Pings are answered from one
//! slot, latest wins; reading never waits for writing. One task polls both directions.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{
    BINARY, CLOSE, Control, Decoder, End, FrameError, HEADER_BYTES_MAX, PING, PONG,
    SENT_MESSAGE_BYTES_MAX, apply_mask, encode_header,
};

/// Slices of one vectored write, the frame header included.
const SLICES_MAX: usize = 64;

/// A WebSocket as a byte stream.
pub struct WebSocket<T> {
    io: T,
    end: End,
    decoder: Decoder,
    /// Bytes that must leave before anything else: control frames, headers, masked payload.
    staged: BytesMut,
    /// Server: payload bytes still to come in the frame whose header was sent.
    promised: usize,
    pong: Option<Control>,
    close: Close,
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    No,
    /// To be sent with this status code, as soon as no frame is open.
    Wanted(u16),
    Sent,
}

impl<T: AsyncRead + AsyncWrite + Unpin> WebSocket<T> {
    /// Speaks frames on `io` right after the 101.
    pub fn new(io: T, end: End) -> WebSocket<T> {
        WebSocket {
            io,
            end,
            decoder: Decoder::new(end),
            staged: BytesMut::new(),
            promised: 0,
            pong: None,
            close: Close::No,
            ended: false,
        }
    }

    /// Encodes what is due between two data frames.
    fn stage_control(&mut self) {
        if self.promised > 0 || self.close == Close::Sent {
            return;
        }
        if let Some(pong) = self.pong.take() {
            self.stage(PONG, &[IoSlice::new(pong.payload())], pong.payload().len());
        }
        if let Close::Wanted(code) = self.close {
            let code = code.to_be_bytes();
            self.stage(CLOSE, &[IoSlice::new(&code)], code.len());
            self.close = Close::Sent;
        }
    }

    /// Copies the first `length` bytes of `slices` into a whole frame, masked where it must be.
    fn stage(&mut self, opcode: u8, slices: &[IoSlice<'_>], length: usize) {
        let mask = (self.end == End::Client).then(crate::crypto::random_bytes::<4>);
        let (header, used) = encode_header(opcode, length, mask);
        self.staged.reserve(used + length);
        self.staged.extend_from_slice(&header[..used]);
        let start = self.staged.len();
        let mut left = length;
        for slice in slices {
            let bytes = slice.len().min(left);
            self.staged.extend_from_slice(&slice[..bytes]);
            left -= bytes;
        }
        if let Some(mut mask) = mask {
            apply_mask(&mut self.staged[start..], &mut mask);
        }
    }

    /// Writes all that is staged.
    fn poll_staged(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.staged.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.staged))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.staged.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends pongs and the close frame if the socket takes them now; never waits.
    fn push_control(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.pong.is_none() && !matches!(self.close, Close::Wanted(_)) {
            return Ok(());
        }
        self.stage_control();
        match self.poll_staged(cx) {
            // Behind TLS the bytes are in its buffer only.
            Poll::Ready(Ok(())) => match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(result) => result,
                Poll::Pending => Ok(()),
            },
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(()),
        }
    }

    fn on_control(&mut self, control: Control) {
        match control.opcode {
            PING => self.pong = Some(control),
            CLOSE => {
                let code = match *control.payload() {
                    [a, b, ..] => u16::from_be_bytes([a, b]),
                    _ => 1000,
                };
                self.want_close(code);
                self.ended = true;
            }
            // An unasked pong is allowed and means nothing.
            _ => {}
        }
    }

    fn want_close(&mut self, code: u16) {
        if self.close == Close::No {
            self.close = Close::Wanted(code);
        }
    }

    /// Decodes what was read in place; returns the payload bytes now at the front.
    fn decode(&mut self, data: &mut [u8]) -> Result<usize, FrameError> {
        let (mut at, mut payload) = (0, 0);
        while at < data.len() && !self.ended {
            let decoded = self.decoder.decode(&mut data[at..])?;
            if at > payload {
                data.copy_within(at..at + decoded.payload, payload);
            }
            payload += decoded.payload;
            at += decoded.consumed;
            if let Some(control) = decoded.control {
                self.on_control(control);
            }
        }
        Ok(payload)
    }

    /// Client: every message is copied once, to be masked.
    fn poll_write_masked(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        length: usize,
    ) -> Poll<io::Result<usize>> {
        self.stage(BINARY, slices, length);
        // Taken, whether it leaves now or with the next write or flush.
        match self.poll_staged(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(length)),
        }
    }

    /// Server: header and payload leave in one vectored write, without a copy.
    fn poll_write_plain(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        length: usize,
    ) -> Poll<io::Result<usize>> {
        let (header, header_bytes) = if self.promised == 0 {
            self.promised = length;
            encode_header(BINARY, length, None)
        } else {
            ([0; HEADER_BYTES_MAX], 0)
        };
        let mut out = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = usize::from(header_bytes > 0);
        out[0] = IoSlice::new(&header[..header_bytes]);
        let mut left = self.promised.min(length);
        for slice in slices.iter().filter(|slice| !slice.is_empty()) {
            if left == 0 || count == SLICES_MAX {
                break;
            }
            let bytes = slice.len().min(left);
            out[count] = IoSlice::new(&slice[..bytes]);
            (left, count) = (left - bytes, count + 1);
        }
        let written = match Pin::new(&mut self.io).poll_write_vectored(cx, &out[..count]) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => 0,
        };
        let payload = written.saturating_sub(header_bytes);
        self.promised -= payload;
        if written < header_bytes {
            self.staged
                .extend_from_slice(&header[written..header_bytes]);
        }
        if payload > 0 {
            return Poll::Ready(Ok(payload));
        }
        // Only the header left, or nothing: wait until the socket takes payload. Staged header
        // bytes go first at the next call.
        if written > 0 {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            this.push_control(cx)?;
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                this.ended = true;
                return Poll::Ready(Ok(()));
            }
            match this.decode(&mut buf.filled_mut()[before..]) {
                Ok(payload) => {
                    buf.set_filled(before + payload);
                    if payload > 0 {
                        this.push_control(cx)?;
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(error) => {
                    buf.set_filled(before);
                    this.want_close(error.close_code());
                    this.ended = true;
                    this.push_control(cx)?;
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.stage_control();
        ready!(this.poll_staged(cx))?;
        if this.close == Close::Sent {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "WebSocket is closed: data cannot follow the close frame",
            )));
        }
        // Only as many slices as one write can carry count towards the frame's length.
        let slices = &slices[..slices.len().min(SLICES_MAX - 1)];
        let length = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let length = length.min(SENT_MESSAGE_BYTES_MAX);
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        match this.end {
            End::Client => this.poll_write_masked(cx, slices, length),
            End::Server => this.poll_write_plain(cx, slices, length),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stage_control();
        ready!(self.poll_staged(cx))?;
        // The buffer is given back: an idle carrier holds none.
        self.staged = BytesMut::new();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Sends a close frame (1000) and ends the connection. Does not wait for the peer's.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.want_close(1000);
        self.stage_control();
        ready!(self.poll_staged(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

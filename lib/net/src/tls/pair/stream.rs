//! A finished end-to-end connection.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_rustls::TlsStream;
use zeroize::Zeroizing;

use crate::hangup::Hangup;
use crate::relay::End;
use crate::tls::{Ahead, TlsInfo};

/// The bytes inside the end-to-end TLS. Only `close_notify` reads as the end.
pub struct PairStream<IO: End> {
    io: TlsStream<Ahead<IO>>,
    hangup: Hangup,
}

impl<IO: End> PairStream<IO> {
    pub(super) fn new(io: TlsStream<Ahead<IO>>) -> PairStream<IO> {
        PairStream {
            io,
            hangup: Hangup::default(),
        }
    }

    /// The order to end in RST.
    #[must_use]
    pub fn hangup(&self) -> Hangup {
        self.hangup.clone()
    }

    /// The protocol that was agreed on.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.io.get_ref().1.alpn_protocol()
    }

    /// What the handshake agreed on; the peer's certificates too.
    #[must_use]
    pub fn info(&self) -> TlsInfo {
        TlsInfo::of(self.io.get_ref().1)
    }

    /// SHA-256 of the peer's public key (SPKI).
    #[must_use]
    pub fn peer_spki(&self) -> Option<[u8; 32]> {
        let shown = self.io.get_ref().1.peer_certificates()?;
        super::super::spki_sha256(shown.first()?)
    }

    /// 32 bytes that both ends of this connection, and nobody else, can derive for `label`.
    ///
    /// # Errors
    /// Never behind a finished handshake, as far as rustls is concerned.
    pub fn exporter(&self, label: &[u8]) -> io::Result<Zeroizing<[u8; 32]>> {
        let mut out = Zeroizing::new([0; 32]);
        let exported = match &self.io {
            TlsStream::Client(stream) => {
                stream
                    .get_ref()
                    .1
                    .export_keying_material(out.as_mut_slice(), label, None)
            }
            TlsStream::Server(stream) => {
                stream
                    .get_ref()
                    .1
                    .export_keying_material(out.as_mut_slice(), label, None)
            }
        };
        exported.map_err(io::Error::other)?;
        Ok(out)
    }
}

impl<IO: End> Drop for PairStream<IO> {
    fn drop(&mut self) {
        if let Some(socket) = self.io.get_ref().0.get_ref().socket() {
            self.hangup.arm(&socket);
        }
    }
}

impl<IO: End> End for PairStream<IO> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.io.get_ref().0.get_ref().socket()
    }
}

impl<IO: End> AsyncRead for PairStream<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

crate::write_through!([IO: End] PairStream<IO>, io);

//! What hyper's HTTP/1.1 server cannot write: informational answers, and trailers whose names the
//! head did not announce.
//!
//! hyper writes each field of a trailer section only if a `Trailer` field of the head named it, and
//! has no way to write a 1xx answer but its own `100 Continue`. A proxy that streams learns of both
//! too late or too early for that. So they travel beside hyper: [`Interjected`] lies between hyper
//! and the connection, writes an informational answer when hyper has nothing half written, and puts
//! the trailers into the end of a chunked body.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What hyper writes at the end of a chunked body.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What is to be said beside hyper, on one connection.
#[derive(Default)]
pub struct Interject {
    said: Mutex<Said>,
    server: AtomicWaker,
}

#[derive(Default)]
struct Said {
    heads: BytesMut,
    trailers: Option<Bytes>,
}

impl Interject {
    /// Queues an informational answer, with its blank line. The caller bounds how many; none may
    /// follow once the service has returned the final head.
    pub fn informational(&self, head: &[u8]) {
        self.said.lock().heads.extend_from_slice(head);
        self.server.wake();
    }

    /// Waits until every queued informational answer was written. To be awaited in the service,
    /// which hyper polls in the connection's own task, before it returns the final head.
    pub async fn written(&self) {
        poll_fn(|cx| {
            self.server.register(cx.waker());
            if self.said.lock().heads.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// The body that hyper writes now ends with `fields`, each of which ends in CRLF. To be called
    /// by a chunked body that ends in the same poll without a frame of trailers.
    pub fn trailers(&self, fields: Bytes) {
        if !fields.is_empty() {
            self.said.lock().trailers = Some(fields);
        }
    }
}

/// A connection for hyper's server that also writes what [`Interject`] was told.
pub struct Interjected<IO> {
    io: IO,
    interject: Arc<Interject>,
    /// Ours, partly written.
    writing: Bytes,
    /// `writing` stands for hyper's last chunk.
    is_end: bool,
}

impl<IO> Interjected<IO> {
    /// Lays it over `io`.
    pub fn new(io: IO, interject: Arc<Interject>) -> Self {
        Self {
            io,
            interject,
            writing: Bytes::new(),
            is_end: false,
        }
    }

    /// The connection, for what follows after HTTP.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

impl<IO: AsyncWrite + Unpin> Interjected<IO> {
    fn poll_ours(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.writing.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.writing))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.writing.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `first` of the `left` bytes that hyper holds. All of them are the end of a body with
    /// trailers, if there are some; their last ones are its last chunk then.
    fn poll_end(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        left: usize,
    ) -> Poll<io::Result<usize>> {
        if !self.is_end {
            // A hint may be half written.
            ready!(self.poll_ours(cx))?;
        }
        let before = left.saturating_sub(LAST_CHUNK.len()).min(first.len());
        if before > 0 {
            return Pin::new(&mut self.io).poll_write(cx, &first[..before]);
        }
        if !self.is_end {
            if first != LAST_CHUNK {
                return Poll::Ready(Err(io::Error::other(
                    "trailers for a body that is not chunked",
                )));
            }
            let fields = self.interject.said.lock().trailers.clone();
            let mut section = BytesMut::from(&b"0\r\n"[..]);
            section.extend_from_slice(&fields.unwrap_or_default());
            section.extend_from_slice(b"\r\n");
            self.writing = section.freeze();
            self.is_end = true;
        }
        ready!(self.poll_ours(cx))?;
        self.is_end = false;
        self.interject.said.lock().trailers = None;
        Poll::Ready(Ok(LAST_CHUNK.len()))
    }

    fn has_trailers(&self) -> bool {
        self.interject.said.lock().trailers.is_some()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Interjected<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Interjected<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.has_trailers() {
            return self.poll_end(cx, buf, buf.len());
        }
        ready!(self.poll_ours(cx))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.has_trailers() {
            let left = bufs.iter().map(|buf| buf.len()).sum();
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_end(cx, first.map_or(&[], |buf| buf), left);
        }
        ready!(self.poll_ours(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes only when it has written all it holds: here something may come between.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ours(cx))?;
        let heads = self.interject.said.lock().heads.split();
        if !heads.is_empty() {
            self.writing = heads.freeze();
            let written = self.poll_ours(cx);
            // Whoever waits in `written` is this very task.
            cx.waker().wake_by_ref();
            ready!(written)?;
        }
        self.interject.server.register(cx.waker());
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n";
    const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const TRAILED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
        3\r\none\r\n3\r\ntwo\r\n0\r\nx-sum: 42\r\n\r\n";

    type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

    async fn answer(
        request: Request<Incoming>,
        interject: Arc<Interject>,
    ) -> Result<Response<Body>, Infallible> {
        let _ = request.into_body().collect().await;
        for _ in 0..2 {
            interject.informational(HINT.as_bytes());
        }
        interject.written().await;
        let mut parts = ["one", "two"].into_iter();
        let frames = futures_util::stream::poll_fn(move |_| {
            let part = parts.next();
            if part.is_none() {
                interject.trailers(Bytes::from_static(b"x-sum: 42\r\n"));
            }
            Poll::Ready(part.map(|part| Ok(Frame::data(Bytes::from(part)))))
        });
        Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
    }

    /// Everything that a connection which takes `room` bytes at a time says to `requests`.
    async fn said(room: usize, requests: &[u8]) -> String {
        let (mut client, server) = tokio::io::duplex(room);
        let interject = Arc::<Interject>::default();
        let io = Interjected::new(server, interject.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let interject = interject.clone();
            async move {
                if request.uri() == "/plain" {
                    let body = http_body_util::Full::from("ok");
                    return Ok(Response::new(body.boxed_unsync()));
                }
                answer(request, interject).await
            }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.auto_date_header(false).half_close(true);
        let serving = http.serve_connection(TokioIo::new(io), service);
        let talking = async {
            let (mut read, mut write) = tokio::io::split(&mut client);
            let mut heard = String::new();
            let (sent, read) = tokio::join!(
                async {
                    write.write_all(requests).await?;
                    write.shutdown().await
                },
                read.read_to_string(&mut heard)
            );
            sent.and(read).map(|_| heard)
        };
        let (served, heard) = tokio::join!(serving, talking);
        served.unwrap();
        heard.unwrap()
    }

    #[tokio::test]
    async fn hints_and_trailers_lie_between_what_hyper_writes() {
        let two = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /plain HTTP/1.1\r\nhost: a\r\n\r\n";
        for room in [1, 2, 3, 7, 41, 4096] {
            let heard = said(room, two).await;
            assert_eq!(heard, [HINT, HINT, TRAILED, PLAIN].concat(), "{room}");
        }
    }

    #[tokio::test]
    async fn hyper_says_continue_before_the_hints() {
        let one =
            b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx";
        let wanted = ["HTTP/1.1 100 Continue\r\n\r\n", HINT, HINT, TRAILED].concat();
        for room in [1, 5, 4096] {
            assert_eq!(said(room, one).await, wanted, "{room}");
        }
    }
}

//! One HTTP/1.1 exchange with an agent on one mux stream.
//!
//! No client connection, no task and no read buffer for the usual request: the
//! head goes out as one write, the answer is parsed where it lies. Only a
//! request with a body gets a task, so that neither direction waits for the
//! other.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite as _;
use tokio::task::AbortHandle;

use culvert_net::carrier::{Stream, close_reason};
use culvert_proto::close::CloseReason;

use super::response::{Head, ResponseReader, Step};

/// The hub's end of a stream that carries one exchange.
pub struct Exchange {
    leg: Option<Leg>,
    reader: ResponseReader,
    upload: Option<Upload>,
}

enum Leg {
    Own(Stream),
    Shared(Arc<Mutex<Stream>>),
}

/// The task that sends the request body.
struct Upload {
    task: AbortHandle,
    failed: Arc<OnceLock<CloseReason>>,
}

/// The writing half that an upload task holds.
#[derive(Clone)]
pub struct UploadLeg {
    stream: Arc<Mutex<Stream>>,
    failed: Arc<OnceLock<CloseReason>>,
}

/// What a body read amounts to.
pub enum Piece {
    /// Bytes of the body.
    Data(Bytes),
    /// The trailer section.
    Trailers(http::HeaderMap),
    /// The body is complete.
    End,
}

/// The reason behind an error of a stream.
pub fn reason_of(why: &io::Error) -> CloseReason {
    close_reason(why).unwrap_or(CloseReason::CarrierLost)
}

impl Exchange {
    /// Writes the request head to a stream just opened.
    ///
    /// # Errors
    /// Why the stream broke.
    pub async fn begin(
        mut stream: Stream,
        mut head: Bytes,
        reader: ResponseReader,
    ) -> Result<Self, CloseReason> {
        let written = poll_fn(|cx| stream.poll_write_bytes(cx, &mut head)).await;
        written.map_err(|why| reason_of(&why))?;
        Ok(Self {
            leg: Some(Leg::Own(stream)),
            reader,
            upload: None,
        })
    }

    /// Starts to send the request body beside the answer; `pump` does it.
    pub fn start_upload<F>(&mut self, pump: impl FnOnce(UploadLeg) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(Leg::Own(stream)) = self.leg.take() else {
            return;
        };
        let stream = Arc::new(Mutex::new(stream));
        let failed = Arc::new(OnceLock::new());
        self.leg = Some(Leg::Shared(stream.clone()));
        let leg = UploadLeg {
            stream,
            failed: failed.clone(),
        };
        let task = tokio::spawn(pump(leg)).abort_handle();
        self.upload = Some(Upload { task, failed });
    }

    /// The final head of the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn head(&mut self) -> Result<Head, CloseReason> {
        loop {
            match self.reader.next() {
                Ok(Step::Head(head)) => return Ok(head),
                Ok(Step::NeedMore) => poll_fn(|cx| self.poll_fill(cx)).await?,
                Ok(_) => return Err(CloseReason::Internal),
                Err(why) => {
                    tracing::debug!(%why, "an answer cannot be passed on");
                    return Err(CloseReason::UpstreamProtocol);
                }
            }
        }
    }

    /// The next piece of the body.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, CloseReason>> {
        loop {
            let piece = match self.reader.next() {
                Ok(Step::Data(data)) => Piece::Data(data),
                Ok(Step::Trailers(trailers)) => Piece::Trailers(trailers),
                Ok(Step::End) => Piece::End,
                Ok(Step::Head(_)) => return Poll::Ready(Err(CloseReason::Internal)),
                Ok(Step::NeedMore) => {
                    ready!(self.poll_fill(cx))?;
                    continue;
                }
                Err(why) => {
                    tracing::debug!(%why, "an answer broke off");
                    return Poll::Ready(Err(CloseReason::UpstreamProtocol));
                }
            };
            return Poll::Ready(Ok(piece));
        }
    }

    /// Whether the answer is complete.
    pub fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// The raw stream after a 101, and bytes that came with its head.
    pub fn into_raw(mut self) -> Option<(Stream, Bytes)> {
        let Some(Leg::Own(stream)) = self.leg.take() else {
            return None;
        };
        let reader = ResponseReader::new(false, false);
        Some((stream, std::mem::replace(&mut self.reader, reader).rest()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CloseReason>> {
        let read = match &mut self.leg {
            Some(Leg::Own(stream)) => stream.poll_read_bytes(cx),
            Some(Leg::Shared(stream)) => stream.lock().poll_read_bytes(cx),
            None => return Poll::Ready(Err(CloseReason::Internal)),
        };
        Poll::Ready(match ready!(read) {
            Ok(Some(data)) => {
                self.reader.push(data);
                Ok(())
            }
            Ok(None) => self.reader.end().map_err(|why| {
                tracing::debug!(%why, "a stream ended early");
                self.cause(CloseReason::UpstreamProtocol)
            }),
            Err(why) => Err(self.cause(reason_of(&why))),
        })
    }

    /// What broke the upload broke the exchange, whatever was seen after it.
    fn cause(&self, seen: CloseReason) -> CloseReason {
        let failed = self.upload.as_ref().and_then(|upload| upload.failed.get());
        failed.copied().unwrap_or(seen)
    }
}

impl Drop for Exchange {
    /// A complete answer ends the stream with FIN, anything else with RST.
    fn drop(&mut self) {
        let uploading = match self.upload.take() {
            Some(upload) => {
                let uploading = !upload.task.is_finished();
                upload.task.abort();
                uploading
            }
            None => false,
        };
        if uploading || !self.reader.is_done() {
            return;
        }
        match self.leg.take() {
            Some(Leg::Own(stream)) => retire(stream),
            Some(Leg::Shared(stream)) => {
                if let Some(stream) = Arc::into_inner(stream) {
                    retire(stream.into_inner());
                }
            }
            None => {}
        }
    }
}

/// FIN; the stream itself waits for the agent's, which has usually come with
/// the last bytes, because the request asked for `Connection: close`.
fn retire(mut stream: Stream) {
    let mut cx = Context::from_waker(Waker::noop());
    let _ = Pin::new(&mut stream).poll_shutdown(&mut cx);
}

impl UploadLeg {
    /// Writes all of `data`, waiting for the agent's credit.
    ///
    /// # Errors
    /// Why the stream broke.
    pub async fn write(&self, mut data: Bytes) -> io::Result<()> {
        poll_fn(|cx| self.stream.lock().poll_write_bytes(cx, &mut data)).await
    }

    /// The body cannot be completed: the agent gets RST, never a clean end.
    pub fn fail(&self, reason: CloseReason) {
        let _ = self.failed.set(reason);
        self.stream.lock().reset(reason);
    }
}

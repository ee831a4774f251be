//! The request body on its way to the agent.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use culvert_proto::close::CloseReason;
use culvert_proto::head::RouteKind;
use culvert_proto::limits::{BODY_RATE_MIN_BYTES_PER_SECOND, BODY_RATE_WINDOW_MS};

use super::exchange::UploadLeg;
use super::head::request_trailer_passes;
use super::tracked::Meter;

/// Bodies up to this many bytes travel with their chunk frame in one write.
const JOIN_BYTES_MAX: usize = 4096;
const WINDOW: Duration = Duration::from_millis(BODY_RATE_WINDOW_MS);

/// How the body is framed towards the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// Sends `body` until its end, its limit, or an error of either side.
pub async fn pump(
    leg: UploadLeg,
    mut body: Incoming,
    framing: Framing,
    kind: RouteKind,
    bytes_max: Option<u64>,
    meter: Meter,
) {
    let mut rate = Rate::new();
    let mut sent = 0u64;
    loop {
        let frame = match rate.next(&mut body).await {
            Ok(frame) => frame,
            Err(reason) => return leg.fail(reason),
        };
        let out = match frame {
            None => Out::end(framing),
            Some(frame) => match frame.into_data() {
                Ok(data) => {
                    sent += data.len() as u64;
                    if bytes_max.is_some_and(|max| sent > max) {
                        return leg.fail(CloseReason::BodyTooLarge);
                    }
                    meter.to_service(data.len() as u64);
                    rate.got(data.len());
                    Out::data(framing, data)
                }
                Err(frame) => Out::trailers(framing, kind, frame.into_trailers().ok().as_ref()),
            },
        };
        let began = Instant::now();
        for part in [out.before, out.data, out.after] {
            if leg.write(part).await.is_err() {
                // The answer's side sees the same break and names it.
                return;
            }
        }
        if out.last {
            return;
        }
        rate.paused(began.elapsed());
    }
}

/// What goes onto the stream for one frame of the body.
struct Out {
    before: Bytes,
    data: Bytes,
    after: Bytes,
    last: bool,
}

impl Out {
    fn data(framing: Framing, data: Bytes) -> Self {
        let mut out = Self {
            before: Bytes::new(),
            data,
            after: Bytes::new(),
            last: false,
        };
        if framing != Framing::Chunked || out.data.is_empty() {
            return out;
        }
        let size = format!("{:x}\r\n", out.data.len());
        if out.data.len() > JOIN_BYTES_MAX {
            out.before = size.into();
            out.after = Bytes::from_static(b"\r\n");
            return out;
        }
        let mut joined = BytesMut::with_capacity(size.len() + out.data.len() + 2);
        joined.put_slice(size.as_bytes());
        joined.put_slice(&out.data);
        joined.put_slice(b"\r\n");
        out.data = joined.freeze();
        out
    }

    fn end(framing: Framing) -> Self {
        let end: &'static [u8] = if framing == Framing::Chunked {
            b"0\r\n\r\n"
        } else {
            b""
        };
        Self::last(end.into())
    }

    fn trailers(framing: Framing, kind: RouteKind, trailers: Option<&http::HeaderMap>) -> Self {
        if framing != Framing::Chunked {
            return Self::last(Bytes::new());
        }
        let mut out = BytesMut::from(&b"0\r\n"[..]);
        for (name, value) in trailers.into_iter().flat_map(http::HeaderMap::iter) {
            if request_trailer_passes(name.as_str(), kind) {
                out.put_slice(name.as_str().as_bytes());
                out.put_slice(b": ");
                out.put_slice(value.as_bytes());
                out.put_slice(b"\r\n");
            }
        }
        out.put_slice(b"\r\n");
        Self::last(out.freeze())
    }

    fn last(data: Bytes) -> Self {
        Self {
            before: Bytes::new(),
            data,
            after: Bytes::new(),
            last: true,
        }
    }
}

/// The slowest body that is waited for. Time in which the agent made us wait
/// does not count against the client.
struct Rate {
    since: Instant,
    bytes: u64,
}

impl Rate {
    fn new() -> Self {
        let since = Instant::now();
        Self { since, bytes: 0 }
    }

    fn got(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn paused(&mut self, time: Duration) {
        self.since += time;
    }

    async fn next(
        &mut self,
        body: &mut Incoming,
    ) -> Result<Option<hyper::body::Frame<Bytes>>, CloseReason> {
        loop {
            match tokio::time::timeout_at(self.since + WINDOW, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => return Ok(Some(frame)),
                Ok(Some(Err(why))) => return Err(body_error(&why)),
                Err(_) if self.bytes < BODY_RATE_MIN_BYTES_PER_SECOND * WINDOW.as_secs() => {
                    return Err(CloseReason::ClientTimeout);
                }
                Err(_) => *self = Self::new(),
            }
        }
    }
}

fn body_error(why: &hyper::Error) -> CloseReason {
    if why.is_incomplete_message() || why.is_closed() || why.is_canceled() {
        CloseReason::ClientReset
    } else {
        CloseReason::BadFraming
    }
}

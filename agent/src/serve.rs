//! What comes out of a session: one stream, one request, one answer.

pub mod answer;
pub mod head;
mod tunnel;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use culvert_net::interject::{Interject, Interjected};
use culvert_proto::limits;
use culvert_proto::open::{StreamHeader, StreamKind};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use self::answer::Failure;
use self::tunnel::Tunnel;
use crate::metrics::AgentMetrics;
use crate::upstream::body::ResponseBody;
use crate::upstream::dial::DIAL_DEADLINE;
use crate::upstream::http::Upstream;

/// What became of the stream's end that hyper would hand over.
enum Upgrade {
    Accepted(Tunnel),
    /// None was asked for, or the target said no.
    NotAccepted(hyper::upgrade::OnUpgrade),
}

/// Serves streams; one for the whole process.
pub struct Service {
    upstream: Arc<Upstream>,
    metrics: Arc<AgentMetrics>,
    http: http1::Builder,
}

impl Service {
    /// A service in front of `upstream`.
    #[must_use]
    pub fn new(upstream: Arc<Upstream>, metrics: Arc<AgentMetrics>) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            // One request for each stream: what follows it is never parsed.
            .keep_alive(false)
            .auto_date_header(false)
            // What the client may send, and the groups that the hub adds.
            .max_headers(limits::HEAD_FIELDS_MAX + limits::GROUPS_MAX)
            .max_buf_size(limits::HEAD_BYTES_MAX)
            .header_read_timeout(Duration::from_millis(limits::HEAD_TIMEOUT_MS));
        Self {
            upstream,
            metrics,
            http,
        }
    }

    /// The upstream.
    #[must_use]
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Serves one request to its end. `refused` answers it without the target.
    pub async fn serve<IO>(&self, header: StreamHeader, stream: IO, refused: Option<Failure>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match header.kind {
            StreamKind::Http => self.request(&header, stream, refused).await,
            // Flows are not requests, and the session owns the only control stream there is.
            StreamKind::Tcp | StreamKind::Control => tracing::debug!("no request on this stream"),
        }
    }

    async fn request<IO>(&self, header: &StreamHeader, stream: IO, refused: Option<Failure>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let upgrade: Mutex<Option<Upgrade>> = Mutex::new(None);
        let interject = Arc::<Interject>::default();
        let stream = Interjected::new(stream, interject.clone());
        let dial_limit = header
            .dial_deadline_ms
            .map_or(DIAL_DEADLINE, |ms| Duration::from_millis(ms.into()));
        let handle = service_fn(|request| {
            let refused = refused.as_ref();
            let upgrade = &upgrade;
            let interject = &interject;
            async move {
                Ok::<_, Infallible>(match refused {
                    Some(why) => {
                        let hub = hyper::upgrade::on(request);
                        *upgrade.lock() = Some(Upgrade::NotAccepted(hub));
                        self.refuse(header, why)
                    }
                    None => {
                        let (response, target) =
                            self.forward(header, request, dial_limit, interject).await;
                        *upgrade.lock() = Some(target);
                        response
                    }
                })
            }
        });
        let served = self
            .http
            .serve_connection(TokioIo::new(stream), handle)
            .with_upgrades()
            .await;
        if let Err(why) = served {
            tracing::debug!(%why, request_id = %shown(header), "stream ended early");
            return;
        }
        let upgrade = upgrade.lock().take();
        let ended = match upgrade {
            Some(Upgrade::Accepted(tunnel)) => tunnel.run::<IO>().await,
            Some(Upgrade::NotAccepted(hub)) => tunnel::finish(hub).await,
            None => Ok(()),
        };
        if let Err(why) = ended {
            tracing::debug!(%why, request_id = %shown(header), "upgraded stream ended early");
        }
    }

    async fn forward(
        &self,
        header: &StreamHeader,
        mut request: Request<Incoming>,
        dial_limit: Duration,
        interject: &Arc<Interject>,
    ) -> (Response<AnswerBody>, Upgrade) {
        let hub = hyper::upgrade::on(&mut request);
        let trailers = head::takes_trailers(&request).then(|| interject.clone());
        let answered = self.upstream.forward(request, dial_limit, interject).await;
        let (response, target) = match answered {
            Ok(answered) => {
                let body = |body| AnswerBody::Target { body, trailers };
                (answered.response.map(body), answered.upgraded)
            }
            Err(why) => (self.refuse(header, &why), None),
        };
        let upgrade = match target {
            Some(target) => Upgrade::Accepted(Tunnel { hub, target }),
            None => Upgrade::NotAccepted(hub),
        };
        (response, upgrade)
    }

    fn refuse(&self, header: &StreamHeader, why: &Failure) -> Response<AnswerBody> {
        self.metrics.stream_refused(why.reason);
        tracing::debug!(
            code = why.reason.as_str(), side = why.reason.side().as_str(), detail = why.detail,
            request_id = %shown(header), "request not served"
        );
        why.answer(self.upstream.target().kind).map(AnswerBody::Own)
    }
}

fn shown(header: &StreamHeader) -> impl std::fmt::Display {
    header
        .request_id
        .map(|id| id.to_string())
        .unwrap_or_default()
}

/// The body of what goes back to the hub.
pub enum AnswerBody {
    /// The target's.
    Target {
        /// As it comes.
        body: ResponseBody,
        /// Takes its trailers, if the hub does.
        trailers: Option<Arc<Interject>>,
    },
    /// Ours.
    Own(Full<Bytes>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Target { body, trailers } => {
                let frame = match ready!(Pin::new(body).poll_frame(cx)) {
                    Some(Ok(frame)) => frame,
                    other => return Poll::Ready(other),
                };
                let section = match frame.into_trailers() {
                    Ok(section) => section,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                };
                // hyper would write announced names only.
                if let Some(interject) = trailers {
                    interject.trailers(head::trailer_lines(&section));
                }
                Poll::Ready(None)
            }
            Self::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Target { body, .. } => body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Target { body, .. } => body.size_hint(),
            Self::Own(body) => body.size_hint(),
        }
    }
}

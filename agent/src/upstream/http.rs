//! One request to the target and its answer, on a pooled connection.

use std::sync::Arc;
use std::time::Duration;

use culvert_net::interject::Interject;
use culvert_proto::close::CloseReason;
use http::header::{AUTHORIZATION, HOST, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::body::{Gate, RequestBody, ResponseBody};
use super::dial::Dialer;
use super::early::Early;
use super::kube::TokenFile;
use super::pool::{Lease, Pool};
use crate::metrics::AgentMetrics;
use crate::serve::answer::Failure;
use crate::serve::head;
use crate::target::Target;

/// Longest head the target may send, and what hyper may buffer, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header fields in a head, either way.
pub const HEAD_FIELDS_MAX: usize = 128;
/// Connections found dead in the pool before a new one is dialled.
const STALE_TRIES_MAX: usize = 3;
/// No service closes an idle connection sooner than this.
const CLOSES_IDLE_AFTER: Duration = Duration::from_secs(1);

/// The target and the connections to it.
pub struct Upstream {
    target: Arc<Target>,
    dialer: Dialer,
    pool: Arc<Pool>,
    token: Option<TokenFile>,
    metrics: Arc<AgentMetrics>,
}

/// What the target answered.
pub struct Answered {
    /// The answer; its hop-by-hop fields are gone.
    pub response: Response<ResponseBody>,
    /// The target's side of an accepted upgrade.
    pub upgraded: Option<hyper::upgrade::OnUpgrade>,
}

impl Upstream {
    /// An upstream for at most `in_flight_max` requests at once; nothing is dialled yet.
    #[must_use]
    pub fn new(
        target: Arc<Target>,
        dialer: Dialer,
        token: Option<TokenFile>,
        metrics: Arc<AgentMetrics>,
        in_flight_max: usize,
    ) -> Self {
        Self {
            target,
            dialer,
            pool: Arc::new(Pool::new(in_flight_max)),
            token,
            metrics,
        }
    }

    /// The target.
    #[must_use]
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The idle connections.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Closes connections that were idle for too long, and counts the rest.
    pub fn sweep(&self) {
        self.pool.sweep();
        self.metrics
            .pool_idle
            .set(i64::try_from(self.pool.idle()).unwrap_or(i64::MAX));
    }

    /// Sends `request` and waits for the head of the answer. A connection is
    /// made within `dial_limit` when none is idle. Informational answers go to
    /// `interject`.
    ///
    /// # Errors
    /// Why there is no answer; the request was not served.
    pub async fn forward(
        &self,
        request: Request<Incoming>,
        dial_limit: Duration,
        interject: &Arc<Interject>,
    ) -> Result<Answered, Failure> {
        self.metrics.upstream_requests.inc();
        let answered = self.exchange(request, dial_limit, interject).await;
        // None may follow the final head, ours neither.
        interject.written().await;
        if let Err(why) = &answered {
            self.metrics.upstream_failed(why.reason);
        }
        answered
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        dial_limit: Duration,
        interject: &Arc<Interject>,
    ) -> Result<Answered, Failure> {
        let (mut parts, body) = request.into_parts();
        let hop = head::request(
            &mut parts,
            (self.target.kind, &self.target.ceiling),
            body.is_end_stream(),
        )?;
        parts.headers.insert(HOST, self.target.authority.clone());
        // Whatever came is overwritten; without a token of ours there is none.
        match self.bearer()? {
            Some(bearer) => parts.headers.insert(AUTHORIZATION, bearer),
            None => parts.headers.remove(AUTHORIZATION),
        };
        let gate = hop.expects_continue.then(Arc::<Gate>::default);
        let body = match &gate {
            Some(gate) => RequestBody::held(body, gate.clone()),
            None => RequestBody::new(body),
        };
        let mut request = Request::from_parts(parts, body);
        let early = Early::new(interject.clone(), gate.clone());
        let hears = early.clone();
        hyper::ext::on_informational(&mut request, move |response| {
            hears.hear(response.status(), response.headers());
        });
        let (sender, mut response) = tokio::select! {
            biased;
            why = early.overrun() => return Err(why),
            sent = self.send(request, dial_limit) => sent?,
        };
        let (upgraded, protocol) = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let protocol = accepted_protocol(&response, hop.upgrade.as_ref())?;
                (Some(hyper::upgrade::on(&mut response)), Some(protocol))
            }
            _ => (None, None),
        };
        let (mut parts, body) = response.into_parts();
        head::response(&mut parts, &hop, protocol);
        let body = match upgraded {
            Some(_) => ResponseBody::of_upgrade(body),
            None => ResponseBody::new(body, Lease::new(sender, &self.pool, gate)),
        };
        Ok(Answered {
            response: Response::from_parts(parts, body),
            upgraded,
        })
    }

    fn bearer(&self) -> Result<Option<HeaderValue>, Failure> {
        let Some(token) = &self.token else {
            return Ok(None);
        };
        token.bearer().map(Some).map_err(|why| {
            Failure::new(
                CloseReason::TargetCredential,
                format!("the service-account token cannot be read: {why}"),
            )
        })
    }

    async fn send(
        &self,
        mut request: Request<RequestBody>,
        dial_limit: Duration,
    ) -> Result<(SendRequest<RequestBody>, Response<Incoming>), Failure> {
        for _ in 0..STALE_TRIES_MAX {
            let Some((mut sender, idle)) = self.pool.take() else {
                break;
            };
            let spare = spare(&request, idle);
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((sender, response)),
                Err(mut why) => match why.take_message().or(spare) {
                    Some(again) => request = again,
                    None => return Err(self.broken(&why.into_error())),
                },
            }
        }
        let mut sender = self.dial(dial_limit).await?;
        match sender.send_request(request).await {
            Ok(response) => Ok((sender, response)),
            Err(why) => Err(self.broken(&why)),
        }
    }

    async fn dial(&self, limit: Duration) -> Result<SendRequest<RequestBody>, Failure> {
        let began = Instant::now();
        let io = self.dialer.dial(limit).await?;
        self.metrics.dialled(began.elapsed());
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEAD_FIELDS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|why| self.broken(&why))?;
        // One task for each connection to the target, none for a request.
        tokio::spawn(async move {
            if let Err(why) = connection.with_upgrades().await {
                tracing::debug!(%why, "connection to the target ended");
            }
        });
        Ok(sender)
    }

    fn broken(&self, why: &hyper::Error) -> Failure {
        use std::error::Error as _;
        let cause = why
            .source()
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        let reason = if why.is_parse() {
            CloseReason::UpstreamProtocol
        } else {
            CloseReason::UpstreamReset
        };
        Failure::new(
            reason,
            format!(
                "target {} gave no answer: {why}{cause}",
                self.target.address()
            ),
        )
    }
}

/// A copy to send again when the target closed the connection just as the
/// request went out, for requests that change nothing and have no body.
fn spare(request: &Request<RequestBody>, idle: Duration) -> Option<Request<RequestBody>> {
    // A target closes a connection for being idle; a busy one needs no copy.
    if idle < CLOSES_IDLE_AFTER || !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(RequestBody::none());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    copy.extensions_mut().clone_from(request.extensions());
    Some(copy)
}

/// The target may change only to a protocol that the client asked for.
fn accepted_protocol(
    response: &Response<Incoming>,
    asked: Option<&HeaderValue>,
) -> Result<HeaderValue, Failure> {
    let chosen = response.headers().get(UPGRADE);
    let asked_text = asked
        .and_then(|asked| asked.to_str().ok())
        .unwrap_or_default();
    let matches = chosen
        .and_then(|chosen| chosen.to_str().ok())
        .filter(|chosen| {
            asked_text
                .split(',')
                .any(|one| one.trim().eq_ignore_ascii_case(chosen.trim()))
        });
    match (matches, chosen) {
        (Some(_), Some(chosen)) => Ok(chosen.clone()),
        _ => Err(Failure::new(
            CloseReason::UpstreamProtocol,
            "the target switched to a protocol that was not asked for".to_owned(),
        )),
    }
}

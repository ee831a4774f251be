//! Control's own pages and API, on the listener of people: passed on as they are.
//!
//! No tunnel waits here. Control knows its callers by the credentials that travel through; this
//! side adds where they come from.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, SERVER};
use http::request::Parts;
use http::{Request, Response, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use culvert_proto::answer::BodyKind;
use culvert_proto::close::CloseReason;
use culvert_proto::head::{ConnectionTokens, is_hop_by_hop, is_protected};

use crate::conn::InFlight;
use crate::ingress::{Body, BodyCut, Refusal, judge};
use crate::plane::{Plane, Work};

/// Requests to control at once.
const REQUESTS_MAX: usize = 512;
/// Connecting to control.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// The head of its answer; control gives up after 10 s by itself.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Requests to control now.
#[derive(Default)]
pub struct Requests(Arc<AtomicUsize>);

/// One request's place, and what a drain waits for.
struct Place {
    requests: Arc<AtomicUsize>,
    _work: Work,
    _in_flight: InFlight,
}

/// The body of control's answer.
pub struct Answer {
    body: Incoming,
    _place: Place,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Requests {
    fn begin(&self, work: Work, in_flight: InFlight) -> Option<Place> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            requests: self.0.clone(),
            _work: work,
            _in_flight: in_flight,
        };
        (before < REQUESTS_MAX).then_some(place)
    }
}

/// Asks control at `control`, and answers with what it says.
pub async fn pass(
    plane: &Arc<Plane>,
    control: SocketAddr,
    peer: SocketAddr,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    match ask(plane, control, peer, in_flight, parts, body).await {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::debug!(reason = %refusal.reason, detail = refusal.detail, "control not asked");
            refusal.answer(BodyKind::Problem)
        }
    }
}

async fn ask(
    plane: &Arc<Plane>,
    control: SocketAddr,
    peer: SocketAddr,
    in_flight: InFlight,
    parts: Parts,
    body: Incoming,
) -> Result<Response<Body>, Refusal> {
    let asked = judge(&parts, !body.is_end_stream(), body.size_hint().exact())?;
    let work = plane.begin();
    let work = work.ok_or_else(|| Refusal::new(CloseReason::Draining, ""))?;
    let place = plane.console.begin(work, in_flight).ok_or_else(|| {
        let why = format!("{REQUESTS_MAX} requests to control are open.");
        Refusal::new(CloseReason::Overload, why)
    })?;
    let from = client(peer.ip(), &parts.headers, &plane.config.trusted_proxies);
    let request = rebuilt(parts, body, &asked.connection, from)?;
    let absent = |why: String| Refusal::new(CloseReason::ControlAbsent, why);
    let connecting = timeout(CONNECT_DEADLINE, TcpStream::connect(control)).await;
    let stream = match connecting {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Err(absent(format!("{control}: {why}."))),
        Err(_) => return Err(absent(format!("{control} does not take connections."))),
    };
    // An event must not wait for the next one.
    let _ = stream.set_nodelay(true);
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|why| absent(why.to_string()))?;
    // It ends with the answer, or with whoever stopped reading it.
    tokio::spawn(async move {
        if let Err(why) = connection.await {
            tracing::debug!(
                why = &why as &dyn std::error::Error,
                "connection to control ended"
            );
        }
    });
    let answered = timeout(HEAD_DEADLINE, sender.send_request(request)).await;
    let answered = answered.map_err(|_| absent("It does not answer in time.".to_owned()))?;
    let (mut head, body) = answered
        .map_err(|why| absent(why.to_string()))?
        .into_parts();
    clean(&mut head.headers);
    let place = Answer {
        body,
        _place: place,
    };
    Ok(Response::from_parts(head, Body::Control(Box::new(place))))
}

/// The client, as far as it can be believed: a proxy of ours says whom it speaks for.
fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[ipnet::IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted.iter().any(|net| net.contains(&peer)) {
        return peer;
    }
    let lines = headers.get_all(X_FORWARDED_FOR).iter();
    let last = lines.filter_map(|line| line.to_str().ok()).next_back();
    let last = last.and_then(|line| line.rsplit(',').next());
    last.and_then(|text| text.trim().parse().ok())
        .unwrap_or(peer)
}

/// Control gets what the client said to it, credentials included, and nothing that was meant for
/// this hop or would pass for our word.
fn rebuilt(
    mut parts: Parts,
    body: Incoming,
    connection: &ConnectionTokens,
    from: IpAddr,
) -> Result<Request<Incoming>, Refusal> {
    let bad = |why: &str| Refusal::new(CloseReason::BadHead, why);
    let mut headers = HeaderMap::with_capacity(parts.headers.len() + 2);
    for (name, value) in &parts.headers {
        if passes(name.as_str(), connection) {
            headers.append(name.clone(), value.clone());
        }
    }
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str());
        headers.insert(HOST, host.map_err(|_| bad("The authority is no Host."))?);
    }
    let from = HeaderValue::try_from(from.to_string());
    headers.insert(
        X_FORWARDED_FOR,
        from.map_err(|_| bad("The peer has no address."))?,
    );
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from(path.ok_or_else(|| bad("The request target is no path."))?);
    parts.version = Version::HTTP_11;
    parts.headers = headers;
    parts.extensions = http::Extensions::new();
    Ok(Request::from_parts(parts, body))
}

fn passes(name: &str, connection: &ConnectionTokens) -> bool {
    let is_credential = matches!(name, "authorization" | "cookie");
    let is_ours = is_protected(name) && !is_credential;
    !(name.contains('_') || is_hop_by_hop(name) || is_ours || connection.names(name))
}

/// What belongs to the hop between us and control stays there.
fn clean(headers: &mut HeaderMap) {
    let hop: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name.as_str()) || **name == SERVER)
        .cloned()
        .collect();
    for name in hop {
        headers.remove(name);
    }
}

impl Answer {
    /// The next piece, as it comes.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyCut>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(|_| BodyCut(CloseReason::ControlAbsent))))
    }

    /// Whether nothing more comes.
    pub fn is_done(&self) -> bool {
        self.body.is_end_stream()
    }

    /// What is left, where that is known.
    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_whom_a_trusted_proxy_names_and_else_the_peer() {
        let headers = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_static(line));
            }
            headers
        };
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let seen = |peer: &str, lines: &[&'static str]| {
            client(peer.parse().unwrap(), &headers(lines), &trusted).to_string()
        };
        assert_eq!(seen("192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(seen("10.1.1.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(seen("::ffff:10.1.1.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            seen("10.1.1.1", &["1.1.1.1, 2.2.2.2", "3.3.3.3,4.4.4.4"]),
            "4.4.4.4"
        );
        assert_eq!(seen("10.1.1.1", &["nonsense"]), "10.1.1.1");
        assert_eq!(seen("10.1.1.1", &[]), "10.1.1.1");
    }

    #[test]
    fn credentials_pass_and_what_would_be_our_word_does_not() {
        let connection = ConnectionTokens::parse([&b"close, x-hop"[..]]).unwrap();
        for name in [
            "cookie",
            "authorization",
            "origin",
            "content-type",
            "last-event-id",
        ] {
            assert!(passes(name, &connection), "{name}");
        }
        for name in [
            "x-forwarded-for",
            "x_forwarded_for",
            "forwarded",
            "x-real-ip",
            "culvert-error",
            "connection",
            "te",
            "x-hop",
            "proxy-authorization",
        ] {
            assert!(!passes(name, &connection), "{name}");
        }
    }
}

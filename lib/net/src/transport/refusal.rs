//! Why a hub did not take the session, and whom that blames (C-18).

use std::time::Duration;

use culvert_proto::close::{CloseReason, Retry, Side};
use culvert_proto::hello::UPGRADE_NATIVE;
use http::header::{LOCATION, RETRY_AFTER, SERVER};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use super::agent::error_header;
use super::choice::Sign;
use crate::dial::{DialError, Setback};
use crate::tls::TlsError;

/// Bytes of a refusal's body that are read for its text.
const TEXT_BYTES_MAX: usize = 4096;

/// No session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection to any hub.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The request cannot be written.
    #[error("the request to the hub cannot be written: {0}")]
    Request(String),
    /// Connected, asked, and nothing came back in time.
    #[error("{url} took the connection and did not answer within 10 s")]
    Silent {
        /// The hub.
        url: String,
    },
    /// TLS broke after the handshake: in TLS 1.3 a refused client certificate shows only now.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection ended before an answer.
    #[error("the connection ended before the hub's answer: {0}")]
    NoAnswer(String),
    /// A 101 that is not what a hub sends.
    #[error("{0}; a box on the way may have changed the upgrade")]
    Mangled(String),
    /// The hub, or something in front of it, said no.
    #[error("{0}")]
    Refused(Box<Refusal>),
}

/// A refusal in HTTP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.explain())]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// The hub's own reason (`Culvert-Error`); absent when something else answered.
    pub reason: Option<CloseReason>,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// The beginning of the body, one line.
    pub text: String,
    /// `Server` of the answer.
    pub server: String,
    /// `Location` of a redirect.
    pub location: Option<String>,
}

impl Refusal {
    pub(super) async fn read(response: Response<Incoming>) -> Refusal {
        let header = |name| {
            let value: Option<&http::HeaderValue> = response.headers().get(name);
            value.and_then(|v| v.to_str().ok()).map(one_line)
        };
        let (server, location) = (header(SERVER).unwrap_or_default(), header(LOCATION));
        let retry_after = header(RETRY_AFTER)
            .and_then(|v| v.parse().ok())
            .map(Duration::from_secs);
        let status = response.status().as_u16();
        let reason = error_header(&response).and_then(CloseReason::from_word);
        let body = Limited::new(response.into_body(), TEXT_BYTES_MAX).collect();
        let text = match tokio::time::timeout(Duration::from_secs(1), body).await {
            Ok(Ok(body)) => one_line(&String::from_utf8_lossy(&body.to_bytes())),
            _ => String::new(),
        };
        Refusal {
            status,
            reason,
            retry_after,
            text,
            server,
            location,
        }
    }

    /// The close reason to log and count.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        if let Some(reason) = self.reason {
            return reason;
        }
        match StatusCode::from_u16(self.status) {
            Ok(StatusCode::UNAUTHORIZED) => CloseReason::Unauthenticated,
            Ok(StatusCode::PROXY_AUTHENTICATION_REQUIRED) => CloseReason::ProxyAuth,
            Ok(StatusCode::FORBIDDEN) => CloseReason::GatewayRefused,
            Ok(StatusCode::NOT_FOUND) => CloseReason::WrongPath,
            Ok(StatusCode::CONFLICT) => CloseReason::Duplicate,
            Ok(StatusCode::UPGRADE_REQUIRED) => CloseReason::NoCommonVersion,
            Ok(StatusCode::TOO_MANY_REQUESTS) => CloseReason::RateLimited,
            Ok(status) if status.is_redirection() => CloseReason::Redirected,
            Ok(status) if status.is_server_error() => CloseReason::HubError,
            _ => CloseReason::UpgradeMangled,
        }
    }

    fn explain(&self) -> String {
        let reason = self.close_reason();
        let who = match (self.reason, self.server.as_str()) {
            (Some(_), _) => "the hub".to_owned(),
            (None, "") => "the hub, or something in front of it,".to_owned(),
            (None, server) => format!("{server:?}, the hub or something in front of it,"),
        };
        let mut out = format!(
            "{who} answered {} ({reason}): {} {}",
            self.status,
            reason.meaning(),
            reason.fix()
        );
        if reason == CloseReason::NoCommonVersion {
            out.push_str(&format!(" This agent speaks {UPGRADE_NATIVE}."));
        }
        if let Some(location) = &self.location {
            out.push_str(&format!(" It points to {location:?}."));
        }
        if !self.text.is_empty() {
            out.push_str(&format!(" It says: {:?}", self.text));
        }
        out
    }
}

impl ConnectError {
    pub(super) fn no_answer(error: &hyper::Error) -> ConnectError {
        use std::error::Error as _;
        if error.is_parse() {
            return ConnectError::Mangled(format!("what answered is not HTTP: {error}"));
        }
        let Some(source) = error.source() else {
            return ConnectError::NoAnswer(error.to_string());
        };
        if let Some(io) = source.downcast_ref::<std::io::Error>()
            && let tls @ TlsError::ClientCertificate(_) = TlsError::from_handshake(io)
        {
            return ConnectError::Tls(tls);
        }
        ConnectError::NoAnswer(format!("{error}: {source}"))
    }

    /// The close reason to log and count.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        match self {
            ConnectError::Dial(error) => error.close_reason(),
            ConnectError::Request(_) => CloseReason::Internal,
            ConnectError::Silent { .. } => CloseReason::HubTimeout,
            ConnectError::NoAnswer(_) => CloseReason::HubError,
            // The hub's side calls it the same.
            ConnectError::Tls(_) => CloseReason::ClientTls,
            ConnectError::Mangled(_) => CloseReason::UpgradeMangled,
            ConnectError::Refused(refusal) => refusal.close_reason(),
        }
    }

    /// Whose side it is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.close_reason().side()
    }

    /// What [`crate::dial::Backoff`] needs to know.
    #[must_use]
    pub fn setback(&self) -> Setback {
        if let ConnectError::Refused(refusal) = self
            && let Some(after) = refusal.retry_after
        {
            return Setback::RetryAfter(after);
        }
        match self {
            ConnectError::Refused(refusal) if matches!(refusal.status, 401 | 403) => {
                Setback::Refused
            }
            ConnectError::Tls(_) => Setback::Refused,
            _ if self.close_reason().retry() == Retry::Slow => Setback::Refused,
            _ => Setback::Ordinary,
        }
    }

    /// Whether the other hubs would say the same.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, ConnectError::Refused(refusal) if refusal.status == 401)
            || matches!(self, ConnectError::Request(_))
    }

    /// What this says about a box on the way that does not know the raw upgrade.
    pub(super) fn sign(&self) -> Option<Sign> {
        match self {
            ConnectError::Silent { .. } | ConnectError::Mangled(_) => Some(Sign::Mangled),
            ConnectError::NoAnswer(_) => Some(Sign::Ended),
            // 426 may be the hub's own: every hub knows what we offer, so it did not arrive there.
            ConnectError::Refused(refusal) => match (refusal.status, refusal.reason) {
                (426, None | Some(CloseReason::NoCommonVersion)) => Some(Sign::Mangled),
                (400 | 501, None) => Some(Sign::Mangled),
                _ => None,
            },
            ConnectError::Dial(_) | ConnectError::Request(_) | ConnectError::Tls(_) => None,
        }
    }
}

fn one_line(text: &str) -> String {
    let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    visible
        .collect::<String>()
        .trim()
        .chars()
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, reason: Option<CloseReason>) -> ConnectError {
        ConnectError::Refused(Box::new(Refusal {
            status,
            reason,
            retry_after: None,
            text: String::new(),
            server: "squid".to_owned(),
            location: None,
        }))
    }

    #[test]
    fn only_401_blames_the_credential() {
        for status in 300..600 {
            let reason = refused(status, None).close_reason();
            assert_eq!(
                reason == CloseReason::Unauthenticated,
                status == 401,
                "{status}"
            );
        }
        assert_eq!(
            refused(403, None).close_reason(),
            CloseReason::GatewayRefused
        );
        assert_eq!(
            refused(403, Some(CloseReason::Disabled)).close_reason(),
            CloseReason::Disabled
        );
        assert_eq!(refused(404, None).close_reason(), CloseReason::WrongPath);
        assert_eq!(refused(302, None).close_reason(), CloseReason::Redirected);
        assert_eq!(refused(502, None).close_reason(), CloseReason::HubError);
        assert!(refused(502, None).to_string().contains("squid"));
    }

    #[test]
    fn waits_follow_the_answer() {
        assert_eq!(refused(401, None).setback(), Setback::Refused);
        assert_eq!(refused(403, None).setback(), Setback::Refused);
        assert_eq!(refused(500, None).setback(), Setback::Ordinary);
        let ConnectError::Refused(mut paced) = refused(503, Some(CloseReason::Paced)) else {
            panic!("made as refused");
        };
        paced.retry_after = Some(Duration::from_secs(9));
        let paced = ConnectError::Refused(paced);
        assert_eq!(paced.setback(), Setback::RetryAfter(Duration::from_secs(9)));
    }

    #[test]
    fn each_sign_of_a_box_on_the_way() {
        let sign = |status, reason| refused(status, reason).sign();
        for status in [400, 426, 501] {
            assert_eq!(sign(status, None), Some(Sign::Mangled), "{status}");
        }
        let stripped = Some(CloseReason::NoCommonVersion);
        assert_eq!(sign(426, stripped), Some(Sign::Mangled));
        // A gateway in front of a hub that is down, and a hub's own words, are no signs.
        for status in [301, 401, 403, 404, 407, 429, 500, 502, 503, 504] {
            assert_eq!(sign(status, None), None, "{status}");
        }
        assert_eq!(sign(400, Some(CloseReason::BadHead)), None);
        assert_eq!(sign(503, Some(CloseReason::Draining)), None);
        let (text, url) = (String::new, String::new());
        assert_eq!(ConnectError::Mangled(text()).sign(), Some(Sign::Mangled));
        assert_eq!(ConnectError::Silent { url }.sign(), Some(Sign::Mangled));
        assert_eq!(ConnectError::NoAnswer(text()).sign(), Some(Sign::Ended));
        assert_eq!(ConnectError::Request(text()).sign(), None);
    }
}

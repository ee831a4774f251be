//! Answers that this process gives by itself, attributed and machine-readable.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use culvert_proto::answer::{BodyKind, error_body, error_status, retry_after_seconds};
use culvert_proto::close::CloseReason;

use super::body::Body;

/// The header that names the reason of an error made by Culvert.
pub const CULVERT_ERROR: &str = "culvert-error";

/// Why a request is not relayed.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The reason; it gives status, side and word.
    pub reason: CloseReason,
    /// What was seen in this case; no secrets.
    pub detail: String,
    /// Seconds for `Retry-After` in place of the reason's own.
    pub retry_after_s: Option<u32>,
    /// The connection is not used again: what follows on it cannot be trusted.
    pub close: bool,
}

impl Refusal {
    /// A refusal after which the connection may go on.
    pub fn new(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            retry_after_s: None,
            close: false,
        }
    }

    /// A refusal of a head that two readers could understand differently.
    pub fn closing(reason: CloseReason, detail: impl Into<String>) -> Self {
        let mut refusal = Self::new(reason, detail);
        refusal.close = true;
        refusal
    }

    /// Says when to come back, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(mut self, wait: std::time::Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1000).clamp(1, 3600);
        self.retry_after_s = u32::try_from(seconds).ok();
        self
    }

    /// The answer, in the form the target's clients understand.
    pub fn answer(&self, kind: BodyKind) -> Response<Body> {
        let body = error_body(kind, self.reason, &self.detail);
        let mut answer = Response::new(Body::from(Bytes::from(body)));
        let status = StatusCode::from_u16(error_status(self.reason));
        *answer.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind.content_type()));
        headers.insert(
            CULVERT_ERROR,
            HeaderValue::from_static(self.reason.as_str()),
        );
        if let Some(seconds) = self.retry_after_s.or(retry_after_seconds(self.reason)) {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_names_reason_side_and_fix() {
        let refusal = Refusal::new(CloseReason::AgentAbsent, "cluster a");
        let answer = refusal.answer(BodyKind::Problem);
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()[CULVERT_ERROR], "agent_absent");
        assert!(answer.headers().contains_key(RETRY_AFTER));
        assert!(!answer.headers().contains_key(CONNECTION));
        let Body::Whole(body) = answer.into_body() else {
            panic!("a whole body")
        };
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["status"], 503, "{body}");
    }

    #[test]
    fn waits_round_up_to_whole_seconds() {
        let refusal = Refusal::new(CloseReason::RateLimited, "");
        let wait = refusal.retry_after(std::time::Duration::from_millis(1001));
        assert_eq!(wait.answer(BodyKind::Problem).headers()[RETRY_AFTER], "2");
    }

    #[test]
    fn an_ambiguous_head_closes_the_connection() {
        let answer = Refusal::closing(CloseReason::BadHead, "two Host").answer(BodyKind::Problem);
        assert_eq!(answer.status(), 400);
        assert_eq!(answer.headers()[CONNECTION], "close");
    }
}

//! Answers that the agent gives itself.

use std::fmt::{self, Display};

use bytes::Bytes;
use culvert_proto::answer::{BodyKind, error_body, error_status, retry_after_seconds};
use culvert_proto::close::CloseReason;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use super::head::HeadError;
use crate::ceiling::Above;
use crate::target::TargetKind;

/// Carries the close reason of an answer that is ours.
pub const CULVERT_ERROR: HeaderName = HeaderName::from_static("culvert-error");

/// Why a stream was not served.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What kind of end it is, and whose doing.
    pub reason: CloseReason,
    /// What was seen in this case; no secrets.
    pub detail: String,
}

impl Failure {
    /// A failure.
    #[must_use]
    pub fn new(reason: CloseReason, detail: impl Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
        }
    }

    /// The answer that says so, in the form the target's clients understand.
    #[must_use]
    pub fn answer(&self, kind: TargetKind) -> Response<Full<Bytes>> {
        let body = match kind {
            TargetKind::Http => BodyKind::Problem,
            TargetKind::Kube => BodyKind::KubernetesStatus,
        };
        let text = error_body(body, self.reason, &self.detail);
        let mut answer = Response::new(Full::from(text));
        *answer.status_mut() =
            StatusCode::from_u16(error_status(self.reason)).unwrap_or(StatusCode::BAD_GATEWAY);
        let headers = answer.headers_mut();
        headers.insert(
            CULVERT_ERROR,
            HeaderValue::from_static(self.reason.as_str()),
        );
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(body.content_type()));
        if let Some(seconds) = retry_after_seconds(self.reason) {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl From<HeadError> for Failure {
    fn from(why: HeadError) -> Self {
        let reason = match why {
            HeadError::NotAPath | HeadError::Unreadable(_) | HeadError::UpgradeBody => {
                CloseReason::BadHead
            }
            HeadError::NoUser | HeadError::Above(Above::Nobody) => CloseReason::NoIdentity,
            HeadError::Above(Above::NotListed { .. }) => CloseReason::IdentityNotAllowed,
            HeadError::Above(Above::Reserved(_)) | HeadError::TooManyGroups => {
                CloseReason::Forbidden
            }
        };
        Self::new(reason, why)
    }
}

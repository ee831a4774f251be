//! What an answer, or that there is none, says about a cluster.

use http::StatusCode;

use super::{Answer, Missing};
use crate::cluster::TargetKind;

/// How a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Healthy,
    /// It answers that something is wrong.
    Degraded,
    /// It does not answer.
    Unreachable,
    /// Nobody asked it.
    Unknown,
    /// It does not answer this person.
    Denied,
}

/// How a cluster is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How it is.
    pub health: Health,
    /// What it says of itself.
    pub version: Option<String>,
    /// Why it is not healthy.
    pub error: Option<String>,
}

impl Health {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::Healthy,
        Self::Degraded,
        Self::Unreachable,
        Self::Unknown,
        Self::Denied,
    ];

    /// The word of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
            Self::Denied => "denied",
        }
    }
}

impl Verdict {
    fn healthy(version: Option<String>) -> Self {
        Self {
            health: Health::Healthy,
            version,
            error: None,
        }
    }

    fn bad(health: Health, error: impl Into<String>) -> Self {
        Self {
            health,
            version: None,
            error: Some(error.into()),
        }
    }

    /// Nobody asked it.
    #[must_use]
    pub fn not_asked(why: &str) -> Self {
        Self::bad(Health::Unknown, why)
    }

    /// It is not there.
    #[must_use]
    pub fn unreachable(why: &str) -> Self {
        Self::bad(Health::Unreachable, why)
    }

    /// Of an answer of the cluster, or of the data plane in its place.
    #[must_use]
    pub fn of(kind: TargetKind, answer: Result<&Answer, &Missing>) -> Self {
        match answer {
            Ok(answer) => Self::of_answer(kind, answer),
            Err(Missing::Late) => Self::unreachable(&Missing::Late.to_string()),
            Err(Missing::TooLong | Missing::PageFull) => Self {
                error: answer.err().map(ToString::to_string),
                ..Self::healthy(None)
            },
            // Nothing is known about the cluster itself.
            Err(why) => Self::not_asked(&why.to_string()),
        }
    }

    fn of_answer(kind: TargetKind, answer: &Answer) -> Self {
        let status = answer.status;
        let seen = || match &answer.code {
            Some(code) => format!("{status}: {code}"),
            None => format!("answered {status}"),
        };
        let health = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Health::Denied,
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Health::Unreachable,
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Health::Degraded
            }
            // Any other answer of an HTTP service is one; an API server is asked for what it has.
            status if status.is_success() || kind == TargetKind::Http => Health::Healthy,
            _ => Health::Degraded,
        };
        match health {
            Health::Healthy => Self::healthy(kube_version(kind, &answer.body)),
            bad => Self::bad(bad, seen()),
        }
    }
}

fn kube_version(kind: TargetKind, body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Version {
        #[serde(rename = "gitVersion")]
        git_version: String,
    }
    let version = (kind == TargetKind::Kube).then(|| serde_json::from_slice::<Version>(body));
    Some(version?.ok()?.git_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            code: None,
            body: body.into(),
        }
    }

    #[test]
    fn each_answer_has_its_verdict() {
        use Health::{Degraded, Denied, Healthy, Unreachable};
        use TargetKind::{Http, Kube};
        for (kind, status, health) in [
            (Kube, 200, Healthy),
            (Kube, 404, Degraded),
            (Http, 404, Healthy),
            (Http, 302, Healthy),
            (Http, 429, Degraded),
            (Kube, 500, Degraded),
            (Kube, 401, Denied),
            (Http, 403, Denied),
            (Kube, 502, Unreachable),
            (Http, 503, Unreachable),
            (Kube, 504, Unreachable),
        ] {
            let verdict = Verdict::of(kind, Ok(&answer(status, "")));
            assert_eq!(verdict.health, health, "{kind:?} {status}");
            assert_eq!(verdict.error.is_none(), health == Healthy, "{verdict:?}");
        }
        let late = Verdict::of(Kube, Err(&Missing::Late));
        assert_eq!(late.health, Unreachable);
        let long = Verdict::of(Kube, Err(&Missing::TooLong));
        assert!(long.health == Healthy && long.error.is_some());
        let cut = Verdict::of(Kube, Err(&Missing::OutOfTime));
        assert_eq!(cut.health, Health::Unknown);
    }

    #[test]
    fn an_api_server_says_its_version() {
        let body = r#"{"major":"1","gitVersion":"v1.34.1"}"#;
        let version = |kind| Verdict::of(kind, Ok(&answer(200, body))).version;
        assert_eq!(version(TargetKind::Kube).as_deref(), Some("v1.34.1"));
        assert_eq!(version(TargetKind::Http), None);
    }
}

//! Bodies of our own answers are JSON whatever the detail holds.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use culvert_proto::answer::*;
use culvert_proto::close::CloseReason;
use proptest::prelude::*;
use serde_json::Value;

#[test]
fn kubernetes_status_has_the_shape_its_clients_read() {
    let body = error_body(
        BodyKind::KubernetesStatus,
        CloseReason::AgentAbsent,
        "cluster prod-eu",
    );
    let json: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["kind"], "Status");
    assert_eq!(json["apiVersion"], "v1");
    assert_eq!(json["status"], "Failure");
    assert_eq!(json["code"], 503);
    assert_eq!(json["reason"], "ServiceUnavailable");
    assert_eq!(json["details"]["causes"][0]["reason"], "agent_absent");
    assert_eq!(json["details"]["retryAfterSeconds"], 1);
    assert!(
        json["message"]
            .as_str()
            .unwrap()
            .ends_with("cluster prod-eu")
    );
}

#[test]
fn problem_names_code_side_and_fix() {
    let body = error_body(BodyKind::Problem, CloseReason::UnknownCluster, "");
    let json: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["type"], "urn:culvert:error:unknown_cluster");
    assert_eq!(json["status"], 404);
    assert_eq!(json["code"], "unknown_cluster");
    assert_eq!(json["side"], "client");
    assert!(
        json["fix"]
            .as_str()
            .unwrap()
            .contains("culvert cluster list")
    );
    assert_eq!(json.get("detail"), None);
    assert_eq!(BodyKind::Problem.content_type(), "application/problem+json");
}

#[test]
fn every_reason_gives_json_with_its_status() {
    for reason in CloseReason::ALL {
        for kind in [BodyKind::KubernetesStatus, BodyKind::Problem] {
            let json: Value = serde_json::from_str(&error_body(kind, *reason, "x")).unwrap();
            let field = if kind == BodyKind::Problem {
                "status"
            } else {
                "code"
            };
            assert_eq!(json[field], error_status(*reason), "{reason}");
        }
        let retry = retry_after_seconds(*reason).is_some();
        assert_eq!(
            retry,
            matches!(error_status(*reason), 429 | 503),
            "{reason}"
        );
    }
}

proptest! {
    #[test]
    fn any_detail_is_escaped(detail: String) {
        for kind in [BodyKind::KubernetesStatus, BodyKind::Problem] {
            let body = error_body(kind, CloseReason::BadHead, &detail);
            prop_assert!(!body.contains(|c: char| c.is_control() || c == '<' || c == '>'));
            let json: Value = serde_json::from_str(&body).unwrap();
            let text = match kind {
                BodyKind::Problem => json.get("detail").map_or("", |d| d.as_str().unwrap()),
                BodyKind::KubernetesStatus => json["message"].as_str().unwrap(),
            };
            prop_assert!(text.ends_with(&detail));
        }
    }
}

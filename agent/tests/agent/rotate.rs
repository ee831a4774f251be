//! Tokens that change through the session.

use culvert_net::carrier::SessionEvent;
use culvert_net::crypto::sha256;
use culvert_proto::close::CloseReason;
use culvert_proto::control::Rotate;
use culvert_proto::id::ClusterId;
use culvert_proto::join::JoinString;
use culvert_proto::token::{Digest, TokenText};
use http::Response;

use crate::hub::{Hub, Running, TOKEN, load};
use crate::support::*;

const NEW: &str = "rhc_the-token-after-it";

fn rotate(token: &str) -> Rotate {
    Rotate {
        not_before_unix_s: 0,
        token: TokenText::new(token).unwrap(),
    }
}

#[tokio::test]
async fn a_new_token_is_kept_acknowledged_and_shown_next() {
    let served = service(answer(|_| async { Response::new(full("x")) })).await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state").to_str().unwrap().to_owned();
    let mut hub = Hub::start().await;
    let agent = Running::of(&hub, served.addr, &["--state-dir", &state]);
    let session = hub.session().await;
    assert_eq!(session.token, TOKEN);
    session.carrier.rotate(rotate(NEW)).unwrap();
    let digest = session.until(|event| match event {
        SessionEvent::Rotated(digest) => Some(digest),
        _ => None,
    });
    assert_eq!(digest.await, Digest(sha256(NEW.as_bytes())));
    // It is durable before the acknowledgement leaves.
    let kept = std::fs::read_to_string(dir.path().join("state/agent-token")).unwrap();
    assert!(kept.contains(NEW), "{kept}");
    session.carrier.close(CloseReason::Shutdown);
    assert_eq!(hub.session().await.token, NEW);
    agent.stop().await;

    let agent = Running::of(&hub, served.addr, &["--state-dir", &state]);
    assert_eq!(hub.session().await.token, NEW, "after a restart too");
    agent.stop().await;

    // The hub lost the rotation: the other token is tried soon.
    hub.refuse(
        Response::builder()
            .status(401)
            .body(full("unknown"))
            .unwrap(),
    );
    let _agent = Running::of(&hub, served.addr, &["--state-dir", &state]);
    assert_eq!(hub.session().await.token, TOKEN);
}

#[tokio::test]
async fn without_a_state_directory_rotation_is_not_offered() {
    let served = service(answer(|_| async { Response::new(full("x")) })).await;
    let mut hub = Hub::start().await;
    let _agent = Running::of(&hub, served.addr, &[]);
    assert!(hub.session().await.carrier.rotate(rotate(NEW)).is_err());
}

#[tokio::test]
async fn a_join_string_is_enough_and_a_stale_one_is_ignored() {
    let served = service(answer(|_| async { Response::new(full("x")) })).await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let mut hub = Hub::start().await;
    let join = |token: &str, expires_unix_s| {
        let join = JoinString {
            hubs: vec![hub.url()],
            cluster: ClusterId::new("dev").unwrap(),
            token: TokenText::new(token).unwrap(),
            spki_pin: None,
            expires_unix_s,
            register: None,
        };
        join.encode().unwrap().to_string()
    };
    let (good, stale) = (join(TOKEN, 0), join("rhc_a-token-of-long-ago", 1));
    let target = format!("http://{}", served.addr);
    let args = |join: &str| {
        let args = ["join", join, "--target", &target, "--state-dir", state];
        let more = ["--allow-insecure-server", "--health-addr", "127.0.0.1:0"];
        args.into_iter()
            .chain(more)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let refused = load(
        &args(&stale).iter().map(String::as_str).collect::<Vec<_>>(),
        &[],
    );
    let why = refused.err().unwrap().to_string();
    assert!(why.contains("expired"), "{why}");
    for word in [good, stale] {
        let args = args(&word);
        let agent = Running::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(hub.session().await.token, TOKEN);
        within(async {
            while !dir.path().join("agent-token").exists() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        agent.stop().await;
    }
}

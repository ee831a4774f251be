//! Moving and stopping without losing a request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_net::carrier::SessionEvent;
use culvert_proto::close::CloseReason;
use culvert_proto::control::Drain;
use culvert_telemetry::lifecycle::Phase;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::sync::mpsc::Sender;

use crate::hub::{Direct, Hub, Running};
use crate::support::*;

type Chunks = Arc<Mutex<Vec<Sender<Frame<Bytes>>>>>;

/// A service whose answers the test feeds chunk by chunk; `/now` answers at once.
async fn slow() -> (Served, Chunks) {
    let chunks = Chunks::default();
    let kept = chunks.clone();
    let served = service(answer(move |request| {
        let chunks = kept.clone();
        async move {
            if request.uri().path() == "/now" {
                return Response::new(full("now"));
            }
            let (sender, body) = channel();
            chunks.lock().push(sender);
            Response::new(body)
        }
    }))
    .await;
    (served, chunks)
}

async fn feed(chunks: &Chunks, word: &'static str) {
    let sender = chunks.lock()[0].clone();
    sender.send(Frame::data(Bytes::from(word))).await.unwrap();
}

#[tokio::test]
async fn the_new_session_comes_before_the_old_one_goes() {
    let (served, chunks) = slow().await;
    let mut hub = Hub::start().await;
    let _agent = Running::of(&hub, served.addr, &[]);
    let old = hub.session().await;
    let mut slow = old.ask(get("/slow")).await.into_body();
    feed(&chunks, "before ").await;
    let drain = Drain {
        reconnect_within_ms: 300,
        deadline_ms: 20_000,
        addresses: Vec::new(),
    };
    old.carrier.drain(drain).unwrap();
    let new = hub.session().await;
    assert_eq!(
        old.carrier.ended(),
        None,
        "the old session is left after the new one stands"
    );
    assert_eq!(text(new.ask(get("/now")).await.into_body()).await, "now");
    old.until(|event| matches!(event, SessionEvent::PeerDraining).then_some(()))
        .await;
    feed(&chunks, "after").await;
    chunks.lock().clear();
    let mut said = Vec::new();
    while let Some(frame) = within(slow.frame()).await {
        said.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert_eq!(said, b"before after");
    assert_eq!(within(old.carrier.closed()).await, CloseReason::Draining);
    assert_eq!(new.carrier.ended(), None);
}

#[tokio::test]
async fn advice_names_another_place_and_the_deadline_cuts() {
    let (served, chunks) = slow().await;
    let (mut here, mut there) = (Hub::start().await, Hub::start().await);
    let _agent = Running::of(&here, served.addr, &[]);
    let old = here.session().await;
    let slow = old.ask(get("/slow")).await.into_body();
    feed(&chunks, "begun").await;
    let addresses = vec!["ftp://nowhere".to_owned(), there.url()];
    let drain = Drain {
        reconnect_within_ms: 0,
        deadline_ms: 1_500,
        addresses,
    };
    old.carrier.drain(drain).unwrap();
    let new = there.session().await;
    assert_eq!(text(new.ask(get("/now")).await.into_body()).await, "now");
    within(old.carrier.closed()).await;
    assert!(
        within(slow.collect()).await.is_err(),
        "a cut answer is never a complete one"
    );
}

#[tokio::test]
async fn a_stopping_agent_finishes_what_it_has_and_says_goodbye() {
    let (served, chunks) = slow().await;
    let mut hub = Hub::start().await;
    let agent = Running::of(&hub, served.addr, &[]);
    let session = hub.session().await;
    let slow = session.ask(get("/slow")).await.into_body();
    feed(&chunks, "begun ").await;
    // Opened before the hub can know.
    let mut crossing = session.http(None).await;
    agent.shutdown.advance(Phase::Draining);
    let crossed = within(crossing.send_request(get("/now"))).await.unwrap();
    assert_eq!(text(crossed.into_body()).await, "now");
    session
        .until(|event| matches!(event, SessionEvent::PeerDraining).then_some(()))
        .await;
    let refused = session
        .carrier
        .open(Some(&culvert_proto::open::StreamHeader::new(
            culvert_proto::open::StreamKind::Http,
        )));
    assert!(refused.is_err(), "the hub knows that nothing new is taken");
    feed(&chunks, "finished").await;
    chunks.lock().clear();
    assert_eq!(text(slow).await, "begun finished");
    agent.stop().await;
    assert_eq!(
        within(session.carrier.closed()).await,
        CloseReason::Shutdown
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!hub.has_session());
}

/// On a clock that moves only when nothing else can happen: what waits for time would show.
#[tokio::test(start_paused = true)]
async fn a_session_leaves_when_the_hub_has_heard_and_the_last_bytes_are_gone() {
    let (served, _) = slow().await;
    let mut direct = Direct::start(Recipe::http(served.addr), 3).await;
    let said = direct.ask(get("/now")).await;
    assert_eq!(text(said.into_body()).await, "now");
    let began = tokio::time::Instant::now();
    let deadline = began + Duration::from_secs(30);
    direct.session.leave(deadline, CloseReason::Shutdown);
    let ended = within(direct.session.ended()).await;
    assert_eq!(ended.reason, CloseReason::Shutdown);
    assert!(
        began.elapsed() < Duration::from_millis(5),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn the_grace_bounds_a_stop() {
    let (served, chunks) = slow().await;
    let mut hub = Hub::start().await;
    let agent = Running::of(&hub, served.addr, &["--drain-grace", "200ms"]);
    let session = hub.session().await;
    let slow = session.ask(get("/slow")).await.into_body();
    feed(&chunks, "begun").await;
    agent.stop().await;
    assert!(within(slow.collect()).await.is_err());
}

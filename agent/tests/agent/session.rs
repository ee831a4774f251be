//! Sessions with a hub: what is served, what is refused, how they end and begin.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use culvert_net::carrier::SessionEvent;
use culvert_proto::close::CloseReason;
use culvert_proto::hello::CarrierKind;
use culvert_proto::open::{StreamHeader, StreamKind};
use http::Response;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::hub::{Direct, Hub, Running};
use crate::support::*;

async fn hello() -> Served {
    service(answer(|_| async { Response::new(full("hello")) })).await
}

#[tokio::test]
async fn requests_pass_on_both_kinds_of_carrier() {
    let served = hello().await;
    for (websocket_only, kind) in [(false, CarrierKind::Native), (true, CarrierKind::WebSocket)] {
        let mut hub = Hub::with(&[], websocket_only).await;
        let agent = Running::of(
            &hub,
            served.addr,
            &["--region", "here", "--label", "a=b,c=d"],
        );
        let session = hub.session().await;
        assert_eq!(session.kind, kind);
        assert_eq!(session.facts.region, "here");
        assert_eq!(session.facts.labels.len(), 2);
        assert_eq!(session.facts.streams_max, Some(1024));
        assert!(session.facts.targets.contains(&served.addr.to_string()));
        for _ in 0..20 {
            assert_eq!(text(session.ask(get("/")).await.into_body()).await, "hello");
        }
        let stats = session.until(|event| match event {
            SessionEvent::Stats(stats) => Some(stats),
            _ => None,
        });
        assert_eq!(stats.await.target_errors, Some(0));
        agent.stop().await;
        assert_eq!(
            within(session.carrier.closed()).await,
            CloseReason::Shutdown
        );
    }
}

#[tokio::test]
async fn many_requests_at_once_are_none_lost_and_none_mixed_up() {
    let served = service(answer(|request| async move {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(full([path.as_bytes(), b" ", &body].concat()))
    }))
    .await;
    let mut hub = Hub::start().await;
    let agent = Running::of(&hub, served.addr, &[]);
    let session = Arc::new(hub.session().await);
    let workers = (0..32).map(|worker| {
        let session = session.clone();
        tokio::spawn(async move {
            for round in 0..32 {
                let path = format!("/{worker}/{round}");
                let body = format!("{worker}-{round}").repeat(200);
                let request = http::Request::post(&path)
                    .header("host", "h")
                    .body(full(body.clone()));
                let said = text(session.ask(request.unwrap()).await.into_body()).await;
                assert_eq!(said, format!("{path} {body}"));
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    agent.stop().await;
}

#[tokio::test]
async fn only_the_agents_own_and_granted_target_is_served() {
    let served = hello().await;
    let own = served.addr.to_string();
    let mut hub = Hub::with(&[&own, "10.0.0.1:80"], false).await;
    let _agent = Running::of(&hub, served.addr, &[]);
    let session = hub.session().await;
    let status = async |target: Option<&str>| {
        let response = session
            .http(target)
            .await
            .send_request(get("/"))
            .await
            .unwrap();
        (
            response.status().as_u16(),
            close_reason(&response).to_owned(),
        )
    };
    let refused = (403, "target_not_allowed".to_owned());
    assert_eq!(status(Some(&own)).await, (200, String::new()));
    assert_eq!(status(None).await, (200, String::new()));
    // Granted, but not this agent's; this agent's, but not granted by that name.
    for target in ["10.0.0.1:80", "169.254.169.254:80", "localhost", "default"] {
        assert_eq!(status(Some(target)).await, refused, "{target}");
    }
    assert_eq!(served.connections(), 1);
}

/// A service that holds every request until the test lets it go, and counts those that wait.
async fn held() -> (Served, Arc<Semaphore>, Arc<AtomicUsize>) {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::new(AtomicUsize::new(0));
    let (held, counted) = (gate.clone(), waiting.clone());
    let served = service(answer(move |_| {
        let (gate, waiting) = (held.clone(), counted.clone());
        async move {
            waiting.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            Response::new(full("x"))
        }
    }))
    .await;
    (served, gate, waiting)
}

async fn reach(waiting: &AtomicUsize, count: usize) {
    within(async {
        while waiting.load(Ordering::SeqCst) < count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn max_conns_is_told_and_a_hub_that_minds_it_opens_no_more() {
    let (served, gate, waiting) = held().await;
    let mut hub = Hub::start().await;
    let _agent = Running::of(&hub, served.addr, &["--max-conns", "3"]);
    let session = hub.session().await;
    assert_eq!(session.facts.streams_max, Some(3));
    let mut live = Vec::new();
    for _ in 0..3 {
        let mut stream = session.http(None).await;
        live.push(tokio::spawn(async move {
            stream.send_request(get("/")).await.unwrap()
        }));
    }
    reach(&waiting, 3).await;
    let header = StreamHeader::new(StreamKind::Http);
    let refused = session.carrier.open(Some(&header)).err().unwrap();
    assert_eq!(refused.reason, CloseReason::TooManyStreams);
    gate.add_permits(4);
    for one in live {
        let response = within(one).await.unwrap();
        assert_eq!(text(response.into_body()).await, "x");
    }
    within(async {
        while session.carrier.open(Some(&header)).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_above_max_conns_is_answered_503_and_the_others_live() {
    let (served, gate, waiting) = held().await;
    // This hub was told of more streams than the agent serves.
    let session = Direct::start(Recipe::http(served.addr), 3).await;
    let mut live = Vec::new();
    for n in 1..=3 {
        let mut stream = session.http().await;
        live.push(tokio::spawn(async move {
            stream.send_request(get("/")).await.unwrap()
        }));
        reach(&waiting, n).await;
    }
    for _ in 0..2 {
        let response = within(session.http().await.send_request(get("/"))).await;
        let response = response.unwrap();
        assert_eq!(
            (response.status().as_u16(), close_reason(&response)),
            (503, "too_many_streams")
        );
        let said = text(response.into_body()).await;
        assert!(said.contains("serves 3 streams already"), "{said}");
    }
    assert_eq!(waiting.load(Ordering::SeqCst), 3);
    gate.add_permits(4);
    for one in live {
        let response = within(one).await.unwrap();
        assert_eq!(text(response.into_body()).await, "x");
    }
    within(async {
        while session.ask(get("/")).await.status() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_lost_session_is_replaced_within_the_backoff() {
    let served = hello().await;
    let mut hub = Hub::start().await;
    let _agent = Running::of(&hub, served.addr, &[]);
    for _ in 0..3 {
        let session = hub.session().await;
        assert_eq!(text(session.ask(get("/")).await.into_body()).await, "hello");
        session.carrier.close(CloseReason::Shutdown);
    }
    assert_eq!(hub.session().await.epoch.0, 4);
}

#[tokio::test]
async fn who_was_replaced_or_revoked_does_not_come_back_at_once() {
    let served = hello().await;
    for reason in [
        CloseReason::Replaced,
        CloseReason::Revoked,
        CloseReason::Duplicate,
    ] {
        let mut hub = Hub::start().await;
        let agent = Running::of(&hub, served.addr, &[]);
        hub.session().await.carrier.close(reason);
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(hub.attempts(), 1, "{reason}");
        agent.stop().await;
    }
}

#[tokio::test]
async fn another_hub_address_is_used_when_the_first_is_dead() {
    let served = hello().await;
    let mut hub = Hub::start().await;
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead_addr = dead.local_addr().unwrap();
    drop(dead);
    let servers = format!("ws://{dead_addr},{}", hub.url());
    let _agent = Running::start(&[
        "--server",
        &servers,
        "--allow-insecure-server",
        "--token",
        crate::hub::TOKEN,
        "--target",
        &format!("http://{}", served.addr),
        "--health-addr",
        "127.0.0.1:0",
    ]);
    assert_eq!(
        text(hub.session().await.ask(get("/")).await.into_body()).await,
        "hello"
    );
}

#[tokio::test]
async fn retry_after_is_obeyed_and_a_refused_token_waits() {
    let served = hello().await;
    let mut hub = Hub::start().await;
    let busy = Response::builder()
        .status(503)
        .header("retry-after", "1")
        .body(full("busy"));
    hub.refuse(busy.unwrap());
    let began = Instant::now();
    let agent = Running::of(&hub, served.addr, &[]);
    hub.session().await;
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    agent.stop().await;

    let hub = Hub::start().await;
    hub.refuse(Response::builder().status(401).body(full("no")).unwrap());
    let _agent = Running::of(&hub, served.addr, &[]);
    hub.attempted(1).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(hub.attempts(), 1);
}

#[tokio::test]
async fn a_stream_the_client_broke_off_lets_the_target_go() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut hub = Hub::start().await;
    let _agent = Running::of(&hub, listener.local_addr().unwrap(), &[]);
    let session = hub.session().await;
    let mut stream = session.open(&StreamHeader::new(StreamKind::Http));
    stream
        .write_all(b"GET /watch HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let (mut tcp, _) = within(listener.accept()).await.unwrap();
    let mut head = [0; 512];
    assert!(within(tcp.read(&mut head)).await.unwrap() > 0);
    drop(stream);
    assert_eq!(within(tcp.read(&mut head)).await.unwrap_or(0), 0);
}

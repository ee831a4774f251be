//! Several agents, old sessions, revoked clusters.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::{Agent, Introduction};
use crate::client::{connect, get, read_until, request};
use crate::hub::{Hub, OTHER_TOKEN, TOKEN, metric, soon, until};

fn tagged(tag: &'static str, instance: u8) -> Introduction {
    Introduction {
        tag,
        instance: [instance; 16],
        ..Introduction::default()
    }
}

#[tokio::test]
async fn several_agents_share_the_load() {
    let hub = Hub::start(&[]);
    let _a = Agent::with(hub.at.public, tagged("a", 1)).await;
    let _b = Agent::with(hub.at.public, tagged("b", 2)).await;
    let mut tags = Vec::new();
    for _ in 0..20 {
        let answer = get(hub.at.internal, "/tunnel/dev/").await;
        tags.push(answer.field("x-tag").unwrap().to_owned());
    }
    for tag in ["a", "b"] {
        assert!(
            tags.iter().any(|seen| seen == tag),
            "{tag} never served: {tags:?}"
        );
    }
}

#[tokio::test]
async fn an_old_session_that_ends_late_takes_nothing_with_it() {
    let hub = Hub::start(&[]);
    for round in 0..10 {
        let old = Agent::with(hub.at.public, tagged("old", 7)).await;
        let new = Agent::with(hub.at.public, tagged("new", 7)).await;
        for _ in 0..5 {
            let answer = get(hub.at.internal, "/tunnel/dev/").await;
            assert_eq!(
                answer.field("x-tag"),
                Some("new"),
                "round {round}: {answer:?}"
            );
        }
        drop(old);
        tokio::time::sleep(Duration::from_millis(20)).await;
        for _ in 0..5 {
            let answer = get(hub.at.internal, "/tunnel/dev/").await;
            assert_eq!(
                (answer.status, answer.field("x-tag")),
                (200, Some("new")),
                "round {round}"
            );
        }
        drop(new);
        let gone = || async {
            (metric(hub.at.internal, "agents_connected ").await == Some(0.0)).then_some(())
        };
        until("both are gone", gone).await;
    }
}

#[tokio::test]
async fn a_replaced_session_finishes_what_it_serves() {
    let hub = Hub::start(&[]);
    let old = Agent::with(hub.at.public, tagged("old", 7)).await;
    let mut stream = connect(hub.at.internal).await;
    stream
        .write_all(request("GET", "/tunnel/dev/steps", "").as_bytes())
        .await
        .unwrap();
    read_until(&mut stream, b"\r\n\r\n").await;
    let _new = Agent::with(hub.at.public, tagged("new", 7)).await;
    assert_eq!(
        get(hub.at.internal, "/tunnel/dev/").await.field("x-tag"),
        Some("new")
    );
    for part in ["one", "two", "three"] {
        old.shared.step.notify_one();
        read_until(&mut stream, part.as_bytes()).await;
    }
    read_until(&mut stream, b"0\r\n\r\n").await;
    let told = soon("the old session is told", old.carrier.closed()).await;
    assert_eq!(told.as_str(), "replaced");
}

#[tokio::test]
async fn policies_replace_and_refuse() {
    let clusters = format!(
        r#"[{{"id":"dev","token":"{TOKEN}","policy":"replace"}},
            {{"id":"other","token":"{OTHER_TOKEN}","policy":"refuse"}}]"#
    );
    let hub = Hub::with(&clusters, &[]);
    let first = Agent::with(hub.at.public, tagged("first", 1)).await;
    let _second = Agent::with(hub.at.public, tagged("second", 2)).await;
    assert_eq!(
        soon("replaced", first.carrier.closed()).await.as_str(),
        "replaced"
    );
    assert_eq!(
        get(hub.at.internal, "/tunnel/dev/").await.field("x-tag"),
        Some("second")
    );
    let other = |tag, instance| Introduction {
        token: OTHER_TOKEN,
        ..tagged(tag, instance)
    };
    let _kept = Agent::with(hub.at.public, other("kept", 3)).await;
    let refused = Agent::try_connect(hub.at.public, other("refused", 4)).await;
    let why = refused
        .err()
        .expect("a second agent is refused")
        .to_string();
    assert!(why.contains("409") || why.contains("duplicate"), "{why}");
    assert_eq!(
        get(hub.at.internal, "/tunnel/other/").await.field("x-tag"),
        Some("kept")
    );
}

#[tokio::test]
async fn a_revoked_cluster_is_cut_and_its_neighbour_is_not() {
    let hub = Hub::start(&[]);
    let agent = Agent::connect(hub.at.public).await;
    let other = Introduction {
        token: OTHER_TOKEN,
        ..Introduction::default()
    };
    let other = Agent::with(hub.at.public, other).await;
    let mut cut = connect(hub.at.internal).await;
    cut.write_all(request("GET", "/tunnel/dev/steps", "").as_bytes())
        .await
        .unwrap();
    let mut kept = connect(hub.at.internal).await;
    kept.write_all(request("GET", "/tunnel/other/steps", "").as_bytes())
        .await
        .unwrap();
    for stream in [&mut cut, &mut kept] {
        read_until(stream, b"\r\n\r\n").await;
    }
    hub.rewrite_clusters(&format!(r#"[{{"id":"other","token":"{OTHER_TOKEN}"}}]"#));
    let began = Instant::now();
    let mut wire = Vec::new();
    let _ = soon("the live stream is cut", cut.read_to_end(&mut wire)).await;
    // The file is looked at once a second; the cut itself takes at most one more.
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(!wire.ends_with(b"0\r\n\r\n"), "not as if complete");
    assert_eq!(
        soon("told", agent.carrier.closed()).await.as_str(),
        "revoked"
    );
    assert_eq!(get(hub.at.internal, "/tunnel/dev/").await.status, 404);
    let refused = Agent::try_connect(hub.at.public, Introduction::default()).await;
    assert!(refused.is_err(), "its token opens nothing any more");
    other.shared.step.notify_one();
    read_until(&mut kept, b"one").await;
}

#[tokio::test]
async fn a_bad_clusters_file_changes_nothing() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    hub.rewrite_clusters(r#"[{"id":"dev"}]"#);
    let refused = || async {
        let ok = metric(hub.at.internal, "culvert_config_last_reload_successful ").await;
        (ok == Some(0.0)).then_some(())
    };
    until("the file is refused", refused).await;
    assert_eq!(get(hub.at.internal, "/tunnel/dev/").await.status, 200);
    hub.rewrite_clusters(&crate::hub::clusters().replace("other", "another"));
    until("a good file is taken", || async {
        (get(hub.at.internal, "/tunnel/another/").await.status == 503).then_some(())
    })
    .await;
}

#[tokio::test]
async fn both_carriers_carry() {
    let hub = Hub::start(&[]);
    // A box that only knows WebSocket is played by asking for nothing else.
    let ask = "GET /agent HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: culvert.v1\r\nCulvert-Version: 1\r\n\
        Culvert-Instance: 0190163d-8694-739b-aea5-966c26f8ad91\r\n";
    for path in ["/agent", "/connect", "/api/agents/connect"] {
        let mut stream = connect(hub.at.public).await;
        let asked = ask.replace("/agent", path) + &format!("Authorization: Bearer {TOKEN}\r\n\r\n");
        stream.write_all(asked.as_bytes()).await.unwrap();
        let head = crate::client::Answer::parse(&read_until(&mut stream, b"\r\n\r\n").await);
        assert_eq!(head.status, 101, "{path}: {head:?}");
        assert_eq!(
            head.field("sec-websocket-accept"),
            Some("s3pplmbitxaq9kygzzhzrbk+xoo=")
        );
        assert_eq!(head.field("sec-websocket-protocol"), Some("culvert.v1"));
        assert!(head.field("culvert-epoch").unwrap().parse::<u64>().unwrap() > 0);
        // The control stream opens at once, in a BINARY message.
        assert_eq!(read_until(&mut stream, &[0x82]).await, [0x82]);
    }
}

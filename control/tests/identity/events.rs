//! What changes, as it is streamed and polled.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use culvert_control::hub::FOLLOWS_MAX;
use culvert_identity::Tier;
use culvert_proto::id::{Epoch, Generation, InstanceId};
use culvert_proto::update::{Report, SessionFact};
use culvert_rpc::{Hub as _, LinkId};
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::fleet::cookie;
use super::*;

/// A hub whose changes are watched.
async fn watched(shutdown: &Shutdown) -> Site {
    let mut site = Site::open(sign_in(OLD_KEY, None)).await;
    let context = Arc::get_mut(&mut site.context).unwrap();
    context.events = api::Events::new(7, shutdown.clone());
    tokio::spawn(api::watch(site.context.clone()));
    site
}

/// One open stream.
struct Stream {
    body: BodyDataStream,
    text: String,
}

/// One event of it.
#[derive(Debug)]
struct Told {
    name: String,
    id: Option<String>,
    data: Value,
}

impl Stream {
    async fn open(site: &Site, cookie: &str, last: Option<&str>) -> Result<Self, u16> {
        let mut request = Request::builder()
            .uri("/api/v1/events")
            .header("host", "hub.test")
            .header("cookie", cookie)
            .extension(api::Caller::Tcp);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Body::empty()).unwrap();
        let answer = api::router(site.context.clone()).oneshot(request).await;
        let answer = answer.unwrap();
        if answer.status() != 200 {
            return Err(answer.status().as_u16());
        }
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let (body, text) = (answer.into_body().into_data_stream(), String::new());
        Ok(Self { body, text })
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Told> {
        let wait = Duration::from_secs(20);
        timeout(wait, self.read()).await.expect("an event in time")
    }

    async fn read(&mut self) -> Option<Told> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let mut lines = event.lines().filter_map(|line| line.split_once(": "));
                    lines
                        .find(|(field, _)| *field == name)
                        .map(|(_, value)| value.to_owned())
                };
                if let Some(name) = field("event") {
                    let data = field("data").unwrap();
                    return Some(Told {
                        name,
                        id: field("id"),
                        data: serde_json::from_str(&data).unwrap(),
                    });
                }
                continue;
            }
            let piece = self.body.next().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

async fn register(site: &Site, id: &str) {
    let root = api::Caller::Socket { uid: 0 };
    let said = site
        .ask_as(root, "POST /api/clusters", &[], json!({"id": id}))
        .await;
    assert_eq!(said.status, 201, "{}", said.body);
}

fn report(site: &Site, sessions: &[(&str, u32)]) {
    let sessions = sessions.iter().map(|(id, rtt_ms)| SessionFact {
        rtt_ms: *rtt_ms,
        ..SessionFact::new(id.parse().unwrap(), InstanceId([1; 16]), Epoch(1))
    });
    let report = Report {
        dataplane_id: "dp".into(),
        generation: site.context.hub.generation(),
        sessions: sessions.collect(),
        ..Report::default()
    };
    site.context
        .hub
        .report(LinkId(1), Generation(1), Some(report));
}

#[tokio::test]
async fn a_stream_begins_with_everything_and_goes_on_with_what_changes() {
    let site = watched(&Shutdown::default()).await;
    let ann = cookie(&site, "ann", Some(Tier::Read));
    register(&site, "prod").await;
    site.context.hub.opened(LinkId(1), "test");
    let mut stream = Stream::open(&site, &ann, None).await.unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!(first.name, "snapshot");
    assert_eq!(first.data["clusters"][0]["id"], "prod");
    assert_eq!(first.data["agents"], json!([]));
    assert_eq!(first.data["license"]["state"], "unlicensed");

    report(&site, &[("prod", 5)]);
    let (mut agent, mut cluster, mut last) = (None, None, None);
    while agent.is_none() || cluster.is_none() {
        let told = stream.next().await.unwrap();
        last.clone_from(&told.id);
        match &*told.name {
            "agent" => agent = Some(told.data),
            "cluster" => cluster = Some(told.data),
            "audit" => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(agent.unwrap()["state"], "connected");
    assert_eq!(cluster.unwrap()["status"], "connected");
    // What always moves is no news.
    report(&site, &[("prod", 9)]);
    register(&site, "next").await;
    let told = loop {
        let told = stream.next().await.unwrap();
        if told.name != "audit" && told.data["id"] != "prod" {
            break told;
        }
        assert_ne!(told.name, "agent", "{told:?}");
    };
    assert_eq!((&*told.name, &told.data["id"]), ("cluster", &json!("next")));

    // Who comes back hears what was missed, and nothing twice.
    drop(stream);
    report(&site, &[]);
    let mut stream = Stream::open(&site, &ann, told.id.as_deref()).await.unwrap();
    let gone = loop {
        let told = stream.next().await.unwrap();
        assert_ne!(told.name, "snapshot");
        if told.name == "agent_removed" {
            break told;
        }
    };
    assert_eq!(gone.data["cluster"], "prod");
    let mut strange = Stream::open(&site, &ann, Some("8-1")).await.unwrap();
    assert_eq!(strange.next().await.unwrap().name, "snapshot");
}

#[tokio::test]
async fn a_stream_ends_with_its_session_and_with_the_process() {
    let shutdown = Shutdown::default();
    let site = watched(&shutdown).await;
    let ann = cookie(&site, "ann", Some(Tier::Read));
    let bob = cookie(&site, "bob", Some(Tier::Read));
    let mut anns = Stream::open(&site, &ann, None).await.unwrap();
    let mut bobs = Stream::open(&site, &bob, None).await.unwrap();
    assert_eq!(anns.next().await.unwrap().name, "snapshot");
    assert_eq!(bobs.next().await.unwrap().name, "snapshot");
    let headers = [("cookie", &*ann), ("origin", ORIGIN)];
    let line = "POST /api/auth/logout/everywhere";
    assert_eq!(site.ask(line, &headers, Value::Null).await.status, 204);
    loop {
        let told = anns.next().await.unwrap();
        if told.name == "auth_expired" {
            break;
        }
        assert_eq!(told.name, "audit");
    }
    assert!(anns.next().await.is_none());
    shutdown.advance(Phase::Draining);
    loop {
        let told = bobs.next().await.unwrap();
        if told.name == "server_shutdown" {
            break;
        }
        assert_eq!(told.name, "audit");
    }
    assert!(bobs.next().await.is_none());
}

#[tokio::test]
async fn streams_of_a_person_are_few_and_their_places_come_back() {
    let site = watched(&Shutdown::default()).await;
    let ann = cookie(&site, "ann", Some(Tier::Read));
    let bob = cookie(&site, "bob", Some(Tier::Read));
    let mut open = Vec::new();
    for _ in 0..FOLLOWS_MAX {
        open.push(Stream::open(&site, &ann, None).await.unwrap());
    }
    assert_eq!(Stream::open(&site, &ann, None).await.err(), Some(429));
    assert!(Stream::open(&site, &bob, None).await.is_ok());
    open.clear();
    let again = async {
        while Stream::open(&site, &ann, None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), again).await.unwrap();
}

#[tokio::test]
async fn who_cannot_stream_asks_again() {
    let site = watched(&Shutdown::default()).await;
    let ann = cookie(&site, "ann", Some(Tier::Read));
    let poll = async |query: &str| {
        let line = format!("GET /api/events/poll{query}");
        site.ask(&line, &[("cookie", &ann)], Value::Null).await
    };
    let first = poll("").await;
    assert_eq!(first.body["snapshot"]["clusters"], json!([]));
    let next = first.body["next"].as_str().unwrap();
    let quiet = poll(&format!("?after={next}")).await;
    assert_eq!(
        (&quiet.body["snapshot"], &quiet.body["events"]),
        (&Value::Null, &json!([]))
    );
    let waits = format!("?after={next}&wait=8");
    let (later, ()) = tokio::join!(poll(&waits), register(&site, "prod"));
    let events = later.body["events"].as_array().unwrap();
    let names: Vec<_> = events
        .iter()
        .map(|it| it["event"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"cluster") || names.contains(&"audit"),
        "{names:?}"
    );
    assert_ne!(later.body["next"], first.body["next"]);
    for wrong in ["?after=x", "?wait=9", "?since=1"] {
        assert_eq!(poll(wrong).await.status, 422, "{wrong}");
    }
    assert!(!poll("?after=8-1").await.body["snapshot"].is_null());
}

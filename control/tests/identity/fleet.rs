//! A thousand clusters at once, of which some hang, deny and fail, behind a real listener.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use culvert_control::fanout::{Fanout, IN_FLIGHT_MAX};
use culvert_control::outbound::{Outbound, askable};
use culvert_control::registry::file::Listing;
use culvert_identity::{Session, Tier};
use culvert_net::dial::ProxyConfig;
use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots};
use culvert_proto::id::{Epoch, Generation, InstanceId};
use culvert_proto::update::{Report, SessionFact};
use culvert_rpc::{Hub as _, LinkId};

use super::*;

/// What the people's listener of a data plane saw.
#[derive(Default)]
struct Seen {
    asked: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    strange: AtomicUsize,
}

async fn answer(
    State(seen): State<Arc<Seen>>,
    Path((cluster, path)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    seen.asked.fetch_add(1, Ordering::SeqCst);
    let now = seen.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most_at_once.fetch_max(now, Ordering::SeqCst);
    let cookies: Vec<_> = headers.get_all("cookie").iter().collect();
    let own = |text: &str| text.starts_with("__Host-culvert_session=") && !text.contains(';');
    if cookies.len() != 1 || !own(cookies[0].to_str().unwrap()) || headers["host"] != "hub.test" {
        seen.strange.fetch_add(1, Ordering::SeqCst);
    }
    let kind = cluster.split('-').next().unwrap().to_owned();
    let answer = match &*kind {
        "hang" => {
            // The caller goes first; the count falls with the future.
            let _left = Left(seen.clone());
            std::future::pending().await
        }
        "deny" => StatusCode::FORBIDDEN.into_response(),
        "gone" => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        "huge" => vec![b' '; 65 << 10].into_response(),
        _ if path == "version" => r#"{"gitVersion":"v1.34.1"}"#.into_response(),
        _ => axum::Json(json!({"cluster": cluster, "path": path})).into_response(),
    };
    seen.at_once.fetch_sub(1, Ordering::SeqCst);
    answer
}

struct Left(Arc<Seen>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A hub whose clusters are all connected, before a data plane that answers as their names say.
async fn site(names: &[String]) -> (Site, Arc<Seen>) {
    let mut site = Site::open(sign_in(OLD_KEY, None)).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Seen::default());
    let router = axum::Router::new()
        .route("/c/{cluster}/{*path}", axum::routing::get(answer))
        .with_state(seen.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let nobody = ClientTls::load(ClientTlsOptions {
        roots: Roots::System,
        ..ClientTlsOptions::default()
    });
    let outbound = match nobody {
        Ok(tls) => Outbound::new(Arc::new(tls), ProxyConfig::direct()),
        Err(why) => panic!("{why}"),
    };
    let context = Arc::get_mut(&mut site.context).unwrap();
    context.fanout = Some(Arc::new(Fanout::new(
        askable(&url).unwrap(),
        Some("https://hub.test"),
        outbound,
    )));

    let entries = names
        .iter()
        .map(|name| json!({"id": name, "targetKind": "kube", "labels": {"environment": "test"}}));
    let file = site.dir.path().join("clusters.json");
    std::fs::write(&file, json!(entries.collect::<Vec<_>>()).to_string()).unwrap();
    let hub = &site.context.hub;
    hub.apply_file(Listing::read(&file).unwrap()).await.unwrap();
    hub.opened(LinkId(1), "test");
    let sessions = names.iter().filter(|name| !name.starts_with("away"));
    let sessions = sessions.map(|name| {
        let id = name.parse().unwrap();
        SessionFact::new(id, InstanceId([1; 16]), Epoch(1))
    });
    let report = Report {
        dataplane_id: "dp".into(),
        sessions: sessions.collect(),
        ..Report::default()
    };
    hub.report(LinkId(1), Generation(1), Some(report));
    (site, seen)
}

pub(crate) fn cookie(site: &Site, subject: &str, tier: Option<Tier>) -> String {
    let session = Session {
        epoch: 0,
        subject: subject.to_owned(),
        email: String::new(),
        groups: vec!["ops".to_owned()],
        tier,
        provider: "test".to_owned(),
        issued_unix_s: 0,
        sealed_unix_s: 0,
        idle_until_unix_s: 0,
        expires_unix_s: 0,
    };
    let sign_in = site.context.sign_in.as_ref().unwrap();
    let (_, set) = sign_in.begin(session, NOW / 1000).unwrap();
    set.split(';').next().unwrap().to_owned()
}

async fn get(site: &Site, path: &str, cookie: &str) -> Said {
    let cookie = format!("other=1; {cookie}; theirs=2");
    site.ask(&format!("GET {path}"), &[("cookie", &cookie)], Value::Null)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_clusters_fifty_hang_and_cost_the_others_nothing() {
    let names: Vec<String> = (0..1_000)
        .map(|n| match n {
            0..50 => format!("hang-{n}"),
            50..60 => format!("deny-{n}"),
            60..70 => format!("gone-{n}"),
            70..80 => format!("away-{n}"),
            _ => format!("good-{n}"),
        })
        .collect();
    let (site, seen) = site(&names).await;
    let ann = cookie(&site, "ann", Some(Tier::Read));
    let started = Instant::now();
    let said = get(&site, "/api/fleet", &ann).await;
    let took = started.elapsed();
    assert_eq!(said.status, 200, "{}", said.body);
    let rollup = &said.body["rollup"];
    assert_eq!(rollup["totalClusters"], 1_000);
    let by_status = json!({
        "healthy": 920, "degraded": 0, "unreachable": 70, "unknown": 0, "denied": 10
    });
    assert_eq!(rollup["byStatus"], by_status);
    assert_eq!(rollup["byEnvironment"], json!({"test": 1_000}));
    // Those that hang hold 50 of the places for 2 s; the page's own end is at 8 s.
    assert!(took < Duration::from_secs(7), "{took:?}");
    assert!(seen.most_at_once.load(Ordering::SeqCst) <= IN_FLIGHT_MAX);
    assert_eq!(seen.strange.load(Ordering::SeqCst), 0);
    let of = |name: &str| {
        let clusters = said.body["clusters"].as_array().unwrap();
        clusters
            .iter()
            .find(|it| it["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(of("good-500")["version"], "v1.34.1");
    assert_eq!(of("hang-7")["error"], "no answer within 2 s");
    assert_eq!(of("away-71")["error"], "no agent is connected");
    assert_eq!(of("away-71")["agents"], 0);

    // The same person sees the same page for a while, another a page of their own.
    let asked = || seen.asked.load(Ordering::SeqCst);
    let before = asked();
    assert_eq!(get(&site, "/api/v1/fleet", &ann).await.body, said.body);
    assert_eq!(asked(), before);
    let bob = cookie(&site, "bob", Some(Tier::Read));
    get(&site, "/api/fleet", &bob).await;
    assert!(asked() > before);
}

#[tokio::test]
async fn a_path_is_asked_of_each_and_each_answers_for_itself() {
    let names = ["good-1", "good-2", "huge-1", "gone-1"].map(str::to_owned);
    let (site, _) = site(&names).await;
    let ann = cookie(&site, "ann", Some(Tier::Read));
    let said = get(&site, "/api/fleet/api/v1/namespaces?limit=5", &ann).await;
    assert_eq!(said.status, 200, "{}", said.body);
    assert_eq!(said.body["path"], "/api/v1/namespaces?limit=5");
    let clusters = said.body["clusters"].as_array().unwrap();
    let names: Vec<_> = clusters
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["gone-1", "good-1", "good-2", "huge-1"]);
    assert_eq!(clusters[0]["status"], "unreachable");
    assert_eq!(clusters[0]["httpStatus"], 503);
    assert_eq!(clusters[1]["body"]["path"], "api/v1/namespaces");
    assert_eq!(clusters[1]["body"]["cluster"], "good-1");
    assert_eq!(clusters[3]["body"], Value::Null);
    let left_out = clusters[3]["error"].as_str().unwrap();
    assert!(left_out.contains("64 KiB"), "{left_out}");
}

#[tokio::test]
async fn nobody_asks_clusters_as_somebody_else() {
    let (site, seen) = site(&["good-1".to_owned()]).await;
    let without_tier = cookie(&site, "eve", None);
    assert_eq!(get(&site, "/api/fleet", &without_tier).await.status, 403);
    assert_eq!(get(&site, "/api/fleet", "").await.status, 401);
    // The hub's own administrator is nobody in a cluster.
    let root = api::Caller::Socket { uid: 0 };
    let said = site.ask_as(root, "GET /api/fleet", &[], Value::Null).await;
    assert_eq!(said.status, 200);
    assert_eq!(said.body["clusters"][0]["status"], "unknown");
    assert_eq!(seen.asked.load(Ordering::SeqCst), 0);
}

//! The licence through a hub's life: boot, heartbeats to a real HTTPS server,
//! renewal, and the ladder, none of which blocks anything.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use culvert_control::api::{self, Context};
use culvert_control::audit::Filter;
use culvert_control::hub::Hub;
use culvert_control::license::{LicenseConfig, LicenseRecord, Licensing, Server};
use culvert_control::metrics::Metrics;
use culvert_control::outbound::Outbound;
use culvert_control::store::{Dsn, Store};
use culvert_licence::{KeySet, Terms, issue};
use culvert_net::crypto::{SigningKey, read_private};
use culvert_net::dial::ProxyConfig;
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{
    ClientTls, ClientTlsOptions, MinVersion, Roots, ServerTls, ServerTlsOptions,
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

const NOW: u64 = 1_763_683_200_000;
const DAY: u64 = 86_400_000;
const DEADLINE: Duration = Duration::from_secs(20);

/// The vendor: a key that signs licences.
struct Vendor {
    dir: tempfile::TempDir,
    public: [u8; 32],
}

impl Vendor {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::load_or_generate(&dir.path().join("key")).unwrap();
        let public = key.verifying_key().to_bytes();
        Self { dir, public }
    }

    fn keys(&self) -> KeySet {
        let hex: String = self
            .public
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        KeySet::parse(&hex).unwrap()
    }

    fn license(&self, id: &str, days: u64) -> String {
        let terms = Terms {
            id,
            org: "Acme",
            tier: Some("team"),
            max_clusters: Some(25),
            issued_unix_s: NOW / 1000,
            expires_unix_s: (NOW + days * DAY) / 1000,
            kid: None,
        };
        let pkcs8 = read_private(&self.dir.path().join("key")).unwrap();
        issue(&terms, &pkcs8, &self.public).unwrap()
    }
}

/// A license server: HTTPS with a certificate of its own CA, answers as told.
struct LicenseServer {
    dir: tempfile::TempDir,
    url: String,
    heard: mpsc::Receiver<(String, Value)>,
    answer: Arc<parking_lot::Mutex<(u16, String)>>,
}

impl LicenseServer {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::new("license").unwrap();
        let cert = ca.server(&["127.0.0.1"]).unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        file("ca.pem", ca.pem());
        let options = ServerTlsOptions {
            cert: file("cert.pem", &cert.cert_pem),
            key: file("key.pem", &cert.key_pem),
            client_auth: None,
            alpn: Vec::new(),
            min_version: MinVersion::Tls13,
        };
        let tls = Arc::new(ServerTls::load(options).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "https://{}/v1/license/heartbeat",
            listener.local_addr().unwrap()
        );
        let answer = Arc::new(parking_lot::Mutex::new((200, "{}".to_owned())));
        let (told, heard) = mpsc::channel(64);
        let answers = answer.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, told, answers) = (tls.clone(), told.clone(), answers.clone());
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (told, (status, body)) = (told.clone(), answers.lock().clone());
                        async move {
                            let line = format!("{} {}", request.method(), request.uri());
                            let sent = request.into_body().collect().await?.to_bytes();
                            let sent = serde_json::from_slice(&sent).unwrap();
                            told.send((line, sent)).await.unwrap();
                            let response = Response::builder().status(status);
                            let body = Full::new(Bytes::from(body));
                            Ok::<_, hyper::Error>(response.body(body).unwrap())
                        }
                    });
                    let io = TokioIo::new(stream);
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .await;
                });
            }
        });
        Self {
            dir,
            url,
            heard,
            answer,
        }
    }

    fn answers(&self, status: u16, body: &Value) {
        *self.answer.lock() = (status, body.to_string());
    }

    fn server(&self) -> Server {
        let options = ClientTlsOptions {
            roots: Roots::File(self.dir.path().join("ca.pem")),
            ..ClientTlsOptions::default()
        };
        let tls = Arc::new(ClientTls::load(options).unwrap());
        Server {
            url: self.url.clone(),
            outbound: Outbound::new(tls, ProxyConfig::direct()),
        }
    }

    async fn hears(&mut self) -> (String, Value) {
        timeout(DEADLINE, self.heard.recv()).await.unwrap().unwrap()
    }
}

struct Site {
    hub: Arc<Hub>,
    licensing: Arc<Licensing>,
    metrics: Arc<Metrics>,
    clock: Arc<AtomicU64>,
}

fn config(keys: KeySet) -> LicenseConfig {
    LicenseConfig {
        text: None,
        files: Vec::new(),
        keys,
        mode: "self-hosted".to_owned(),
        org_name: "Acme".to_owned(),
        heartbeat: None,
    }
}

impl Site {
    async fn start(dir: &Path, at_ms: u64, config: LicenseConfig) -> Self {
        let clock = Arc::new(AtomicU64::new(at_ms));
        let (store, loaded) = Store::open(&Dsn::at(dir), at_ms).await.unwrap();
        let metrics = Arc::new(Metrics::new());
        let record: LicenseRecord = loaded.license.clone();
        let licensing = Licensing::start(config, record, metrics.clone(), at_ms);
        let key = SigningKey::load_or_generate(&dir.join("signing.key")).unwrap();
        let told = clock.clone();
        let now = Box::new(move || told.load(Ordering::SeqCst));
        let hub = Hub::new(store, loaded, key, metrics.clone(), now);
        Self {
            hub: Arc::new(hub),
            licensing: Arc::new(licensing),
            metrics,
            clock,
        }
    }

    fn router(&self) -> axum::Router {
        let (hub, metrics) = (self.hub.clone(), self.metrics.clone());
        let context = Context::new(hub, metrics, self.licensing.clone());
        api::router(Arc::new(context))
    }

    /// Asks the API as the Unix socket does.
    async fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        use tower::ServiceExt as _;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .extension(api::Caller::Socket { uid: 0 })
            .body(axum::body::Body::from(body.to_string()))
            .unwrap();
        let response = self.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn run(&self, every: Duration) -> tokio::task::JoinHandle<()> {
        let (hub, licensing) = (self.hub.clone(), self.licensing.clone());
        tokio::spawn(async move { licensing.run(&hub, move |_| every).await })
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let all = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(DEADLINE, all).await.is_ok(), "{what}");
}

#[tokio::test]
async fn a_heartbeat_tells_seven_fields_and_its_answer_is_used_at_the_next_boot() {
    let dir = tempfile::tempdir().unwrap();
    let vendor = Vendor::new();
    let mut server = LicenseServer::start().await;
    let renewed = vendor.license("renewed", 400);
    server.answers(
        200,
        &json!({"license": renewed, "hub_version": "9.9.9", "message": "Hello\u{7}<b>"}),
    );
    let with = |text: Option<String>, server: &LicenseServer| LicenseConfig {
        text,
        heartbeat: Some(server.server()),
        ..config(vendor.keys())
    };
    let first = vendor.license("first", 30);
    let site = Site::start(dir.path(), NOW, with(Some(first.clone()), &server)).await;
    let id = json!({"id": "prod"});
    assert_eq!(site.ask("POST", "/api/v1/clusters", &id).await.0, 201);
    let running = site.run(Duration::from_millis(20));
    let (line, sent) = server.hears().await;
    assert_eq!(line, "POST /v1/license/heartbeat");
    let printed = site
        .ask("GET", "/api/v1/license/heartbeat", &Value::Null)
        .await
        .1;
    let wanted = json!({
        "license_id": "first", "hub_version": env!("CARGO_PKG_VERSION"),
        "hub_mode": "self-hosted", "org_name": "Acme", "cluster_count": 1,
        "audit_event_count_24h": 1, "started_at": "2025-11-21T00:00:00Z",
    });
    assert_eq!((&sent, sent.as_object().unwrap().len()), (&wanted, 7));
    server.hears().await;
    until("the renewal is audited", async || {
        let filter = Filter {
            verb: Some("license_change".to_owned()),
            limit: 10,
            ..Filter::default()
        };
        site.hub.audit(&filter).await.unwrap().1 == 1
    })
    .await;
    assert_eq!(printed["license_id"], "first");
    let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
    assert_eq!(
        shown["license"]["id"], "first",
        "the renewed one waits for a boot"
    );
    assert_eq!(shown["heartbeat"]["latest_version"], "9.9.9");
    assert_eq!(shown["heartbeat"]["message"], "Hello<b>");
    running.abort();
    let _ = running.await;
    site.hub.close().await;
    drop(site);

    let site = Site::start(dir.path(), NOW + DAY, with(Some(first), &server)).await;
    let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
    assert_eq!(shown["license"]["id"], "renewed");
    assert_eq!(shown["license"]["source"], "stored");
    assert_eq!(
        (&shown["state"], &shown["banner"]),
        (&json!("valid"), &Value::Null)
    );
    let text = site.metrics.registry.render();
    assert!(
        text.contains("culvert_licence_standing{standing=\"valid\"} 1"),
        "{text}"
    );
    let expiry = (NOW + 400 * DAY) / 1000;
    assert!(
        text.contains(&format!(
            "culvert_licence_expiry_timestamp_seconds {expiry}"
        )),
        "{text}"
    );
}

#[tokio::test]
async fn answers_that_cannot_be_believed_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (vendor, stranger) = (Vendor::new(), Vendor::new());
    let mut server = LicenseServer::start().await;
    let config = LicenseConfig {
        heartbeat: Some(server.server()),
        ..config(vendor.keys())
    };
    server.answers(200, &json!({"license": stranger.license("forged", 4_000)}));
    let site = Site::start(dir.path(), NOW, config.clone()).await;
    let running = site.run(Duration::from_millis(10));
    let (_, sent) = server.hears().await;
    assert_eq!(sent["hub_mode"], "self-hosted-unlicensed");
    assert_eq!(sent["license_id"], "");
    server.answers(200, &json!(["not", "an", "answer"]));
    server.hears().await;
    until("the error is shown", async || {
        let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
        let seen = shown["heartbeat"]["last_error"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        seen.contains("no JSON of the known shape")
    })
    .await;
    server.answers(302, &json!({}));
    server.hears().await;
    running.abort();
    let _ = running.await;
    site.hub.close().await;
    drop(site);
    let site = Site::start(dir.path(), NOW, config).await;
    let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
    assert_eq!(
        (&shown["state"], &shown["license"]),
        (&json!("unlicensed"), &Value::Null)
    );
}

#[tokio::test]
async fn a_server_whose_certificate_is_not_trusted_hears_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = LicenseServer::start().await;
    let other = DevCa::new("other").unwrap();
    std::fs::write(server.dir.path().join("ca.pem"), other.pem()).unwrap();
    let config = LicenseConfig {
        heartbeat: Some(server.server()),
        ..config(Vendor::new().keys())
    };
    let site = Site::start(dir.path(), NOW, config).await;
    let running = site.run(Duration::from_millis(10));
    until("the failure is shown", async || {
        let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
        shown["heartbeat"]["last_error"].as_str().is_some()
    })
    .await;
    assert!(server.heard.try_recv().is_err());
    running.abort();
}

#[tokio::test]
async fn the_ladder_is_served_and_blocks_nothing_and_survives_a_clock_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let vendor = Vendor::new();
    // Nobody listens there.
    let server = LicenseServer::start().await;
    let silent = Server {
        url: "https://127.0.0.1:1/v1/license/heartbeat".to_owned(),
        ..server.server()
    };
    let config = LicenseConfig {
        text: Some(vendor.license("first", 100)),
        heartbeat: Some(silent),
        ..config(vendor.keys())
    };
    let site = Site::start(dir.path(), NOW, config.clone()).await;
    let running = site.run(Duration::from_millis(5));
    until("the first failure is on record", async || {
        let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
        shown["heartbeat"]["last_error"].as_str().is_some()
    })
    .await;
    let steps = [
        (0, "silent", None, false),
        (7 * DAY - 1, "silent", None, false),
        (7 * DAY, "yellow", Some("yellow"), false),
        (14 * DAY - 1, "yellow", Some("yellow"), false),
        (14 * DAY, "red", Some("red"), true),
        (30 * DAY - 1, "red", Some("red"), true),
        (30 * DAY, "long_red", Some("red"), true),
        (99 * DAY, "long_red", Some("red"), true),
    ];
    for (number, (after, rung, level, warned)) in steps.into_iter().enumerate() {
        site.clock.store(NOW + after, Ordering::SeqCst);
        let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
        assert_eq!(shown["heartbeat"]["rung"], rung, "after {after} ms");
        assert_eq!(shown["banner"]["level"].as_str(), level, "after {after} ms");
        assert_eq!(shown["login_warning"], warned);
        if level.is_some() {
            assert_eq!(shown["banner"]["text"], "Cannot reach license server");
        }
        let cluster = json!({"id": format!("c{number}")});
        assert_eq!(site.ask("POST", "/api/v1/clusters", &cluster).await.0, 201);
    }
    let highest = NOW + 99 * DAY;
    until("the highest time is on record", async || {
        let (_, loaded) = reopen_read_only(dir.path()).await;
        loaded == highest
    })
    .await;
    running.abort();
    let _ = running.await;
    site.hub.close().await;
    drop(site);
    // A year back, the days stay; disabled, they are held and shown to nobody.
    let site = Site::start(dir.path(), NOW - 365 * DAY, config.clone()).await;
    let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
    assert_eq!(shown["heartbeat"]["days_without_success"], 99);
    site.hub.close().await;
    drop(site);
    let disabled = LicenseConfig {
        heartbeat: None,
        ..config
    };
    let site = Site::start(dir.path(), NOW + 99 * DAY, disabled).await;
    let running = site.run(Duration::from_millis(5));
    let shown = site.ask("GET", "/api/license", &Value::Null).await.1;
    assert_eq!(shown["heartbeat"]["enabled"], false);
    assert_eq!(
        (&shown["banner"], &shown["login_warning"]),
        (&Value::Null, &json!(false))
    );
    running.abort();
}

/// The time on record, read beside the hub that writes it.
async fn reopen_read_only(dir: &Path) -> (PathBuf, u64) {
    use sqlx::Connection as _;
    let path = dir.join("control.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&path)
        .read_only(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let seen: i64 = sqlx::query_scalar("SELECT seen_unix_ms FROM license")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    (path, u64::try_from(seen).unwrap())
}

#[tokio::test]
async fn no_standing_blocks_a_write() {
    let vendor = Vendor::new();
    let file = vendor.dir.path().join("license");
    std::fs::write(&file, format!("{}\n", vendor.license("of-file", 5))).unwrap();
    for (text, files, keys, state, level) in [
        (
            Some(vendor.license("env", 9)),
            vec![],
            vendor.keys(),
            "valid",
            None,
        ),
        (
            None,
            vec![vendor.dir.path().join("none"), file],
            vendor.keys(),
            "valid",
            None,
        ),
        (
            Some(vendor.license("old", 0)),
            vec![],
            vendor.keys(),
            "expired",
            Some("yellow"),
        ),
        (
            Some(Vendor::new().license("x", 9)),
            vec![],
            vendor.keys(),
            "invalid",
            Some("yellow"),
        ),
        (None, vec![], vendor.keys(), "unlicensed", Some("yellow")),
        (
            Some(vendor.license("env", 9)),
            vec![],
            KeySet::parse(&"0".repeat(64)).unwrap(),
            "invalid",
            Some("yellow"),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let config = LicenseConfig {
            text,
            files,
            ..config(keys)
        };
        let site = Site::start(dir.path(), NOW, config).await;
        let shown = site.ask("GET", "/api/v1/license", &Value::Null).await.1;
        assert_eq!(shown["state"], state);
        assert_eq!(shown["banner"]["level"].as_str(), level, "{state}");
        let body = json!({"id": "prod"});
        for (method, path, wanted) in [
            ("POST", "/api/v1/clusters", 201),
            ("PATCH", "/api/v1/clusters/prod", 200),
            ("POST", "/api/v1/clusters/prod/tokens", 201),
            ("POST", "/api/v1/clusters/prod/rotate-token", 200),
            ("POST", "/api/v1/clusters/prod/revoke", 200),
            ("DELETE", "/api/v1/clusters/prod", 204),
        ] {
            let sent = if path.ends_with("clusters") {
                body.clone()
            } else {
                json!({})
            };
            let (status, answer) = site.ask(method, path, &sent).await;
            assert_eq!(status, wanted, "{state}: {method} {path}: {answer}");
        }
    }
}

/// The log of the program from its start until it serves.
async fn log_of(env: &[(&str, &str)]) -> Vec<Value> {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_culvert-control"));
    command
        .env_clear()
        .envs(env.iter().copied())
        .arg("--state-dir")
        .arg(dir.path())
        .args(["--admin-addr", "127.0.0.1:0", "--log-format", "json"])
        .args([
            "--license-file",
            "/nowhere/license",
            "--license-heartbeat=false",
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut log: Vec<Value> = Vec::new();
    loop {
        let line = timeout(DEADLINE, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["msg"] == "culvert-control serves" {
            break;
        }
        log.push(line);
    }
    child.kill().await.unwrap();
    log
}

#[tokio::test]
async fn the_program_says_exactly_the_lines_of_its_state_and_serves() {
    let placeholder = "radar-hub: embedded license public key is the all-zero placeholder; \
                       rebuild with the real key before shipping to a customer";
    let of_license = |log: &[Value]| {
        let texts = log.iter().filter_map(|line| line["msg"].as_str());
        let own = texts.filter(|text| text.contains("radar-hub:"));
        own.map(str::to_owned).collect::<Vec<_>>()
    };
    let log = log_of(&[]).await;
    let none = "radar-hub: self-hosted mode but no RADAR_HUB_LICENSE_KEY (or /etc/radar-hub/license) \
                - running in unlicensed mode (warn-only banner)";
    let known = KeySet::embedded().has_placeholder();
    let first = known.then_some(placeholder);
    let wanted = |last: Option<&'static str>| first.into_iter().chain(last).collect::<Vec<_>>();
    assert_eq!(of_license(&log), wanted(Some(none)));
    let log = log_of(&[("RADAR_HUB_MODE", "managed")]).await;
    assert_eq!(of_license(&log), wanted(None));
    let forged = Vendor::new().license("x", 9);
    let log = log_of(&[("RADAR_HUB_LICENSE_KEY", &forged)]).await;
    let failed = "radar-hub: license verification failed";
    assert_eq!(of_license(&log), wanted(Some(failed)));
    let line = log.iter().find(|line| line["msg"] == failed).unwrap();
    assert_eq!(
        (&line["source"], &line["level"]),
        (&json!("setting"), &json!("warn"))
    );
    let text = serde_json::to_string(&log).unwrap();
    assert!(
        !text.contains(&forged[..40]),
        "the licence itself is never logged"
    );
}

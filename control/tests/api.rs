//! The admin API over a real Unix socket and real TCP.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::sync::Arc;

use culvert_control::api::{self, Context};
use culvert_control::hub::Hub;
use culvert_control::license::{LicenseConfig, LicenseRecord, Licensing};
use culvert_control::metrics::Metrics;
use culvert_control::store::{Dsn, Store};
use culvert_control::token;
use culvert_licence::KeySet;
use culvert_net::crypto::SigningKey;
use culvert_net::listen::{ListenOptions, Listener};
use culvert_rpc::{PeerCheck, bind_unix};
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};

const NOW: u64 = 1_763_683_200_000;

struct Api {
    dir: tempfile::TempDir,
    tcp: std::net::SocketAddr,
    shutdown: Shutdown,
}

impl Api {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dsn = Dsn::at(dir.path());
        let (store, loaded) = Store::open(&dsn, NOW).await.unwrap();
        let metrics = Arc::new(Metrics::new());
        let key = SigningKey::generate().unwrap();
        let hub = Arc::new(Hub::new(
            store,
            loaded,
            key,
            metrics.clone(),
            Box::new(|| NOW),
        ));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), ListenOptions::default());
        let listener = listener.unwrap().start().unwrap();
        let tcp = listener.local_addr().unwrap();
        let unlicensed = LicenseConfig {
            text: None,
            files: Vec::new(),
            keys: KeySet::embedded(),
            mode: "self-hosted".to_owned(),
            org_name: "Default".to_owned(),
            heartbeat: None,
        };
        let record = LicenseRecord::default();
        let licensing = Licensing::start(unlicensed, record, metrics.clone(), NOW);
        let context = Context {
            admin: Some(token::admin_token(&dir.path().join("admin-token")).unwrap()),
            hosts: vec![tcp.to_string()],
            public_url: Some("https://hub.test:8443".to_owned()),
            ..Context::new(hub, metrics, Arc::new(licensing))
        };
        let (router, shutdown) = (api::router(Arc::new(context)), Shutdown::default());
        let socket = bind_unix(&dir.path().join("api.sock"), 0o600).unwrap();
        let check = PeerCheck::default();
        tokio::spawn(api::serve_unix(
            socket,
            check,
            router.clone(),
            shutdown.clone(),
        ));
        tokio::spawn(api::serve_tcp(listener, router, shutdown.clone()));
        Self { dir, tcp, shutdown }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let stream = tokio::net::UnixStream::connect(self.socket())
            .await
            .unwrap();
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "x");
        let request = request.header("content-type", "application/json");
        parts(send(stream, request.body(Full::from(text)).unwrap()).await).await
    }

    async fn post_over_tcp(&self, path: &str, headers: &[(&str, &str)]) -> u16 {
        let stream = tokio::net::TcpStream::connect(self.tcp).await.unwrap();
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::default()).unwrap();
        send(stream, request).await.status().as_u16()
    }

    async fn over_tcp(&self, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let stream = tokio::net::TcpStream::connect(self.tcp).await.unwrap();
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        parts(send(stream, request.body(Full::default()).unwrap()).await).await
    }
}

async fn send(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Response<hyper::body::Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

async fn parts(response: Response<hyper::body::Incoming>) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let value = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    (status, value)
}

#[tokio::test]
async fn a_cluster_lives_through_its_verbs() {
    let api = Api::start().await;
    let spec = json!({"id": "prod", "labels": {"zone": "a"}, "target_kind": "kube"});
    let (status, made) = api.ask("POST", "/api/v1/clusters", spec.clone()).await;
    assert_eq!(
        (status, &made["target_kind"], &made["tokens_live"]),
        (201, &json!("kube"), &json!(0))
    );
    let (status, again) = api.ask("POST", "/api/clusters", spec).await;
    assert_eq!(
        (status, &again["code"], &again["side"]),
        (409, &json!("cluster_exists"), &json!("client"))
    );
    let patch = json!({"enabled": false, "streams_max": 7});
    let (status, changed) = api.ask("PATCH", "/api/v1/clusters/prod", patch).await;
    assert_eq!((status, &changed["status"]), (200, &json!("disabled")));
    assert_eq!(
        (&changed["streams_max"], &changed["labels"]["zone"]),
        (&json!(7), &json!("a"))
    );
    let (_, listed) = api.ask("GET", "/api/clusters", Value::Null).await;
    assert_eq!(
        (&listed["items"][0], &listed["next"]),
        (&changed, &Value::Null)
    );
    assert_eq!(
        api.ask("DELETE", "/api/v1/clusters/prod", Value::Null)
            .await
            .0,
        204
    );
    let (status, gone) = api.ask("GET", "/api/v1/clusters/prod", Value::Null).await;
    assert_eq!((status, &gone["code"]), (404, &json!("unknown_cluster")));
}

#[tokio::test]
async fn tokens_are_shown_once_and_rotate_with_overlap() {
    let api = Api::start().await;
    api.ask("POST", "/api/v1/clusters", json!({"id": "prod"}))
        .await;
    let tokens = "/api/v1/clusters/prod/tokens";
    let rotate = "/api/v1/clusters/prod/rotate-token";
    let (status, first) = api
        .ask("POST", tokens, json!({"expires_in_seconds": 60}))
        .await;
    assert_eq!(
        (status, &first["expires_at"]),
        (201, &json!("2025-11-21T00:01:00Z"))
    );
    assert!(first["token"].as_str().unwrap().starts_with("rhc_"));
    let (status, second) = api.ask("POST", rotate, Value::Null).await;
    // The older token never lives longer than it would have.
    assert_eq!(
        (status, &second["old_valid_until"]),
        (200, &json!("2025-11-21T00:01:00Z"))
    );
    let (_, third) = api
        .ask("POST", rotate, json!({"overlap_seconds": 3600}))
        .await;
    assert_eq!(third["old_valid_until"], "2025-11-21T01:00:00Z");
    let (_, listed) = api.ask("GET", tokens, Value::Null).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 3);
    assert!(
        !listed.to_string().contains("rhc_"),
        "a token is shown twice"
    );
    let (_, now) = api
        .ask("POST", &format!("{rotate}?now=true"), json!({}))
        .await;
    assert_eq!(now["old_valid_until"], Value::Null);
    let (_, listed) = api.ask("GET", tokens, Value::Null).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["token_id"], now["token_id"]);
    let one = format!("{tokens}/{}", now["token_id"].as_str().unwrap());
    assert_eq!(api.ask("DELETE", &one, Value::Null).await.0, 204);
    assert_eq!(
        api.ask("DELETE", &one, Value::Null).await.1["code"],
        "unknown_token"
    );
    let (status, revoked) = api
        .ask("POST", "/api/clusters/prod/revoke", Value::Null)
        .await;
    assert_eq!((status, &revoked["epoch_floor"]), (200, &json!(NOW)));
    let deliver = format!("{rotate}?deliver=true");
    let (status, nobody) = api.ask("POST", &deliver, Value::Null).await;
    assert_eq!(
        (status, &nobody["code"]),
        (409, &json!("nobody_to_deliver_to"))
    );
}

#[tokio::test]
async fn routes_are_made_listed_and_removed_and_an_address_is_used_once() {
    let api = Api::start().await;
    for id in ["a", "b"] {
        api.ask("POST", "/api/v1/clusters", json!({"id": id})).await;
    }
    let (a, b) = ("/api/v1/clusters/a/routes", "/api/clusters/b/routes");
    let pg = json!({"service": "pg", "tcp": "127.0.0.1:15432"});
    let (status, made) = api.ask("POST", a, pg.clone()).await;
    assert_eq!(
        (status, &made["tcp"], &made["sealed"], &made["in_file"]),
        (201, &json!("127.0.0.1:15432"), &Value::Null, &json!(false))
    );
    let sealed = json!({"service": "web", "sealed": "Web.Example.com"});
    let (status, web) = api.ask("POST", b, sealed).await;
    assert_eq!(
        (status, &web["sealed"], &web["addr"]),
        (201, &json!("web.example.com"), &Value::Null)
    );
    let id = made["route_id"].as_str().unwrap();
    for (to, wanted) in [
        (a, pg.clone()),
        (b, pg),
        (b, json!({"service": "x", "tcp": "0.0.0.0:15432"})),
        (
            b,
            json!({"service": "x", "sealed": "x.test", "addr": "127.0.0.1:15432"}),
        ),
    ] {
        let (status, said) = api.ask("POST", to, wanted).await;
        assert_eq!(
            (status, &said["code"]),
            (409, &json!("route_taken")),
            "{said}"
        );
        let seen = said["seen"].as_str().unwrap();
        assert!(seen.contains(id) && seen.contains("cluster a"), "{seen}");
    }
    let again = json!({"service": "other", "sealed": "web.example.com"});
    assert_eq!(api.ask("POST", a, again).await.0, 409);
    let (_, all) = api.ask("GET", "/api/v1/routes?limit=1", Value::Null).await;
    assert_eq!(all["items"], json!([made]));
    let next = format!("/api/v1/routes?cursor={}", all["next"].as_str().unwrap());
    let (_, rest) = api.ask("GET", &next, Value::Null).await;
    assert_eq!(
        (&rest["items"], &rest["next"]),
        (&json!([web]), &Value::Null)
    );
    assert_eq!(
        api.ask("GET", a, Value::Null).await.1["items"],
        json!([made])
    );
    let one = format!("{a}/{id}");
    assert_eq!(api.ask("DELETE", &one, Value::Null).await.0, 204);
    let (status, said) = api.ask("DELETE", &one, Value::Null).await;
    assert_eq!((status, &said["code"]), (404, &json!("unknown_route")));
    assert_eq!(
        api.ask("DELETE", "/api/clusters/b", Value::Null).await.0,
        204
    );
    let (_, none) = api.ask("GET", "/api/v1/routes", Value::Null).await;
    assert_eq!(none["items"], json!([]), "a cluster takes its routes along");
    let (_, page) = api
        .ask("GET", "/api/v1/audit?verb=route_create", Value::Null)
        .await;
    assert_eq!(
        (&page["total"], told(&page)[0].clone()),
        (
            &json!(7),
            ["route_create", "success", "a", id, ""].map(str::to_owned)
        )
    );
    assert_eq!(told(&page)[2][4], "route_taken");
    let (_, page) = api
        .ask("GET", "/api/v1/audit?verb=route_delete", Value::Null)
        .await;
    let wanted = [
        ["route_delete", "success", "a", id, ""],
        ["route_delete", "denied", "a", id, "unknown_route"],
    ];
    assert_eq!(told(&page), wanted.map(|row| row.map(str::to_owned)));
}

#[tokio::test]
async fn a_persons_token_is_shown_once_and_reaches_what_was_granted() {
    let api = Api::start().await;
    for id in ["a", "b"] {
        api.ask("POST", "/api/v1/clusters", json!({"id": id})).await;
    }
    let path = "/api/v1/personal-tokens";
    let wanted = json!({"principal": "ana@example.com", "grants": ["b/*", "a/pg", "a/web"]});
    let (status, minted) = api.ask("POST", path, wanted).await;
    assert_eq!(
        (status, &minted["expires_at"], &minted["grants"]),
        (
            201,
            &json!("2026-02-19T00:00:00Z"),
            &json!(["a/pg", "a/web", "b/*"])
        )
    );
    let text = minted["token"].as_str().unwrap();
    assert!(text.starts_with("cvp_"));
    let (_, listed) = api.ask("GET", "/api/personal-tokens", Value::Null).await;
    let [one] = &listed["items"].as_array().unwrap()[..] else {
        panic!("one is listed: {listed}")
    };
    assert_eq!(
        (&one["token_id"], &one["principal"], &one["grants"]),
        (
            &minted["token_id"],
            &json!("ana@example.com"),
            &minted["grants"]
        )
    );
    for file in ["control.db", "control.db-wal"] {
        let bytes = std::fs::read(api.dir.path().join(file)).unwrap();
        let is_there = bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes());
        assert!(!is_there, "the text is in {file}");
    }
    assert!(
        !listed.to_string().contains("cvp_"),
        "a token is shown twice"
    );
    let unknown = json!({"principal": "bo", "grants": ["a/pg", "none/pg"]});
    let (status, said) = api.ask("POST", path, unknown).await;
    assert_eq!((status, &said["code"]), (404, &json!("unknown_cluster")));
    for (body, field) in [
        (json!({"principal": "", "grants": ["a/pg"]}), "principal"),
        (json!({"principal": "x", "grants": []}), "grants"),
        (
            json!({"principal": "x", "grants": ["a/pg", "*/pg"]}),
            "grants.1",
        ),
        (
            json!({"principal": "x", "grants": ["a/pg"], "expires_in_seconds": 7_776_001}),
            "expires_in_seconds",
        ),
        (
            json!({"principal": "x", "grants": ["a/pg"], "expires_in_seconds": 0}),
            "expires_in_seconds",
        ),
    ] {
        let (status, said) = api.ask("POST", path, body).await;
        assert_eq!(
            (status, &said["fields"][0]["field"]),
            (422, &json!(field)),
            "{said}"
        );
    }
    // A cluster takes its share of the grants along.
    api.ask("DELETE", "/api/clusters/b", Value::Null).await;
    let (_, listed) = api.ask("GET", path, Value::Null).await;
    assert_eq!(listed["items"][0]["grants"], json!(["a/pg", "a/web"]));
    let id = minted["token_id"].as_str().unwrap();
    let one = format!("{path}/{id}");
    assert_eq!(api.ask("DELETE", &one, Value::Null).await.0, 204);
    let (status, said) = api.ask("DELETE", &one, Value::Null).await;
    assert_eq!(
        (status, &said["code"]),
        (404, &json!("unknown_personal_token"))
    );
    let (_, page) = api.ask("GET", "/api/v1/audit?name=", Value::Null).await;
    assert!(
        told(&page)
            .iter()
            .all(|row| row[0] == "personal_token_mint")
    );
    let (_, page) = api
        .ask("GET", &format!("/api/v1/audit?name={id}"), Value::Null)
        .await;
    let wanted = [
        ["personal_token_mint", "success", "a", id, ""],
        ["personal_token_mint", "success", "b", id, ""],
        ["personal_token_revoke", "success", "a", id, ""],
        [
            "personal_token_revoke",
            "denied",
            "",
            id,
            "unknown_personal_token",
        ],
    ];
    assert_eq!(told(&page), wanted.map(|row| row.map(str::to_owned)));
    assert!(!page.to_string().contains("cvp_"), "a token is in the log");
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_field() {
    let api = Api::start().await;
    api.ask("POST", "/api/v1/clusters", json!({"id": "prod"}))
        .await;
    let all = [
        (
            "POST",
            "/api/v1/clusters",
            json!({"id": "a", "bogus": 1}),
            422,
            "bogus",
        ),
        ("POST", "/api/v1/clusters", json!({"name": "a"}), 422, "id"),
        (
            "POST",
            "/api/v1/clusters",
            json!({"id": "UPPER"}),
            422,
            "id",
        ),
        (
            "POST",
            "/api/v1/clusters",
            json!({"id": "a", "streams_max": 0}),
            422,
            "streams_max",
        ),
        (
            "POST",
            "/api/v1/clusters",
            json!({"id": "a", "target_addr": "x"}),
            422,
            "target_addr",
        ),
        ("GET", "/api/v1/clusters/..%2Fetc", Value::Null, 422, "id"),
        ("GET", "/api/v1/clusters?limit=0", Value::Null, 422, "limit"),
        ("GET", "/api/v1/clusters?page=2", Value::Null, 422, "page"),
        (
            "POST",
            "/api/v1/clusters/prod/rotate-token?now=true&overlap_seconds=1",
            Value::Null,
            422,
            "overlap_seconds",
        ),
        (
            "POST",
            "/api/v1/clusters/prod/rotate-token",
            json!({"overlap_seconds": u64::MAX}),
            422,
            "overlap_seconds",
        ),
        (
            "POST",
            "/api/v1/clusters/prod/routes",
            json!({"service": "pg", "tcp": "localhost:1"}),
            422,
            "tcp",
        ),
        (
            "POST",
            "/api/v1/clusters/prod/routes",
            json!({"service": "pg", "sealed": "*.com"}),
            422,
            "sealed",
        ),
        (
            "POST",
            "/api/v1/clusters/prod/routes",
            json!({"service": "PG", "tcp": "127.0.0.1:1"}),
            422,
            "service",
        ),
        (
            "POST",
            "/api/v1/clusters/prod/tokens",
            json!({"expires_in_seconds": 0}),
            422,
            "expires_in_seconds",
        ),
    ];
    for (method, path, body, wanted, field) in all {
        let (status, said) = api.ask(method, path, body).await;
        assert_eq!(
            (status, &said["fields"][0]["field"]),
            (wanted, &json!(field)),
            "{path}: {said}"
        );
    }
    let (status, said) = api
        .ask("POST", "/api/v1/clusters", json!("x".repeat(70_000)))
        .await;
    assert_eq!((status, &said["code"]), (413, &json!("body_too_large")));
    let (status, said) = api.ask("GET", "/api/v1/nothing", Value::Null).await;
    assert_eq!((status, &said["code"]), (404, &json!("no_route")));
    let (status, said) = api.ask("PUT", "/api/v1/clusters", Value::Null).await;
    assert_eq!((status, &said["code"]), (405, &json!("no_method")));
    for word in [
        "type",
        "title",
        "status",
        "code",
        "seen",
        "side",
        "fix",
        "request_id",
    ] {
        assert!(said.get(word).is_some(), "{word} is missing in {said}");
    }
}

#[tokio::test]
async fn tcp_needs_the_admin_token_and_the_right_host() {
    let api = Api::start().await;
    let host = api.tcp.to_string();
    let secret = std::fs::read_to_string(api.dir.path().join("admin-token")).unwrap();
    let bearer = format!("Bearer {secret}");
    let status = "/api/v1/status";
    let right = [("host", host.as_str()), ("authorization", bearer.as_str())];
    let (code, body) = api.over_tcp(status, &right).await;
    assert_eq!(
        (code, &body["public_url"]),
        (200, &json!("https://hub.test:8443"))
    );
    let wrong = [
        ("host", host.as_str()),
        ("authorization", "Bearer rhc_wrong0000000000000"),
    ];
    for headers in [&wrong[..], &wrong[..1]] {
        let (code, body) = api.over_tcp(status, headers).await;
        assert_eq!((code, &body["code"]), (401, &json!("unauthenticated")));
        assert!(!body.to_string().contains("rhc_wrong"), "{body}");
    }
    let elsewhere = [("host", "evil.test"), ("authorization", bearer.as_str())];
    assert_eq!(api.over_tcp(status, &elsewhere).await.0, 421);
    assert_eq!(
        api.over_tcp("/api/v1/openapi.json", &right[..1]).await.0,
        401
    );
    let (code, page) = api.over_tcp("/", &right[..1]).await;
    assert!(code == 200 && page.as_str().unwrap().contains("Clusters"));
}

#[tokio::test]
async fn connectors_learn_their_status_with_their_own_token_only() {
    let api = Api::start().await;
    for id in ["a", "b"] {
        api.ask("POST", "/api/v1/clusters", json!({"id": id})).await;
    }
    let (_, minted) = api
        .ask("POST", "/api/v1/clusters/b/tokens", Value::Null)
        .await;
    let host = api.tcp.to_string();
    let bearer = format!("Bearer {}", minted["token"].as_str().unwrap());
    let (code, config) = api.over_tcp("/api/config", &[("host", &host)]).await;
    assert_eq!(
        (code, config),
        (200, json!({"frontend_url": "https://hub.test:8443"}))
    );
    let own = [("host", host.as_str()), ("authorization", bearer.as_str())];
    let (code, status) = api.over_tcp("/api/agent/status", &own).await;
    let wanted = json!({"cluster_id": "b", "status": "disconnected", "last_connected_at": null});
    assert_eq!((code, status), (200, wanted));
    assert_eq!(api.over_tcp("/api/agent/status", &own[..1]).await.0, 401);
    assert_eq!(api.over_tcp("/api/v1/clusters", &own).await.0, 401);
    api.ask("POST", "/api/v1/clusters/b/revoke", Value::Null)
        .await;
    assert_eq!(api.over_tcp("/api/agent/status", &own).await.0, 401);
}

/// A registration as it comes over TCP, from an address.
async fn register(api: &Api, from: &str, body: &str) -> (u16, Value) {
    let stream = tokio::net::TcpStream::connect(api.tcp).await.unwrap();
    let request = Request::post("/api/agents/register")
        .header("host", "whatever.example")
        .header("x-forwarded-for", from)
        .header("content-type", "application/json");
    let request = request.body(Full::from(body.to_owned())).unwrap();
    parts(send(stream, request).await).await
}

/// A fresh bootstrap token for `cluster`.
async fn bootstrap(api: &Api, cluster: &str) -> String {
    let body = json!({"cluster": cluster});
    let (status, minted) = api.ask("POST", "/api/agents/tokens", body).await;
    assert_eq!((status, &minted["cluster"]), (201, &json!(cluster)));
    assert_eq!(minted["expiresAt"], "2025-11-21T00:15:00Z");
    let token = minted["token"].as_str().unwrap().to_owned();
    assert_eq!(token.len(), 4 + 43);
    token
}

fn csr() -> String {
    let key = culvert_enrol::Key::generate().unwrap();
    culvert_enrol::base64(&key.request().unwrap())
}

#[tokio::test]
async fn what_cannot_be_read_is_400_and_costs_no_token() {
    let api = Api::start().await;
    api.ask("POST", "/api/clusters", json!({"id": "a"})).await;
    let token = bootstrap(&api, "a").await;
    let with = |csr: &str| json!({"token": token, "cluster": "a", "csr": csr}).to_string();
    let huge = culvert_enrol::base64(&vec![0x30; 1 << 20]);
    let long = culvert_enrol::base64(&vec![0x30; 8 << 10]);
    for (n, (body, status)) in [
        (String::new(), 400),
        ("nonsense".to_owned(), 400),
        ("[]".to_owned(), 400),
        (json!({"token": token, "cluster": "a"}).to_string(), 400),
        (
            json!({"token": 1, "cluster": "a", "csr": ""}).to_string(),
            400,
        ),
        (with(""), 400),
        (with("not base64!"), 400),
        (with("AAAA"), 400),
        (with(&long), 400),
        (with(&huge), 413),
    ]
    .into_iter()
    .enumerate()
    {
        let (seen, answer) = register(&api, &format!("192.0.2.{n}"), &body).await;
        assert_eq!(seen, status, "{answer}");
        assert!(!answer.to_string().contains(&token), "{answer}");
    }
    let (status, made) = register(&api, "192.0.2.99", &with(&csr())).await;
    assert_eq!(status, 200, "{made}");
    assert!(
        made["cert"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN CERT")
    );
    assert!(
        made["caBundle"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN CERT")
    );
    assert_eq!(made["expiresAt"], "2026-02-19T00:00:00Z");
    // Every failure of a token is the same.
    let other = bootstrap(&api, "a").await;
    let mut seen = Vec::new();
    for (token, cluster) in [(&*token, "a"), (&*other, "b"), (&*other, "a"), ("", "a")] {
        let body = json!({"token": token, "cluster": cluster, "csr": csr()}).to_string();
        let (status, mut answer) = register(&api, "192.0.2.98", &body).await;
        assert_eq!(
            (status, &answer["title"]),
            (401, &json!("registration rejected"))
        );
        answer["request_id"] = Value::Null;
        seen.push(answer);
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn a_source_has_ten_tries_a_minute() {
    let api = Api::start().await;
    for _ in 0..10 {
        assert_eq!(register(&api, "192.0.2.1", "x").await.0, 400);
    }
    let (status, answer) = register(&api, "192.0.2.1", "x").await;
    assert_eq!(
        (status, &answer["code"]),
        (429, &json!("too_many_registrations"))
    );
    assert_eq!(register(&api, "192.0.2.2", "x").await.0, 400);
}

#[tokio::test]
async fn cas_are_rotated_by_the_api_and_never_show_a_key() {
    let api = Api::start().await;
    let cas = "/api/v1/agent-cas";
    let (status, staged) = api.ask("POST", cas, Value::Null).await;
    assert_eq!((status, &staged["state"]), (201, &json!("staged")));
    assert_eq!(api.ask("POST", cas, Value::Null).await.0, 409);
    let promote = format!("{cas}/promote");
    let (status, now) = api.ask("POST", &promote, Value::Null).await;
    assert_eq!((status, &now["ca_id"]), (200, &staged["ca_id"]));
    assert_eq!(api.ask("POST", &promote, Value::Null).await.0, 409);
    let (_, all) = api.ask("GET", cas, Value::Null).await;
    assert!(!all.to_string().contains("PRIVATE"), "{all}");
    let states = all["items"].as_array().unwrap().iter();
    let states: Vec<_> = states.map(|ca| ca["state"].clone()).collect();
    assert_eq!(states, ["trusted", "signing"]);
    let of = |place: usize| format!("{cas}/{}", all["items"][place]["ca_id"].as_str().unwrap());
    assert_eq!(api.ask("DELETE", &of(1), Value::Null).await.0, 409);
    assert_eq!(api.ask("DELETE", &of(0), Value::Null).await.0, 204);
    assert_eq!(api.ask("DELETE", &of(0), Value::Null).await.0, 404);
    let (_, page) = api
        .ask("GET", "/api/audit?verb=ca_rotate", Value::Null)
        .await;
    let outcomes: Vec<_> = told(&page).into_iter().map(|row| row[1].clone()).collect();
    let (done, denied) = ("success", "denied");
    assert_eq!(
        outcomes,
        [done, done, denied, done, denied, denied, done, denied]
    );
    // Nobody without a right.
    let host = api.tcp.to_string();
    let headers = [("host", &*host)];
    assert_eq!(api.post_over_tcp(cas, &headers).await, 401);
    assert_eq!(api.post_over_tcp("/api/agents/tokens", &headers).await, 401);
}

/// Verb, outcome, cluster, name and reason of rows, oldest first.
fn told(page: &Value) -> Vec<[String; 5]> {
    let row = |row: &Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let name = text(&row["resource"]["name"]);
        let [verb, outcome, cluster, reason] =
            ["verb", "outcome", "cluster", "reason"].map(|key| text(&row[key]));
        [verb, outcome, cluster, name, reason]
    };
    let rows = page["items"].as_array().unwrap();
    rows.iter().rev().map(row).collect()
}

#[tokio::test]
async fn every_change_leaves_its_row_and_so_does_a_refused_one() {
    let api = Api::start().await;
    let clusters = "/api/v1/clusters";
    api.ask("POST", clusters, json!({"id": "prod"})).await;
    api.ask("POST", "/api/clusters", json!({"id": "prod"}))
        .await;
    api.ask("POST", clusters, json!({"id": "other", "bogus": 1}))
        .await;
    let prod = "/api/v1/clusters/prod";
    api.ask("PATCH", prod, json!({"enabled": false})).await;
    api.ask("PATCH", prod, json!({"streams_max": 0})).await;
    let path = |end: &str| format!("{prod}/{end}");
    let (_, minted) = api.ask("POST", &path("tokens"), Value::Null).await;
    let (_, rotated) = api.ask("POST", &path("rotate-token"), Value::Null).await;
    let [first, second] = [&minted, &rotated].map(|it| it["token_id"].as_str().unwrap());
    api.ask("DELETE", &path(&format!("tokens/{first}")), Value::Null)
        .await;
    api.ask("DELETE", &path("tokens/none"), Value::Null).await;
    api.ask("POST", &path("rotate-token?deliver=true"), Value::Null)
        .await;
    api.ask("POST", &path("revoke"), Value::Null).await;
    api.ask("DELETE", prod, Value::Null).await;
    api.ask("DELETE", "/api/v1/clusters/%0aNO", Value::Null)
        .await;
    api.ask("GET", prod, Value::Null).await;
    let (status, page) = api.ask("GET", "/api/v1/audit", Value::Null).await;
    assert_eq!(
        (status, &page["total"], &page["limit"]),
        (200, &json!(13), &json!(100))
    );
    let wanted = [
        ["cluster_create", "success", "prod", "prod", ""],
        ["cluster_create", "denied", "prod", "prod", "cluster_exists"],
        ["cluster_create", "denied", "other", "other", "bad_field"],
        ["cluster_update", "success", "prod", "prod", ""],
        ["cluster_update", "denied", "prod", "prod", "bad_field"],
        ["token_mint", "success", "prod", first, ""],
        ["token_rotate", "success", "prod", second, ""],
        ["token_revoke", "success", "prod", first, ""],
        ["token_revoke", "denied", "prod", "none", "unknown_token"],
        ["token_rotate", "denied", "prod", "", "nobody_to_deliver_to"],
        ["token_revoke", "success", "prod", "", ""],
        ["cluster_delete", "success", "prod", "prod", ""],
        ["cluster_delete", "denied", "NO", "NO", "bad_field"],
    ];
    assert_eq!(told(&page), wanted.map(|row| row.map(str::to_owned)));
    let row = &page["items"][12];
    let uid = format!("uid:{}", rustix::process::geteuid().as_raw());
    assert_eq!(row["actor"], json!({"sub": uid, "email": "", "groups": []}));
    assert_eq!(row["time"], "2025-11-21T00:00:00Z");
    assert_eq!(
        (&row["route"], &row["transport"]),
        (&json!("POST /api/v1/clusters"), &json!("unix"))
    );
    assert_eq!(row["request_id"].as_str().unwrap().len(), 36);
    assert!(!page.to_string().contains("rhc_"), "a token is in the log");
}

#[tokio::test]
async fn audit_rows_are_filtered_paged_and_attributed() {
    let api = Api::start().await;
    for id in ["a", "b", "c"] {
        api.ask("POST", "/api/clusters", json!({"id": id})).await;
    }
    let host = api.tcp.to_string();
    let secret = std::fs::read_to_string(api.dir.path().join("admin-token")).unwrap();
    let bearer = format!("Bearer {secret}");
    let id = "0192e1c8-0000-7000-8000-000000000001";
    let admin = [
        ("host", host.as_str()),
        ("authorization", bearer.as_str()),
        ("x-request-id", id),
    ];
    assert_eq!(
        api.post_over_tcp("/api/clusters/a/revoke", &admin).await,
        200
    );
    // Nobody is known here, which the row says.
    assert_eq!(
        api.post_over_tcp("/api/clusters/b/revoke", &admin[..1])
            .await,
        401
    );
    let found = async |query: &str| {
        let (status, page) = api
            .ask("GET", &format!("/api/audit?{query}"), Value::Null)
            .await;
        assert_eq!(status, 200, "{page}");
        let names = told(&page).into_iter().map(|[_, _, cluster, ..]| cluster);
        (
            page["total"].as_u64().unwrap(),
            names.collect::<Vec<_>>().join(" "),
        )
    };
    let all = |total, names: &str| (total, names.to_owned());
    assert_eq!(found("").await, all(5, "a b c a b"));
    assert_eq!(found("limit=2").await, all(5, "a b"));
    assert_eq!(found("limit=2&offset=2").await, all(5, "b c"));
    assert_eq!(found("actor=unknown&outcome=denied").await, all(1, "b"));
    assert_eq!(found("cluster=a").await, all(2, "a a"));
    assert_eq!(
        found("verb=token_revoke&outcome=success").await,
        all(1, "a")
    );
    assert_eq!(found("actor=admin-token").await, all(1, "a"));
    assert_eq!(found(&format!("request_id={id}")).await, all(1, "a"));
    assert_eq!(found("name=b&namespace=").await, all(1, "b"));
    assert_eq!(found("outcome=failure").await, all(0, ""));
    assert_eq!(
        found("from=2025-11-21T00:00:00Z&to=2025-11-21T00:00:01Z")
            .await
            .0,
        5
    );
    assert_eq!(found("to=2025-11-21T00:00:00Z").await.0, 0);
    for (query, field) in [
        ("limit=501", "limit"),
        ("limit=0", "limit"),
        ("verb=nap", "verb"),
        ("outcome=x", "outcome"),
        ("from=monday", "from"),
        ("user=x", "user"),
    ] {
        let (status, said) = api
            .ask("GET", &format!("/api/audit?{query}"), Value::Null)
            .await;
        assert_eq!(
            (status, &said["fields"][0]["field"]),
            (422, &json!(field)),
            "{said}"
        );
    }
    let stream = tokio::net::UnixStream::connect(api.socket()).await.unwrap();
    let request = Request::get("/api/audit").header("host", "x");
    let answer = send(stream, request.body(Full::default()).unwrap()).await;
    assert_eq!(answer.headers()["x-audit-scope"], "all");
    assert_eq!(api.over_tcp("/api/audit", &admin[..1]).await.0, 401);
}

#[tokio::test]
async fn callers_whom_nobody_knows_leave_rows_and_cannot_fill_the_log() {
    let api = Api::start().await;
    let host = api.tcp.to_string();
    for _ in 0..40 {
        let path = "/api/clusters/prod/revoke";
        assert_eq!(api.post_over_tcp(path, &[("host", &host)]).await, 401);
    }
    api.over_tcp("/api/clusters", &[("host", &host)]).await;
    let (_, page) = api
        .ask("GET", "/api/audit?actor=unknown", Value::Null)
        .await;
    assert_eq!(page["total"], 30);
    let wanted = ["token_revoke", "denied", "prod", "", "unauthenticated"];
    assert_eq!(told(&page)[0], wanted.map(str::to_owned));
    assert_eq!(page["items"][0]["transport"], "tcp");
}

#[tokio::test]
async fn a_shutdown_stops_accepting() {
    let api = Api::start().await;
    api.shutdown.advance(Phase::Draining);
    let refused = async {
        while tokio::net::TcpStream::connect(api.tcp).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), refused)
        .await
        .unwrap();
}

/// Reads server-sent events until `wanted` have come.
async fn events(api: &Api, path: &str, last: Option<&str>, wanted: usize) -> Vec<(String, Value)> {
    let stream = tokio::net::UnixStream::connect(api.socket()).await.unwrap();
    let mut request = Request::get(path).header("host", "x");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let answer = send(stream, request.body(Full::from(String::new())).unwrap()).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(answer.headers()["x-audit-scope"], "all");
    let (mut body, mut text) = (answer.into_body(), String::new());
    let read = async {
        while text.matches("\n\n").count() < wanted {
            let frame = body.frame().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), read)
        .await
        .unwrap();
    let events = text.split_terminator("\n\n").map(|event| {
        let field = |name: &str| {
            let mut lines = event.lines().filter_map(|line| line.strip_prefix(name));
            lines.next().unwrap().trim().to_owned()
        };
        (field("id:"), serde_json::from_str(&field("data:")).unwrap())
    });
    events.collect()
}

#[tokio::test]
async fn the_audit_log_is_followed_and_resumed() {
    let api = Api::start().await;
    let create = async |id: &str| {
        let body = serde_json::json!({"id": id});
        assert_eq!(api.ask("POST", "/api/clusters", body).await.0, 201);
    };
    create("a").await;
    create("b").await;
    // From the begin, which a cursor names as well as a header.
    let path = "/api/v1/audit/stream?verb=cluster_create";
    let first = events(&api, &format!("{path}&cursor=0"), None, 2).await;
    assert_eq!(first[1].1["cluster"], "b");
    assert_eq!(first[0].0, first[0].1["id"].to_string());
    // One that follows sees the next row when it is recorded, and none from before.
    let (followed, ()) = tokio::join!(events(&api, path, None, 1), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        create("c").await;
    });
    assert_eq!(followed[0].1["cluster"], "c");
    create("d").await;
    let resumed = events(&api, path, Some(&first[1].0), 2).await;
    let clusters: Vec<_> = resumed
        .iter()
        .map(|(_, row)| row["cluster"].clone())
        .collect();
    assert_eq!(clusters, ["c", "d"]);
    let (status, _) = api
        .ask("GET", "/api/v1/audit/stream?cursor=x", Value::Null)
        .await;
    assert_eq!(status, 422);

    let mut open = Vec::new();
    let mut last = 200;
    for _ in 0..=8 {
        let stream = tokio::net::UnixStream::connect(api.socket()).await.unwrap();
        let request = Request::get(path).header("host", "x");
        let answer = send(stream, request.body(Full::from(String::new())).unwrap()).await;
        last = answer.status().as_u16();
        open.push(answer);
    }
    assert_eq!(last, 429, "eight streams of one user");
    drop(open);
    let waited = async {
        loop {
            let stream = tokio::net::UnixStream::connect(api.socket()).await.unwrap();
            let request = Request::get(path).header("host", "x");
            let answer = send(stream, request.body(Full::from(String::new())).unwrap()).await;
            if answer.status() == 200 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let gone = tokio::time::timeout(std::time::Duration::from_secs(10), waited).await;
    gone.expect("closed streams make room");
}

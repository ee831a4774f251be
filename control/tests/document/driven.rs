//! The real server, asked with the examples of the document: what it answers holds too.

use axum::body::Body;
use culvert_proto::id::{Epoch, Generation, InstanceId};
use culvert_proto::update::{Report, SessionFact};
use culvert_rpc::{Hub as _, LinkId};
use futures_util::StreamExt as _;
use hyper::Request;
use tower::ServiceExt as _;

use super::*;

/// Who asks.
#[derive(Clone, Copy)]
enum As<'a> {
    /// The Unix socket.
    Root,
    /// TCP, with these headers.
    Tcp(&'a [(&'a str, &'a str)]),
}

struct Driver<'a> {
    site: Site,
    operations: Vec<Operation<'a>>,
    checker: Checker,
    /// Those that succeeded.
    driven: BTreeSet<String>,
}

impl<'a> Driver<'a> {
    async fn new(document: &'a Value) -> Self {
        Self {
            site: Site::open(sign_in()).await,
            operations: operations(document),
            checker: Checker::new(document),
            driven: BTreeSet::new(),
        }
    }

    fn operation(&self, id: &str) -> &Operation<'a> {
        let mut all = self.operations.iter();
        all.find(|it| it.id == id).unwrap_or_else(|| panic!("{id}"))
    }

    /// Asks an operation as its example does, under each of its roots where that changes
    /// nothing; what it answers has to hold.
    async fn ok(&mut self, id: &str, who: As<'_>, params: &[(&str, &str)], query: &str) -> Value {
        let operation = self.operation(id);
        let roots = match operation.method {
            "get" => &operation.roots[..],
            _ => &operation.roots[..1],
        };
        let mut answer = Value::Null;
        for root in roots {
            answer = self.under(operation, root, who, params, query).await;
        }
        self.driven.insert(id.to_owned());
        answer
    }

    /// The same of what may not be asked twice at once.
    async fn once(&mut self, id: &str, who: As<'_>, params: &[(&str, &str)]) -> Value {
        let operation = self.operation(id);
        let root = operation.roots[0];
        let answer = self.under(operation, root, who, params, "").await;
        self.driven.insert(id.to_owned());
        answer
    }

    async fn under(
        &self,
        operation: &Operation<'_>,
        root: &str,
        who: As<'_>,
        params: &[(&str, &str)],
        query: &str,
    ) -> Value {
        let body = &operation.says["requestBody"]["content"]["application/json"]["example"];
        let line = line(operation, root, params, query);
        let said = self.ask(&line, who, body.clone()).await;
        let id = operation.id;
        assert!(said.status < 400, "{id}: {} {}", said.status, said.text);
        self.holds(operation, &said);
        said.body
    }

    /// Asks in vain: the error has to hold.
    async fn refused(&self, id: &str, who: As<'_>, status: u16) {
        let operation = self.operation(id);
        let line = line(operation, operation.roots[0], &[], "");
        let said = self.ask(&line, who, Value::Null).await;
        assert_eq!(said.status, status, "{id}: {}", said.text);
        self.holds(operation, &said);
    }

    async fn ask(&self, line: &str, who: As<'_>, body: Value) -> Said {
        match who {
            As::Root => self.site.ask_as(ROOT, line, &[], body).await,
            As::Tcp(headers) => {
                let caller = api::Caller::Tcp;
                self.site.ask_as(caller, line, headers, body).await
            }
        }
    }

    /// The answer is one that the document names, in the type and the shape that it names.
    fn holds(&self, operation: &Operation<'_>, said: &Said) {
        let (id, status) = (operation.id, said.status.to_string());
        let responses = operation.says["responses"].as_object().unwrap();
        let written = match said.status {
            400.. => &responses["default"],
            _ => responses
                .get(&status)
                .unwrap_or_else(|| panic!("{id} answers {status}")),
        };
        let kind = said.headers.get("content-type");
        let kind = kind.map(|it| it.to_str().unwrap().split(';').next().unwrap());
        let content = written.get("content").and_then(Value::as_object);
        let Some(content) = content else {
            assert!(said.text.is_empty(), "{id} {status}: {}", said.text);
            return;
        };
        let kind = kind.unwrap_or_else(|| panic!("{id} {status}: no type"));
        let content = content
            .get(kind)
            .unwrap_or_else(|| panic!("{id} {status} is {kind}"));
        let value = match kind.ends_with("json") {
            true => said.body.clone(),
            false => json!(said.text),
        };
        let wrong = self.checker.wrong(&content["schema"], &value);
        assert!(wrong.is_empty(), "{id} {status}: {wrong:#?}\n{value:#}");
    }

    /// The first event of a stream.
    async fn event(&mut self, id: &str, query: &str) -> String {
        let operation = self.operation(id);
        let line = line(operation, operation.roots[0], &[], query);
        let request = Request::builder()
            .uri(line.strip_prefix("GET ").unwrap())
            .extension(ROOT);
        let request = request.body(Body::empty()).unwrap();
        let answer = api::router(self.site.context.clone()).oneshot(request);
        let (head, body) = answer.await.unwrap().into_parts();
        let first = body.into_data_stream().next().await.unwrap().unwrap();
        let text = String::from_utf8(first.to_vec()).unwrap();
        let said = Said {
            status: head.status.as_u16(),
            headers: head.headers,
            text: text.clone(),
            body: Value::Null,
        };
        self.holds(operation, &said);
        self.driven.insert(id.to_owned());
        text
    }

    /// An agent of the cluster is connected, says a data plane.
    fn connect(&self) {
        let hub = &self.site.context.hub;
        hub.opened(LinkId(1), "test");
        let instance = InstanceId([1; 16]);
        let report = Report {
            dataplane_id: "dp".into(),
            sessions: vec![SessionFact::new(
                "prod".parse().unwrap(),
                instance,
                Epoch(1),
            )],
            ..Report::default()
        };
        hub.report(LinkId(1), Generation(1), Some(report));
    }
}

fn line(operation: &Operation<'_>, root: &str, params: &[(&str, &str)], query: &str) -> String {
    let mut path = operation.path.to_owned();
    for (name, value) in params {
        path = path.replace(&format!("{{{name}}}"), value);
    }
    let path = filled(&path);
    format!("{} {root}{path}{query}", operation.method.to_uppercase())
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} in {value}"))
}

/// Sessions: begins one, and ends all.
async fn signs_in_and_out(driver: &mut Driver<'_>) {
    let own = [("origin", ORIGIN)];
    driver.ok("show_sign_in", As::Tcp(&[]), &[], "").await;
    let operation = driver.operation("login_break_glass");
    let body = &operation.says["requestBody"]["content"]["application/json"]["example"];
    let said = driver
        .ask("POST /api/auth/login", As::Tcp(&own), body.clone())
        .await;
    let cookie = said.session().unwrap();
    driver.ok("login_break_glass", As::Tcp(&own), &[], "").await;
    let session = [("cookie", cookie.as_str()), ("origin", ORIGIN)];
    let who = driver.ok("who_am_i", As::Tcp(&session), &[], "").await;
    assert_eq!(who["tier"], "admin");
    driver
        .ok("who_am_i_fully", As::Tcp(&session), &[], "")
        .await;
    driver.ok("logout", As::Tcp(&session), &[], "").await;
    driver
        .ok("logout_everywhere", As::Tcp(&session), &[], "")
        .await;
    driver.ok("show_logged_out", As::Tcp(&[]), &[], "").await;
    driver.ok("who_am_i", As::Root, &[], "").await;
    driver.ok("who_am_i_fully", As::Root, &[], "").await;
    // A provider is needed; control/tests/oidc has one.
    for (id, status) in [
        ("start_login", 404),
        ("finish_login", 400),
        ("finish_login_of_others", 400),
    ] {
        driver.refused(id, As::Tcp(&[]), status).await;
        driver.driven.insert(id.to_owned());
    }
}

/// Everything that is minted: tokens of clusters, people and machines.
async fn mints(driver: &mut Driver<'_>) {
    let (root, prod) = (As::Root, ("id", "prod"));
    let token = driver.ok("mint_token", root, &[prod], "").await;
    driver.ok("list_tokens", root, &[prod], "").await;
    let bearer = format!("Bearer {}", text(&token, "token"));
    let agent = [("authorization", bearer.as_str())];
    let told = driver
        .ok("show_agent_status", As::Tcp(&agent), &[], "")
        .await;
    assert_eq!(told["status"], "connected");
    driver.ok("rotate_token", root, &[prod], "").await;
    let old = [prod, ("token_id", text(&token, "token_id"))];
    driver.ok("remove_token", root, &old, "").await;

    let person = driver.ok("mint_personal_token", root, &[], "").await;
    driver.ok("list_personal_tokens", root, &[], "").await;
    let bearer = format!("Bearer {}", text(&person, "token"));
    let ana = [("authorization", bearer.as_str())];
    let who = driver.ok("who_am_i", As::Tcp(&ana), &[], "").await;
    assert_eq!(who["tier"], "read");
    driver.refused("create_cluster", As::Tcp(&ana), 403).await;
    let one = [("token_id", text(&person, "token_id"))];
    driver.ok("revoke_personal_token", root, &one, "").await;

    let machine = driver.ok("mint_api_token", root, &[], "").await;
    driver.ok("list_api_tokens", root, &[], "").await;
    let one = [("token_id", text(&machine, "token_id"))];
    driver.ok("revoke_api_token", root, &one, "").await;
}

/// An agent without a token asks; somebody approves, and takes it back.
async fn connects(driver: &mut Driver<'_>) {
    let (root, stranger) = (As::Root, As::Tcp(&[]));
    let begun = driver.ok("ask_to_connect", stranger, &[], "").await;
    let one = [("request_id", text(&begun, "request_id"))];
    driver.ok("show_connect_request", root, &one, "").await;
    driver.ok("list_connect_requests", root, &[], "").await;
    driver.ok("approve_connect_request", root, &one, "").await;
    driver.ok("deny_connect_request", root, &one, "").await;
    let bearer = format!("Bearer {}", text(&begun, "device_secret"));
    let agent = [("authorization", bearer.as_str())];
    let polled = driver.once("poll_connect_request", As::Tcp(&agent), &one);
    let polled = polled.await;
    assert_eq!(
        (text(&polled, "status"), text(&polled, "reason")),
        ("expired", "denied")
    );
    // control/tests/identity/connect.rs sends the form.
    driver.refused("decide_connect_request", root, 422).await;
    driver.driven.insert("decide_connect_request".to_owned());
}

/// An agent gets a certificate, and the CA that signed it is replaced.
async fn enrols(driver: &mut Driver<'_>) {
    let (root, stranger) = (As::Root, As::Tcp(&[]));
    let minted = driver.ok("mint_bootstrap_token", root, &[], "").await;
    let csr = culvert_enrol::Key::generate().unwrap().request().unwrap();
    let body = json!({
        "token": minted["token"], "cluster": "prod", "csr": culvert_enrol::base64(&csr),
    });
    let said = driver.ask("POST /api/agents/register", stranger, body);
    let said = said.await;
    assert_eq!(said.status, 200, "{}", said.text);
    driver.holds(driver.operation("register_agent"), &said);
    driver.driven.insert("register_agent".to_owned());
    let before = driver.ok("list_agent_cas", root, &[], "").await;
    driver.ok("stage_agent_ca", root, &[], "").await;
    driver.ok("promote_agent_ca", root, &[], "").await;
    let old = [("ca_id", text(&before["items"][0], "ca_id"))];
    driver.ok("retire_agent_ca", root, &old, "").await;
}

#[tokio::test]
async fn the_server_answers_what_the_document_says() {
    let document = document();
    let mut driver = Driver::new(&document).await;
    let (root, prod) = (As::Root, ("id", "prod"));
    driver.ok("create_cluster", root, &[], "").await;
    driver.connect();
    driver.ok("list_clusters", root, &[], "?limit=1").await;
    driver.ok("update_cluster", root, &[prod], "").await;
    driver.ok("show_cluster", root, &[prod], "").await;
    let route = driver.ok("create_route", root, &[prod], "").await;
    driver.ok("list_routes", root, &[prod], "").await;
    driver.ok("list_all_routes", root, &[], "").await;
    let one = [prod, ("route_id", text(&route, "route_id"))];
    driver.ok("remove_route", root, &one, "").await;
    mints(&mut driver).await;
    connects(&mut driver).await;
    enrols(&mut driver).await;
    signs_in_and_out(&mut driver).await;

    for (id, items) in [("list_agents", 1), ("list_dataplanes", 1)] {
        let page = driver.ok(id, root, &[], "").await;
        assert_eq!(page["items"].as_array().unwrap().len(), items, "{id}");
    }
    driver.ok("show_fleet", root, &[], "").await;
    let path = [("path", "api/v1/namespaces")];
    driver.ok("ask_fleet", root, &path, "?limit=1").await;
    let audit = driver.ok("list_audit", root, &[], "?limit=3").await;
    assert_eq!(audit["items"].as_array().unwrap().len(), 3);
    let first = driver.event("stream_audit", "?cursor=0").await;
    assert!(first.contains("cluster_create"), "{first}");
    let first = driver.event("stream_events", "").await;
    assert!(first.contains("event: snapshot"), "{first}");
    let polled = driver.ok("poll_events", root, &[], "").await;
    assert_eq!(polled["snapshot"]["clusters"][0]["id"], "prod");
    for id in [
        "show_status",
        "show_license",
        "show_heartbeat",
        "show_document",
        "show_page",
        "show_config",
    ] {
        driver.ok(id, root, &[], "").await;
    }
    driver.ok("revoke_cluster", root, &[prod], "").await;
    driver.ok("remove_cluster", root, &[prod], "").await;
    let all: BTreeSet<_> = driver
        .operations
        .iter()
        .map(|it| it.id.to_owned())
        .collect();
    let missing: Vec<_> = all.difference(&driver.driven).collect();
    assert!(missing.is_empty(), "not driven: {missing:?}");
}

#[tokio::test]
async fn every_route_refuses_strangers_as_the_document_says() {
    let document = document();
    let driver = Driver::new(&document).await;
    let mut guarded = 0;
    for operation in &driver.operations {
        let security = operation
            .says
            .get("security")
            .unwrap_or(&document["security"]);
        let is_open = security
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it == &json!({}));
        if is_open {
            continue;
        }
        guarded += 1;
        for root in &operation.roots {
            let line = line(operation, root, &[], "");
            let said = driver.ask(&line, As::Tcp(&[]), Value::Null).await;
            assert_eq!(
                (said.status, said.code()),
                (401, "unauthenticated"),
                "{line}"
            );
            driver.holds(operation, &said);
        }
    }
    assert!(guarded > 30, "{guarded}");
    // Errors of other kinds have the same shape, with the fields that are wrong.
    driver.refused("show_cluster", As::Root, 404).await;
    driver.refused("create_cluster", As::Root, 422).await;
    driver.refused("mint_api_token", As::Root, 422).await;
    driver.refused("logout", As::Tcp(&[]), 403).await;
    driver.refused("login_break_glass", As::Tcp(&[]), 422).await;
}

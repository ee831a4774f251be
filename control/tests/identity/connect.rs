//! Agents that ask for a token: what they are told, who decides, and what an attacker tries.

use culvert_control::connect::{PENDING_MAX, PENDING_OF_ADDRESS_MAX};
use culvert_control::token;
use culvert_identity::Tier;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;

use super::fleet::cookie;
use super::*;

/// An agent with a request.
struct Asker {
    id: String,
    secret: String,
    code: String,
    body: Value,
}

impl Site {
    async fn asked(&self, from: &str, body: Value) -> Said {
        let headers = [("x-forwarded-for", from)];
        self.ask("POST /api/connect/requests", &headers, body).await
    }

    async fn asker(&self, from: &str, body: Value) -> Asker {
        let said = self.asked(from, body).await;
        assert_eq!(said.status, 201, "{}", said.body);
        let text = |field: &str| said.body[field].as_str().unwrap().to_owned();
        Asker {
            id: text("request_id"),
            secret: text("device_secret"),
            code: text("user_code"),
            body: said.body.clone(),
        }
    }

    async fn poll(&self, id: &str, secret: &str) -> Said {
        let bearer = format!("Bearer {secret}");
        let headers = [("authorization", bearer.as_str())];
        let line = format!("GET /api/connect/requests/{id}");
        self.ask(&line, &headers, Value::Null).await
    }

    /// In front of control's socket.
    async fn root(&self, line: &str, body: Value) -> Said {
        let root = api::Caller::Socket { uid: 0 };
        self.ask_as(root, line, &[], body).await
    }

    async fn approve(&self, id: &str, cluster: &str, create: bool) -> Said {
        let line = format!("POST /api/connect/requests/{id}/approve");
        self.root(&line, json!({"cluster": cluster, "create": create}))
            .await
    }

    fn pass(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    /// Posts a form of the page.
    async fn form(&self, id: &str, headers: &[(&str, &str)], form: &str) -> (u16, HeaderMap) {
        let mut request = Request::post(format!("/enrol/{id}"))
            .header("host", "hub.test")
            .header("content-type", "application/x-www-form-urlencoded")
            .extension(api::Caller::Tcp);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = axum::body::Body::from(form.to_owned());
        let router = api::router(self.context.clone());
        let said = router.oneshot(request.body(body).unwrap()).await.unwrap();
        (said.status().as_u16(), said.headers().clone())
    }

    /// The page as a browser gets it.
    async fn page(&self, id: &str, cookie: Option<&str>) -> (u16, String) {
        let mut request = Request::get(format!("/enrol/{id}"))
            .header("host", "hub.test")
            .header("accept", "text/html")
            .extension(api::Caller::Tcp);
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        let router = api::router(self.context.clone());
        let (head, body) = router.oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let policy = head.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'"), "{policy}");
        (head.status.as_u16(), text)
    }
}

fn wish() -> Value {
    json!({"cluster": "prod", "agent_version": "0.1.0", "host": "node-7"})
}

#[tokio::test]
async fn an_agent_asks_is_approved_and_fetches_its_token_once() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let asker = site.asker("192.0.2.1", wish()).await;
    let body = &asker.body;
    let url = format!("{ORIGIN}/enrol/{}", asker.id);
    assert_eq!(body["connect_url"], json!(url));
    assert_eq!(body["wss_url"], "wss://hub.test/agent");
    assert_eq!(
        (&body["expires_in"], &body["poll_interval"]),
        (&json!(900), &json!(5))
    );
    let pending = site.poll(&asker.id, &asker.secret).await;
    let wanted = json!({
        "status": "pending", "cluster_id": null, "token": null, "wss_url": "wss://hub.test/agent",
    });
    assert_eq!((pending.status, pending.body), (200, wanted));

    let listed = site.root("GET /api/connect/requests", Value::Null).await;
    let item = &listed.body["items"][0];
    assert_eq!(
        (&item["user_code"], &item["address"], &item["host"]),
        (&json!(asker.code), &json!("192.0.2.1"), &json!("node-7"))
    );
    assert!(!listed.body.to_string().contains(&asker.secret));
    let missing = site.approve(&asker.id, "prod", false).await;
    assert_eq!((missing.status, missing.code()), (404, "unknown_cluster"));
    let approved = site.approve(&asker.id, "prod", true).await;
    assert_eq!(
        (approved.status, &approved.body["status"]),
        (200, &json!("approved"))
    );
    assert_eq!(
        site.context.hub.clusters()["prod"].tokens.len(),
        0,
        "nothing to steal yet"
    );

    site.pass(5_000);
    let fetched = site.poll(&asker.id, &asker.secret).await;
    assert_eq!(fetched.body["status"], "approved");
    assert_eq!(fetched.body["cluster_id"], "prod");
    let text = fetched.body["token"].as_str().unwrap();
    let owner = site.context.hub.owner(&token::digest(text)).unwrap();
    assert_eq!(owner.id.as_str(), "prod");
    site.pass(5_000);
    let again = site.poll(&asker.id, &asker.secret).await;
    assert_eq!(
        (&again.body["status"], &again.body["token"]),
        (&json!("consumed"), &Value::Null)
    );
    assert_eq!(
        site.approve(&asker.id, "prod", false).await.code(),
        "request_over"
    );
    let row = |outcome: &str, reason: &str| (outcome.to_owned(), reason.to_owned());
    assert_eq!(
        site.rows("agent_register").await,
        [
            row("denied", "unknown_cluster"),
            row("success", ""),
            row("denied", "request_over")
        ]
    );
    assert_eq!(site.rows("token_mint").await, [row("success", "")]);
    assert_eq!(site.rows("cluster_create").await, [row("success", "")]);
    let minted = site
        .root("GET /api/audit?verb=token_mint", Value::Null)
        .await;
    let actor = &minted.body["items"][0]["actor"]["sub"];
    assert_eq!(actor, &json!(format!("connect-request:{}", asker.id)));
}

#[tokio::test]
async fn of_sixteen_who_fetch_at_once_one_gets_the_token() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let asker = site.asker("192.0.2.1", wish()).await;
    assert_eq!(site.approve(&asker.id, "prod", true).await.status, 200);
    let cause = culvert_control::audit::Cause {
        actor: culvert_control::audit::Actor {
            sub: "test".to_owned(),
            email: String::new(),
            groups: Vec::new(),
        },
        request_id: String::new(),
        route: "test".to_owned(),
        transport: "tcp",
    };
    let fetches = (0..16).map(|_| {
        let (hub, cause, id) = (site.context.hub.clone(), cause.clone(), asker.id.clone());
        tokio::spawn(async move { hub.fetch_token(&cause, &id).await })
    });
    let mut tokens = 0;
    for fetch in fetches.collect::<Vec<_>>() {
        let fetched = fetch.await.unwrap().ok().unwrap();
        tokens += usize::from(matches!(
            fetched,
            culvert_control::hub::Fetched::Token { .. }
        ));
    }
    assert_eq!(tokens, 1);
    assert_eq!(site.context.hub.clusters()["prod"].tokens.len(), 1);
}

#[tokio::test]
async fn a_wrong_secret_and_an_unknown_id_look_the_same() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let asker = site.asker("192.0.2.1", wish()).await;
    let other = site.asker("192.0.2.2", wish()).await;
    let mut answers = Vec::new();
    let (id, secret, zeros) = (asker.id.as_str(), asker.secret.as_str(), "0".repeat(32));
    for (id, secret) in [
        (id, other.secret.as_str()),
        (id, ""),
        (id, "cvd_"),
        (zeros.as_str(), secret),
        ("x", secret),
        ("%00", secret),
    ] {
        let mut said = site.poll(id, secret).await;
        said.body["request_id"].take();
        answers.push((said.status, said.body));
    }
    assert_eq!(answers[0].0, 404);
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    // They do not slow the agent down either.
    assert_eq!(site.poll(&asker.id, &asker.secret).await.status, 200);
}

#[tokio::test]
async fn who_asks_too_fast_is_told_to_slow_down() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let asker = site.asker("192.0.2.1", wish()).await;
    assert_eq!(site.poll(&asker.id, &asker.secret).await.status, 200);
    let said = site.poll(&asker.id, &asker.secret).await;
    assert_eq!((said.status, said.code()), (429, "slow_down"));
    assert_eq!(said.headers["retry-after"], "5");
    site.pass(5_000);
    assert_eq!(site.poll(&asker.id, &asker.secret).await.status, 200);
    // And an address that guesses is stopped.
    let mut codes = Vec::new();
    for _ in 0..200 {
        codes.push(site.poll("0", "x").await.status);
    }
    assert!(codes.contains(&404) && codes.last() == Some(&429));
}

#[tokio::test]
async fn refused_and_overdue_requests_get_no_token() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let denied = site.asker("192.0.2.1", wish()).await;
    let late = site.asker("192.0.2.1", wish()).await;
    let line = format!("POST /api/connect/requests/{}/deny", denied.id);
    assert_eq!(site.root(&line, Value::Null).await.status, 200);
    let said = site.poll(&denied.id, &denied.secret).await;
    assert_eq!(
        (&said.body["status"], &said.body["reason"]),
        (&json!("expired"), &json!("denied"))
    );
    assert_eq!(
        site.approve(&denied.id, "prod", true).await.code(),
        "request_over"
    );
    assert!(site.context.hub.clusters().is_empty());
    site.pass(900_000);
    let said = site.poll(&late.id, &late.secret).await;
    assert_eq!(
        (&said.body["status"], &said.body["reason"]),
        (&json!("expired"), &Value::Null)
    );
    assert_eq!(
        site.approve(&late.id, "prod", true).await.code(),
        "request_over"
    );
    let listed = site.root("GET /api/connect/requests", Value::Null).await;
    assert_eq!(listed.body["items"], json!([]));
    // An hour later nothing is left of it.
    site.pass(3_600_000);
    site.asker("192.0.2.9", wish()).await;
    assert_eq!(site.poll(&late.id, &late.secret).await.status, 404);
    let rows = site.rows("agent_register").await;
    assert_eq!(rows[0], ("denied".to_owned(), "denied".to_owned()));
}

#[tokio::test]
async fn requests_are_bounded_for_an_address_and_in_all() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let mut taken = 0;
    for _ in 0..4 {
        for host in 0..6 {
            let from = format!("2001:db8::{host}");
            taken += u64::from(site.asked(&from, wish()).await.status == 201);
        }
        site.pass(60_000);
    }
    assert_eq!(taken, PENDING_OF_ADDRESS_MAX, "a /64 is one address");
    let mut all = taken;
    for n in 0..40 {
        for host in 0..10 {
            let from = format!("198.51.{n}.{host}");
            all += u64::from(site.asked(&from, wish()).await.status == 201);
        }
        // Less than a life in all.
        site.pass(15_000);
    }
    assert_eq!(all, PENDING_MAX);
    let full = site.asked("203.0.113.7", wish()).await;
    assert_eq!(
        (full.status, full.code()),
        (429, "too_many_connect_requests")
    );
    site.pass(900_000);
    assert_eq!(site.asked("203.0.113.7", wish()).await.status, 201);
}

#[tokio::test]
async fn what_an_agent_says_is_bounded_and_stays_text_on_the_page() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    for bad in [
        json!({"host": "a\u{202e}b"}),
        json!({"host": "x".repeat(200)}),
        json!({"cluster": "\u{1b}[2J"}),
        json!({"agent_version": 7}),
    ] {
        let said = site.asked("192.0.2.1", bad.clone()).await;
        assert_eq!((said.status, said.code()), (422, "bad_field"), "{bad}");
    }
    let foreign = [
        ("origin", "https://evil.test"),
        ("x-forwarded-for", "192.0.2.2"),
    ];
    let said = site
        .ask("POST /api/connect/requests", &foreign, Value::Null)
        .await;
    assert_eq!((said.status, said.code()), (403, "origin_refused"));
    let script = "\"><script>alert(1)</script>";
    let body = json!({"cluster": script, "host": script, "agent_version": script});
    let asker = site.asker("192.0.2.3", body).await;
    let admin = site.cookie("192.0.2.4").await;
    let (status, page) = site.page(&asker.id, Some(&admin)).await;
    assert_eq!(status, 200);
    assert!(
        !page.contains("<script") && !page.contains(script),
        "{page}"
    );
    assert!(
        page.contains("&lt;script&gt;") && page.contains(&asker.code),
        "{page}"
    );
    assert!(page.contains("192.0.2.3") && !page.contains(&asker.secret));
}

#[tokio::test]
async fn an_administrator_decides_on_the_page_and_from_our_own_alone() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let asker = site.asker("192.0.2.1", wish()).await;
    let (status, page) = site.page(&asker.id, None).await;
    assert_eq!(status, 401);
    assert!(
        !page.contains(&asker.code) && !page.contains("node-7"),
        "{page}"
    );
    let reader = cookie(&site, "ana", Some(Tier::Read));
    let (status, page) = site.page(&asker.id, Some(&reader)).await;
    assert_eq!(status, 403);
    assert!(!page.contains(&asker.code), "{page}");
    let unknown = site.page("%22%3E%3Cscript%3E", Some(&reader)).await;
    assert_eq!(unknown.0, 404);
    assert!(!unknown.1.contains("<script"), "{}", unknown.1);

    let admin = site.cookie("192.0.2.4").await;
    let (status, page) = site.page(&asker.id, Some(&admin)).await;
    assert_eq!(status, 200);
    assert!(
        page.contains(&asker.code) && page.contains("value=\"prod\""),
        "{page}"
    );
    let form = "decision=approve&cluster=prod&create=true&kind=http";
    for (cookie, origin, wanted) in [
        (Some(&admin), None, 403),
        (Some(&admin), Some("https://evil.test"), 403),
        (Some(&admin), Some("null"), 403),
        (Some(&reader), Some(ORIGIN), 403),
        (None, Some(ORIGIN), 401),
    ] {
        let mut headers = Vec::new();
        headers.extend(cookie.map(|cookie| ("cookie", cookie.as_str())));
        headers.extend(origin.map(|origin| ("origin", origin)));
        let (status, _) = site.form(&asker.id, &headers, form).await;
        assert_eq!(status, wanted, "{origin:?}");
    }
    assert!(site.context.hub.clusters().is_empty());
    let own = [("cookie", admin.as_str()), ("origin", ORIGIN)];
    let (status, _) = site.form(&asker.id, &own, "decision=maybe").await;
    assert_eq!(status, 422);
    let (status, headers) = site.form(&asker.id, &own, form).await;
    assert_eq!(status, 303);
    assert_eq!(headers["location"], format!("/enrol/{}", asker.id));
    let (_, page) = site.page(&asker.id, Some(&admin)).await;
    assert!(page.contains("Approved for cluster prod"), "{page}");
    let (status, _) = site.form(&asker.id, &own, "decision=deny").await;
    assert_eq!(status, 303, "an approval that was not used is taken back");
    let said = site.poll(&asker.id, &asker.secret).await;
    assert_eq!(said.body["reason"], "denied");
    // Refused attempts left their rows.
    let rows = site.rows("agent_register").await;
    let denied = rows
        .iter()
        .filter(|(outcome, _)| outcome == "denied")
        .count();
    assert_eq!((rows.len(), denied), (8, 7), "{rows:?}");
}

#[tokio::test]
async fn where_agents_cannot_ask_they_are_told_why() {
    let mut site = Site::open(sign_in(OLD_KEY, None)).await;
    Arc::get_mut(&mut site.context).unwrap().connect = api::Connects::new(None);
    let said = site.asked("192.0.2.1", wish()).await;
    assert_eq!((said.status, said.code()), (404, "no_connect"));
    assert_eq!(site.poll("0", "x").await.code(), "no_connect");
    let context = Arc::get_mut(&mut site.context).unwrap();
    context.connect = api::Connects::default();
    context.public_url = None;
    let said = site.asked("192.0.2.1", wish()).await;
    assert!(said.body["fix"].as_str().unwrap().contains("--public-url"));
}

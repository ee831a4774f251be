//! Signing in, rights, and what an attacker tries: through the whole API, on a real store.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "identity/connect.rs"]
mod connect;
#[path = "identity/events.rs"]
mod events;
#[path = "identity/fleet.rs"]
mod fleet;
#[path = "identity/personal.rs"]
mod personal;
#[path = "room/site.rs"]
mod room;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_control::api::{self, Context};
use culvert_control::identity::{Admin, SignIn, hash};
use hyper::Request;
use room::{KEY, LIFE, NOW, ORIGIN, Said, Site};
use serde_json::{Value, json};
use tower::ServiceExt as _;

const DAY: u64 = 86_400_000;
const EMAIL: &str = "root@example.test";
const PASSWORD: &str = "correct horse battery";
const OLD_KEY: &str = KEY;
const NEW_KEY: &str = "q8Rk1Vd5Yx0Wn7Jt3Hs9Lb2Pc6Mf4Zg=";
fn sign_in(key: &str, previous: Option<&str>) -> SignIn {
    // One hash for all tests of a process: making it is the slow part.
    static HASH: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let hash = HASH.get_or_init(|| hash(PASSWORD).unwrap());
    let admin = Admin::new(EMAIL, hash).unwrap();
    SignIn::new(key, previous, LIFE, Some(admin), vec![ORIGIN.to_owned()]).unwrap()
}

impl Site {
    /// The same hub with other keys, as after a restart.
    fn with(&self, sign_in: SignIn) -> Self {
        let old = &self.context;
        let (hub, metrics) = (old.hub.clone(), old.metrics.clone());
        let context = Context {
            hosts: old.hosts.clone(),
            public_url: old.public_url.clone(),
            sign_in: Some(sign_in),
            ..Context::new(hub, metrics, old.licensing.clone())
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            context: Arc::new(context),
            clock: self.clock.clone(),
        }
    }

    async fn ask(&self, line: &str, headers: &[(&str, &str)], body: Value) -> Said {
        self.ask_as(api::Caller::Tcp, line, headers, body).await
    }

    async fn login(&self, password: &str, from: &str) -> Said {
        let headers = [("x-forwarded-for", from), ("origin", ORIGIN)];
        let body = json!({"email": EMAIL, "password": password});
        self.ask("POST /api/auth/login", &headers, body).await
    }

    /// The cookie of a fresh session.
    async fn cookie(&self, from: &str) -> String {
        let said = self.login(PASSWORD, from).await;
        assert_eq!(said.status, 200, "{}", said.body);
        said.session().unwrap()
    }

    async fn whoami(&self, cookie: &str) -> Said {
        self.ask("GET /api/whoami", &[("cookie", cookie)], Value::Null)
            .await
    }

    /// Outcome and reason of the rows of a verb, oldest first.
    async fn rows(&self, verb: &str) -> Vec<(String, String)> {
        let line = format!("GET /api/audit?verb={verb}");
        let root = api::Caller::Socket { uid: 0 };
        let said = self.ask_as(root, &line, &[], Value::Null).await;
        let items = said.body["items"].as_array().unwrap().iter().rev();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        items
            .map(|row| (text(&row["outcome"]), text(&row["reason"])))
            .collect()
    }
}

#[tokio::test]
async fn the_break_glass_login_begins_a_session_and_leaves_its_rows() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let config = site.ask("GET /api/auth/config", &[], Value::Null).await;
    assert_eq!(config.body, json!({"break_glass": true, "providers": []}));
    let refused = site.login("wrong", "192.0.2.1").await;
    assert_eq!((refused.status, refused.code()), (401, "bad_login"));
    assert!(refused.session().is_none());
    let said = site.login(PASSWORD, "192.0.2.1").await;
    assert_eq!((said.status, &said.body["tier"]), (200, &json!("admin")));
    assert_eq!(said.body["warning"], Value::Null);
    let set = said.headers["set-cookie"].to_str().unwrap();
    assert!(set.starts_with("__Host-culvert_session="), "{set}");
    let flags = "; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=28800";
    assert!(set.ends_with(flags) && set.len() < 4_096, "{set}");
    assert!(!set.contains(EMAIL), "what is sealed cannot be read");
    let cookie = said.session().unwrap();
    let who = site.whoami(&cookie).await;
    let wanted = json!({
        "actor": "break-glass:root@example.test", "auditEnabled": true, "auditScope": "all",
        "mode": "tier", "tier": "admin",
    });
    assert_eq!((who.status, &who.body), (200, &wanted));
    let fully = site
        .ask("GET /api/auth/whoami", &[("cookie", &cookie)], Value::Null)
        .await;
    assert_eq!(
        (&fully.body["email"], &fully.body["authzMode"]),
        (&json!(EMAIL), &json!("tier"))
    );
    assert_eq!(fully.body["expiresAt"], "2025-11-21T08:00:00Z");
    let rows = site.rows("break_glass_login").await;
    let row = |outcome: &str, reason: &str| (outcome.to_owned(), reason.to_owned());
    assert_eq!(rows, [row("denied", "bad_login"), row("success", "")]);
    let text = site.context.metrics.registry.render();
    assert!(
        text.contains("culvert_break_glass_logins_total{result=\"success\"} 1"),
        "{text}"
    );
    // An administrator is told of the licence at each login, once the server was not seen for long.
    site.clock.store(NOW + 14 * DAY, Ordering::SeqCst);
    let warned = site.login(PASSWORD, "192.0.2.1").await;
    assert_eq!(warned.body["warning"], "Cannot reach license server");
}

#[tokio::test]
async fn a_flood_of_logins_is_bounded_for_an_address_and_in_all() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    for _ in 0..5 {
        assert_eq!(
            site.login("wrong", "192.0.2.1, 198.51.100.7").await.status,
            401
        );
    }
    // The right password as well: who guesses does not learn that it was right.
    let limited = site.login(PASSWORD, "203.0.113.9, 198.51.100.7").await;
    assert_eq!((limited.status, limited.code()), (429, "too_many_logins"));
    assert!(limited.headers.contains_key("retry-after") && limited.session().is_none());
    assert_eq!(site.login(PASSWORD, "198.51.100.8").await.status, 200);
    site.clock.fetch_add(60_000, Ordering::SeqCst);
    assert_eq!(site.login(PASSWORD, "198.51.100.7").await.status, 200);
}

#[tokio::test]
async fn a_session_changes_something_from_our_own_pages_only() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let cookie = site.cookie("192.0.2.1").await;
    let make = |id: &'static str, headers: Vec<(&'static str, String)>| {
        let (site, cookie) = (&site, cookie.clone());
        async move {
            let mut all = vec![("cookie", cookie.as_str())];
            all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
            site.ask("POST /api/v1/clusters", &all, json!({"id": id}))
                .await
        }
    };
    let origin = |text: &str| ("origin", text.to_owned());
    for (headers, status) in [
        (vec![], 403),
        (vec![origin("null")], 403),
        (vec![origin("https://evil.test")], 403),
        (vec![origin("http://hub.test")], 403),
        (vec![origin("https://hub.test:444")], 403),
        (vec![origin("https://hub.test.evil.test")], 403),
        (vec![origin("https://HUB.test")], 403),
        (vec![origin(ORIGIN), origin("https://evil.test")], 403),
        (vec![origin(ORIGIN)], 201),
    ] {
        let said = make("prod", headers.clone()).await;
        assert_eq!(said.status, status, "{headers:?}");
        assert_eq!(
            said.code() == "origin_refused",
            status == 403,
            "{headers:?}"
        );
    }
    // A login from elsewhere signs nobody in, and nobody is signed out from there.
    let foreign = [("origin", "https://evil.test")];
    let body = json!({"email": EMAIL, "password": PASSWORD});
    assert_eq!(
        site.ask("POST /api/auth/login", &foreign, body)
            .await
            .status,
        403
    );
    assert_eq!(
        site.ask("POST /api/auth/logout", &foreign, Value::Null)
            .await
            .status,
        403
    );
    // Another host by DNS is refused whatever the cookie.
    let rebound = [("cookie", cookie.as_str()), ("host", "evil.test")];
    assert_ne!(
        site.ask("GET /api/whoami", &rebound, Value::Null)
            .await
            .status,
        200
    );
    let reasons = site.rows("cluster_create").await;
    assert_eq!(
        reasons
            .iter()
            .filter(|(_, why)| why == "origin_refused")
            .count(),
        8
    );
}

#[tokio::test]
async fn forged_changed_old_and_doubled_cookies_open_nothing() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let cookie = site.cookie("192.0.2.1").await;
    assert_eq!(site.whoami(&cookie).await.status, 200);
    let (name, value) = cookie.split_once('=').unwrap();
    let mut opened = 0;
    for at in (0..value.len()).step_by(7) {
        let mut bytes = value.to_owned().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = format!("{name}={}", String::from_utf8(bytes).unwrap());
        opened += u32::from(site.whoami(&changed).await.status == 200);
    }
    assert_eq!(opened, 0);
    let stranger = Site::open(sign_in(NEW_KEY, None)).await;
    let forged = stranger.cookie("192.0.2.1").await;
    for bad in [
        forged,
        format!("{cookie}; {cookie}"),
        format!("__Host-culvert_login={value}"),
        format!("{name}="),
        format!("{name}={}", "A".repeat(5_000)),
    ] {
        let said = site.whoami(&bad).await;
        assert_eq!(
            (said.status, said.code()),
            (401, "unauthenticated"),
            "{bad}"
        );
    }
    // Half idle it is sealed anew; unused it ends; used it ends with its life.
    site.clock.store(NOW + 900_000, Ordering::SeqCst);
    let renewed = site.whoami(&cookie).await.session().unwrap();
    assert_ne!(renewed, cookie);
    assert!(
        site.whoami(&renewed).await.session().is_none(),
        "not at each request"
    );
    site.clock.store(NOW + 1_800_000, Ordering::SeqCst);
    assert_eq!(site.whoami(&cookie).await.status, 401);
    let mut held = renewed;
    for minute in (31..480).step_by(14) {
        site.clock.store(NOW + minute * 60_000, Ordering::SeqCst);
        let said = site.whoami(&held).await;
        assert_eq!(said.status, 200, "minute {minute}");
        held = said.session().unwrap_or(held);
    }
    site.clock.store(NOW + 8 * 3_600_000, Ordering::SeqCst);
    assert_eq!(site.whoami(&held).await.status, 401);
}

#[tokio::test]
async fn a_changed_key_signs_nobody_out_while_the_old_one_is_kept() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let old = site.cookie("192.0.2.1").await;
    let overlap = site.with(sign_in(NEW_KEY, Some(OLD_KEY)));
    let said = overlap.whoami(&old).await;
    assert_eq!(said.status, 200);
    let anew = said.session().expect("sealed with the new key at once");
    let after = site.with(sign_in(NEW_KEY, None));
    assert_eq!(after.whoami(&old).await.status, 401);
    assert_eq!(after.whoami(&anew).await.status, 200);
}

#[tokio::test]
async fn who_signed_out_everywhere_is_out_and_a_kept_cookie_is_worth_nothing() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let (here, there) = (
        site.cookie("192.0.2.1").await,
        site.cookie("192.0.2.2").await,
    );
    let own = [("cookie", here.as_str()), ("origin", ORIGIN)];
    let out = site.ask("POST /api/auth/logout", &own, Value::Null).await;
    assert_eq!(out.status, 204);
    let cookies: Vec<_> = out.headers.get_all("set-cookie").iter().collect();
    assert!(
        cookies
            .iter()
            .all(|it| it.to_str().unwrap().ends_with("Max-Age=0"))
    );
    assert_eq!(cookies.len(), 2);
    let out = site
        .ask("POST /api/auth/logout/everywhere", &own, Value::Null)
        .await;
    assert_eq!(out.status, 204);
    for cookie in [&here, &there] {
        assert_eq!(
            site.whoami(cookie).await.status,
            401,
            "a replay after signing out"
        );
    }
    let again = site.cookie("192.0.2.3").await;
    assert_eq!(site.whoami(&again).await.status, 200);
    assert_eq!(site.rows("logout_everywhere").await.len(), 1);
}

#[tokio::test]
async fn a_machines_token_does_what_its_scopes_say_until_it_ends() {
    let site = Site::open(sign_in(OLD_KEY, None)).await;
    let root = api::Caller::Socket { uid: 0 };
    let mint = |scopes: Value| {
        let (site, body) = (
            &site,
            json!({"name": "ci", "scopes": scopes, "expires_in_seconds": 3_600}),
        );
        async move {
            site.ask_as(root, "POST /api/v1/api-tokens", &[], body)
                .await
        }
    };
    let bearer = |said: &Said| format!("Bearer {}", said.body["token"].as_str().unwrap());
    for bad in [json!([]), json!(["everything"]), json!(["read", "x"])] {
        assert_eq!(mint(bad).await.status, 422);
    }
    let reads = mint(json!(["read"])).await;
    assert_eq!(reads.status, 201, "{}", reads.body);
    let reader = bearer(&reads);
    let builder = bearer(&mint(json!(["read", "clusters"])).await);
    let minter = bearer(&mint(json!(["tokens"])).await);
    let watcher = bearer(&mint(json!(["read", "audit"])).await);
    let root_like = bearer(&mint(json!(["admin"])).await);
    for (token, line, status) in [
        (&reader, "GET /api/v1/clusters", 200),
        (&reader, "POST /api/v1/clusters", 403),
        (&reader, "GET /api/v1/api-tokens", 403),
        (&minter, "GET /api/v1/clusters", 403),
        (&builder, "POST /api/v1/clusters", 201),
        (&builder, "POST /api/v1/clusters/prod/tokens", 403),
        (&builder, "POST /api/v1/clusters/prod/revoke", 403),
        (&minter, "POST /api/v1/clusters/prod/tokens", 201),
        (&minter, "DELETE /api/v1/clusters/prod", 403),
        (&minter, "POST /api/v1/api-tokens", 403),
        (&root_like, "DELETE /api/v1/clusters/prod", 204),
        (&root_like, "GET /api/v1/api-tokens", 200),
    ] {
        let body = if line.ends_with("/clusters") {
            json!({"id": "prod"})
        } else {
            Value::Null
        };
        let said = site.ask(line, &[("authorization", token)], body).await;
        assert_eq!(said.status, status, "{line}: {}", said.body);
    }
    let denied = site.rows("cluster_create").await;
    assert_eq!(denied[0], ("denied".to_owned(), "forbidden".to_owned()));
    // Rows of others are for those who have the right.
    for (token, scope, sees) in [(&builder, "self", false), (&watcher, "all", true)] {
        let said = site
            .ask(
                "GET /api/audit?verb=cluster_delete",
                &[("authorization", token)],
                Value::Null,
            )
            .await;
        assert_eq!(said.headers["x-audit-scope"], scope);
        assert_eq!(said.body["total"], if sees { 2 } else { 0 }, "{scope}");
    }
    let listed = site
        .ask_as(root, "GET /api/v1/api-tokens", &[], Value::Null)
        .await;
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 5);
    assert!(!listed.body.to_string().contains(&reader["Bearer ".len()..]));
    // Neither the text nor its secret part is anywhere on disk.
    let secret = reader.rsplit('_').next().unwrap().as_bytes();
    assert!(
        !on_disk(site.dir.path(), secret),
        "a token is stored in the clear"
    );
    let id = reads.body["token_id"].as_str().unwrap();
    let line = format!("DELETE /api/v1/api-tokens/{id}");
    assert_eq!(site.ask_as(root, &line, &[], Value::Null).await.status, 204);
    assert_eq!(site.ask_as(root, &line, &[], Value::Null).await.status, 404);
    let reading = |token: String| {
        let site = &site;
        async move {
            let headers = [("authorization", token.as_str())];
            site.ask("GET /api/v1/clusters", &headers, Value::Null)
                .await
                .status
        }
    };
    assert_eq!(reading(reader).await, 401);
    assert_eq!(reading(builder.clone()).await, 200);
    site.clock.fetch_add(3_600_000, Ordering::SeqCst);
    assert_eq!(reading(builder).await, 401, "its time is over");
    assert_eq!(site.rows("api_token_revoke").await.len(), 2);
}

fn on_disk(dir: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn weak_and_half_settings_are_refused_and_a_password_is_hashed() {
    let control = |args: &[&str], input: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_culvert-control"))
            .env_clear()
            .args(["--state-dir", "/nowhere", "--config", "/dev/null"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let done = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let (code, hash, said) = control(&["hash-password"], "correct horse battery\n");
    assert_eq!(code, Some(0), "{said}");
    assert!(Admin::new(EMAIL, hash.trim()).is_ok(), "{hash}");
    assert_eq!(control(&["hash-password"], "short\n").0, Some(2));
    let public = ["--public-url", "https://hub.test"];
    let of = |args: &[&str]| control(&[&public[..], args].concat(), "");
    let weak = "changemechangemechangemechangeme";
    for (args, word) in [
        (vec!["--cookie-password", "short"], "32 bytes"),
        (vec!["--cookie-password", weak], "too regular"),
        (vec!["--admin-email", EMAIL], "--admin-password-hash"),
        (
            vec!["--admin-email", EMAIL, "--admin-password-hash", hash.trim()],
            "--cookie-password",
        ),
        (
            vec![
                "--cookie-password",
                OLD_KEY,
                "--admin-email",
                EMAIL,
                "--admin-password-hash",
                "$2b$x",
            ],
            "argon2id",
        ),
        (vec!["--allowed-origins", "ftp://x"], "https://"),
    ] {
        let (code, _, said) = of(&args);
        assert_eq!(code, Some(2), "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
        assert!(!said.contains(weak) && !said.contains(OLD_KEY), "{said}");
    }
    let (code, _, said) = control(&["--cookie-password", OLD_KEY], "");
    assert_eq!(code, Some(2));
    assert!(said.contains("--public-url"), "{said}");
}

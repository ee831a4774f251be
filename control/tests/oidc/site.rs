//! Control's whole API on a real store, and a browser's part of signing in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_control::api::{self, Context};
use culvert_control::hub::Hub;
use culvert_control::identity::{Client, Mapping, Oidc, Provider, SignIn, Tiers};
use culvert_control::license::{LicenseConfig, LicenseRecord, Licensing};
use culvert_control::metrics::Metrics;
use culvert_control::store::{Dsn, Store};
use culvert_identity::{Life, Tier};
use culvert_licence::KeySet;
use culvert_net::crypto::SigningKey;
use http_body_util::BodyExt as _;
use hyper::{HeaderMap, Request};
use openidconnect::{ClientId, ClientSecret, IssuerUrl, RedirectUrl, Scope};
use serde_json::Value;
use tower::ServiceExt as _;

use crate::issuer::Issuer;

pub const NOW: u64 = 1_763_683_200_000;
pub const ORIGIN: &str = "https://hub.test";
pub const CLIENT: &str = "culvert";
pub const SECRET: &str = "a secret of the client & more";
const KEY: &str = "Zq3v8xW1pL0sT7yB9nK4mR2cV6hJ5gDe";

pub struct Site {
    _dir: tempfile::TempDir,
    pub context: Arc<Context>,
    pub clock: Arc<AtomicU64>,
}

pub struct Said {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub body: Value,
}

/// A sign-in on its way, as its browser knows it.
pub struct Begun {
    pub cookie: String,
    /// What the provider is asked.
    pub query: HashMap<String, String>,
}

pub fn mapping() -> Mapping {
    Mapping {
        groups_claim: "groups".to_owned(),
        groups_filter: Vec::new(),
        username_claim: "sub".to_owned(),
        prefix: String::new(),
    }
}

pub fn provider(name: &str, issuer: &Issuer, mapping: Mapping) -> Provider {
    let client = Client {
        name: name.to_owned(),
        title: "Corp".to_owned(),
        issuer: IssuerUrl::new(issuer.url.clone()).unwrap(),
        id: ClientId::new(CLIENT.to_owned()),
        secret: Some(ClientSecret::new(SECRET.to_owned())),
        scopes: vec![Scope::new("email".to_owned())],
        callback: RedirectUrl::new(format!("{ORIGIN}/api/auth/callback")).unwrap(),
        mapping,
    };
    Provider::new(client, issuer.outbound())
}

impl Site {
    pub async fn start(providers: Vec<Provider>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(&Dsn::at(dir.path()), NOW).await.unwrap();
        let (metrics, clock) = (Arc::new(Metrics::new()), Arc::new(AtomicU64::new(NOW)));
        let license = LicenseConfig {
            text: None,
            files: Vec::new(),
            keys: KeySet::embedded(),
            mode: "managed".to_owned(),
            org_name: "Default".to_owned(),
            heartbeat: None,
        };
        let record = LicenseRecord::default();
        let licensing = Licensing::start(license, record, metrics.clone(), NOW);
        let told = clock.clone();
        let key = SigningKey::generate().unwrap();
        let now = Box::new(move || told.load(Ordering::SeqCst));
        let hub = Arc::new(Hub::new(store, loaded, key, metrics.clone(), now));
        let life = Life {
            idle_s: 1_800,
            absolute_s: 8 * 3_600,
        };
        let mut tiers = Tiers::default();
        tiers.give("ops".to_owned(), Tier::Admin);
        tiers.give("dev".to_owned(), Tier::Read);
        let origins = vec![ORIGIN.to_owned()];
        let mut sign_in = SignIn::new(KEY, None, life, None, origins).unwrap();
        sign_in.oidc = Oidc::new(providers);
        sign_in.tiers = tiers;
        let context = Arc::new(Context {
            hub,
            metrics,
            licensing: Arc::new(licensing),
            admin: None,
            hosts: vec!["hub.test".to_owned()],
            public_url: Some(ORIGIN.to_owned()),
            personal_life_seconds: api::PERSONAL_LIFE_SECONDS_DEFAULT,
            sign_in: Some(sign_in),
            events: api::Events::new(1, Default::default()),
            unknown: api::Unknown::default(),
            fanout: None,
            pages: api::Pages::default(),
        });
        Self {
            _dir: dir,
            context,
            clock,
        }
    }

    /// Time goes on.
    pub fn wait(&self, seconds: u64) {
        self.clock.fetch_add(seconds * 1_000, Ordering::SeqCst);
    }

    pub fn now_s(&self) -> u64 {
        self.clock.load(Ordering::SeqCst) / 1_000
    }

    pub async fn ask(&self, line: &str, headers: &[(&str, &str)]) -> Said {
        self.ask_as(api::Caller::Tcp, line, headers).await
    }

    async fn ask_as(&self, caller: api::Caller, line: &str, headers: &[(&str, &str)]) -> Said {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "hub.test")
            .extension(caller);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        let router = api::router(self.context.clone());
        let (head, body) = router.oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Said {
            status: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        }
    }

    /// Begins a sign-in; each from an address of its own, so that only tests of limits meet them.
    pub async fn begin(&self, query: &str) -> Begun {
        let said = self
            .ask(
                &format!("GET /api/auth/login{query}"),
                &[("x-forwarded-for", &fresh())],
            )
            .await;
        assert_eq!(said.status, 303, "{}", said.text);
        let url = url::Url::parse(said.location()).unwrap();
        Begun {
            cookie: said.cookie("__Host-culvert_login").unwrap(),
            query: url.query_pairs().into_owned().collect(),
        }
    }

    /// Comes back with these parameters and this cookie.
    pub async fn back(&self, params: &[(&str, &str)], cookie: &str) -> Said {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(params);
        let line = format!("GET /api/auth/callback?{}", query.finish());
        self.ask(&line, &[("cookie", cookie), ("x-forwarded-for", &fresh())])
            .await
    }

    /// Comes back as a provider sends a browser.
    pub async fn finish(&self, begun: &Begun, issuer: &Issuer) -> Said {
        let params = [
            ("code", "c-1"),
            ("state", begun.state()),
            ("iss", &issuer.url),
        ];
        self.back(&params, &begun.cookie).await
    }

    pub async fn whoami(&self, cookie: &str) -> Said {
        self.ask("GET /api/auth/whoami", &[("cookie", cookie)])
            .await
    }

    /// Actor, outcome and reason of the rows of sign-ins, oldest first.
    pub async fn rows(&self) -> Vec<(String, String, String)> {
        let root = api::Caller::Socket { uid: 0 };
        let said = self
            .ask_as(root, "GET /api/audit?verb=login&limit=500", &[])
            .await;
        let items = said.body["items"].as_array().unwrap().iter().rev();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let row = |row: &Value| {
            (
                text(&row["actor"]["sub"]),
                text(&row["outcome"]),
                text(&row["reason"]),
            )
        };
        items.map(row).collect()
    }
}

impl Begun {
    pub fn state(&self) -> &str {
        &self.query["state"]
    }

    pub fn nonce(&self) -> &str {
        &self.query["nonce"]
    }
}

impl Said {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub fn location(&self) -> &str {
        self.headers["location"].to_str().unwrap()
    }

    /// `name=value` of a cookie that is set, not taken.
    pub fn cookie(&self, name: &str) -> Option<String> {
        let set = self.headers.get_all("set-cookie").iter();
        let set = set.map(|it| it.to_str().unwrap().split(';').next().unwrap());
        let mut found = set.filter(|pair| {
            pair.split_once('=')
                .is_some_and(|(key, value)| key == name && !value.is_empty())
        });
        found.next().map(str::to_owned)
    }

    pub fn session(&self) -> Option<String> {
        self.cookie("__Host-culvert_session")
    }

    /// Whether the cookie of the sign-in is taken away.
    pub fn takes_login(&self) -> bool {
        let mut set = self.headers.get_all("set-cookie").iter();
        set.any(|it| it.to_str().unwrap().starts_with("__Host-culvert_login=;"))
    }
}

fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("10.{}.{}.{}", next >> 16 & 255, next >> 8 & 255, next & 255)
}

//! A browser's part of signing in, beside the shared room.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_control::api;
use culvert_control::identity::{Client, Mapping, Oidc, Provider, SignIn, Tiers};
use culvert_identity::Tier;
use openidconnect::{ClientId, ClientSecret, IssuerUrl, RedirectUrl, Scope};
use serde_json::Value;

use crate::issuer::Issuer;
use crate::room::{KEY, LIFE};
pub use crate::room::{ORIGIN, Said, Site};

pub const CLIENT: &str = "culvert";
pub const SECRET: &str = "a secret of the client & more";

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
        let mut tiers = Tiers::default();
        tiers.give("ops".to_owned(), Tier::Admin);
        tiers.give("dev".to_owned(), Tier::Read);
        let origins = vec![ORIGIN.to_owned()];
        let mut sign_in = SignIn::new(KEY, None, LIFE, None, origins).unwrap();
        sign_in.oidc = Oidc::new(providers);
        sign_in.tiers = tiers;
        Self::open(sign_in).await
    }

    /// Time goes on.
    pub fn wait(&self, seconds: u64) {
        self.clock.fetch_add(seconds * 1_000, Ordering::SeqCst);
    }

    pub fn now_s(&self) -> u64 {
        self.clock.load(Ordering::SeqCst) / 1_000
    }

    pub async fn ask(&self, line: &str, headers: &[(&str, &str)]) -> Said {
        self.ask_as(api::Caller::Tcp, line, headers, Value::Null)
            .await
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
            cookie: said.cookie_of("__Host-culvert_login").unwrap(),
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
            .ask_as(
                root,
                "GET /api/audit?verb=login&limit=500",
                &[],
                Value::Null,
            )
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
    pub fn location(&self) -> &str {
        self.headers["location"].to_str().unwrap()
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

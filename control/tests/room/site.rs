//! Control's whole API on a real store, asked without a socket.
#![allow(dead_code, reason = "each set of tests uses its part of the room")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_control::api::{self, Context};
use culvert_control::hub::Hub;
use culvert_control::identity::SignIn;
use culvert_control::license::{LicenseConfig, LicenseRecord, Licensing, Server};
use culvert_control::metrics::Metrics;
use culvert_control::outbound::Outbound;
use culvert_control::store::{Dsn, Store};
use culvert_identity::Life;
use culvert_licence::KeySet;
use culvert_net::crypto::SigningKey;
use http_body_util::BodyExt as _;
use hyper::{HeaderMap, Request};
use serde_json::Value;
use tower::ServiceExt as _;

pub const NOW: u64 = 1_763_683_200_000;
pub const ORIGIN: &str = "https://hub.test";
/// The cookie password.
pub const KEY: &str = "Zq3v8xW1pL0sT7yB9nK4mR2cV6hJ5gDe";
pub const LIFE: Life = Life {
    idle_s: 1_800,
    absolute_s: 8 * 3_600,
};

/// One control process.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub context: Arc<Context>,
    pub clock: Arc<AtomicU64>,
}

/// What it answered.
pub struct Said {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Site {
    /// A fresh one, where people sign in so.
    pub async fn open(sign_in: SignIn) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(&Dsn::at(dir.path()), NOW).await.unwrap();
        let (metrics, clock) = (Arc::new(Metrics::new()), Arc::new(AtomicU64::new(NOW)));
        // A license server that is never asked: the ladder counts.
        let license = LicenseConfig {
            text: None,
            files: Vec::new(),
            keys: KeySet::embedded(),
            mode: "managed".to_owned(),
            org_name: "Default".to_owned(),
            heartbeat: Some(Server {
                url: "https://license.test/".to_owned(),
                outbound: Outbound::without_trust("a test asks nobody".to_owned()),
            }),
        };
        let mut record = LicenseRecord::default();
        record.ladder = record.ladder.at(NOW, true);
        let licensing = Licensing::start(license, record, metrics.clone(), NOW);
        let told = clock.clone();
        let key = SigningKey::generate().unwrap();
        let now = Box::new(move || told.load(Ordering::SeqCst));
        let hub = Arc::new(Hub::new(store, loaded, key, metrics.clone(), now));
        let context = Arc::new(Context {
            hosts: vec!["hub.test".to_owned()],
            public_url: Some(ORIGIN.to_owned()),
            sign_in: Some(sign_in),
            ..Context::new(hub, metrics, Arc::new(licensing))
        });
        Self {
            dir,
            context,
            clock,
        }
    }

    pub async fn ask_as(
        &self,
        caller: api::Caller,
        line: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Said {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .extension(caller);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "hub.test");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let text = match body.is_null() {
            true => String::new(),
            false => body.to_string(),
        };
        let request = request.body(axum::body::Body::from(text)).unwrap();
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
}

impl Said {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// `name=value` of a cookie that is set, not taken.
    pub fn cookie_of(&self, name: &str) -> Option<String> {
        let set = self.headers.get_all("set-cookie").iter();
        let set = set.map(|it| it.to_str().unwrap().split(';').next().unwrap());
        let mut found = set.filter(|pair| {
            pair.split_once('=')
                .is_some_and(|(key, value)| key == name && !value.is_empty())
        });
        found.next().map(str::to_owned)
    }

    /// That of a session which has begun or goes on.
    pub fn session(&self) -> Option<String> {
        self.cookie_of("__Host-culvert_session")
    }
}

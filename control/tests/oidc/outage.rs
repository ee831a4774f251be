//! A provider that is down, silent or lies about itself: new sign-ins fail, and nothing else.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::issuer::Issuer;
use crate::site::{ORIGIN, Site, mapping, provider};
use crate::tokens::{KEYS, claims};

#[tokio::test]
async fn a_provider_that_is_gone_takes_nothing_but_new_sign_ins() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let begun = site.begin("").await;
    issuer.gives(&KEYS.token("ES256", &claims(&site, &issuer, &begun)));
    let cookie = site.finish(&begun, &issuer).await.session().unwrap();
    let late = site.begin("").await;
    issuer.ends();
    let said = site.finish(&late, &issuer).await;
    assert_eq!(
        (said.status, said.code()),
        (503, "idp_unreachable"),
        "{}",
        said.text
    );
    assert_eq!(said.body["side"], "identity provider");
    assert!(
        said.headers.contains_key("retry-after")
            && said.body["fix"].as_str().unwrap().contains("administrator")
    );
    // Whoever is in stays in, is sealed anew, signs out: nobody asks the provider for it.
    site.wait(1_000);
    let who = site.whoami(&cookie).await;
    assert_eq!(who.status, 200);
    let renewed = who.session().unwrap();
    site.wait(1_500);
    assert_eq!(site.whoami(&renewed).await.status, 200);
    let headers = [("cookie", renewed.as_str()), ("origin", ORIGIN)];
    assert_eq!(
        site.ask("POST /api/auth/logout", &headers).await.status,
        200
    );
    // Two hours on: what it said of itself is old, and it still cannot be asked.
    site.wait(7_200);
    let begun = site.begin("").await;
    assert_eq!(site.finish(&begun, &issuer).await.code(), "idp_unreachable");
}

#[tokio::test]
async fn a_provider_that_never_answers_is_waited_for_once() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    issuer.behaviour.lock().is_silent = true;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let started = Instant::now();
    let first = async { site.ask("GET /api/auth/login", &[]).await };
    let second = async { site.ask("GET /api/auth/login", &[]).await };
    let third = async { site.ask("GET /api/whoami", &[]).await };
    let (first, second, third) = tokio::join!(first, second, third);
    assert_eq!(
        (first.code(), second.code()),
        ("idp_unreachable", "idp_unreachable")
    );
    assert_eq!(third.status, 401);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(9), "{took:?}");
    assert_eq!(
        issuer.count("/.well-known/openid-configuration"),
        1,
        "the second had the same answer"
    );
    // It recovers, and after a pause somebody asks again.
    issuer.behaviour.lock().is_silent = false;
    site.wait(4);
    let begun = site.begin("").await;
    issuer.gives(&KEYS.token("ES256", &claims(&site, &issuer, &begun)));
    assert_eq!(site.finish(&begun, &issuer).await.status, 303);
}

#[tokio::test]
async fn what_a_provider_says_of_itself_is_checked() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let document = |name: &str, value: serde_json::Value| {
        let mut document = Issuer::document(&issuer.url);
        document[name] = value;
        document
    };
    let cases = [
        (200, document("issuer", json!("https://evil.test"))),
        (200, document("jwks_uri", json!("http://127.0.0.1:9/jwks"))),
        (200, document("jwks_uri", json!("file:///etc/passwd"))),
        (
            200,
            document("token_endpoint", json!("http://127.0.0.1:9/token")),
        ),
        (
            200,
            document("authorization_endpoint", json!("http://evil.test/")),
        ),
        (
            200,
            document("authorization_endpoint", json!("javascript:alert(1)")),
        ),
        (
            200,
            document("end_session_endpoint", json!("javascript:alert(1)")),
        ),
        (200, document("jwks_uri", json!(1))),
        (200, json!("{}")),
        (200, json!("x".repeat(600 << 10))),
        (404, json!({})),
        (301, json!({})),
    ];
    for (status, body) in cases {
        issuer.says("/.well-known/openid-configuration", status, body.clone());
        site.wait(5);
        let said = site.ask("GET /api/auth/login", &[]).await;
        let text = body.to_string();
        assert_eq!(
            (said.status, said.code()),
            (502, "idp_answer"),
            "{status} {text:.200}: {}",
            said.text
        );
        assert!(said.cookie_of("__Host-culvert_login").is_none() && said.text.len() < 2_048);
        site.wait(30);
    }
    issuer.says(
        "/.well-known/openid-configuration",
        200,
        Issuer::document(&issuer.url),
    );
    site.wait(5);
    site.begin("").await;
}

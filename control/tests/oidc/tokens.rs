//! ID tokens: those of every algorithm that is taken, and twisted ones.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::issuer::Issuer;
use crate::keys::{Keys, b64, hs256};
use crate::site::{Begun, CLIENT, SECRET, Site, mapping, provider};

/// Made once: keys of RSA take their time.
pub static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::new("k1"));
static OTHERS: LazyLock<Keys> = LazyLock::new(|| Keys::new("k1"));

/// Sound claims of a sign-in.
pub fn claims(site: &Site, issuer: &Issuer, begun: &Begun) -> Value {
    json!({
        "iss": issuer.url, "aud": CLIENT, "sub": "ana", "nonce": begun.nonce(),
        "iat": site.now_s(), "exp": site.now_s() + 300,
        "email": "ana@example.test", "email_verified": true, "groups": ["ops", "people"],
    })
}

/// The same with a claim changed, or taken away where it is null.
fn with(mut claims: Value, name: &str, value: Value) -> Value {
    match value {
        Value::Null => claims.as_object_mut().unwrap().remove(name),
        value => claims
            .as_object_mut()
            .unwrap()
            .insert(name.to_owned(), value),
    };
    claims
}

#[tokio::test]
async fn tokens_of_every_algorithm_sign_somebody_in() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    for alg in ["RS256", "PS256", "ES256", "EdDSA"] {
        let begun = site.begin("?return=/c/prod/%3Fa=b").await;
        let asked = |name: &str| begun.query[name].as_str();
        assert_eq!(asked("response_type"), "code");
        assert_eq!(asked("client_id"), CLIENT);
        assert_eq!(asked("scope"), "openid email");
        assert_eq!(asked("code_challenge_method"), "S256");
        assert_eq!(asked("redirect_uri"), "https://hub.test/api/auth/callback");
        issuer.gives(&KEYS.token(alg, &claims(&site, &issuer, &begun)));
        let said = site.finish(&begun, &issuer).await;
        assert_eq!(
            (said.status, said.location()),
            (303, "/c/prod/?a=b"),
            "{alg}: {}",
            said.text
        );
        assert!(said.takes_login());
        let who = site.whoami(&said.session().unwrap()).await;
        assert_eq!(who.status, 200);
        let wanted = json!({
            "actor": "ana", "auditEnabled": true, "auditScope": "all", "mode": "tier",
            "tier": "admin", "subject": "ana", "email": "ana@example.test",
            "groups": ["ops", "people"], "authzMode": "tier", "expiresAt": "2025-11-21T08:00:00Z",
        });
        assert_eq!(who.body, wanted);
        // The code is redeemed with the verifier of this very sign-in, and the client's secret.
        let behaviour = issuer.behaviour.lock();
        let (_, given, body) = behaviour
            .asked
            .iter()
            .rfind(|(path, ..)| path == "/token")
            .unwrap();
        let form: std::collections::HashMap<_, _> =
            url::form_urlencoded::parse(body.as_bytes()).collect();
        let challenge = b64(culvert_net::crypto::sha256(
            form["code_verifier"].as_bytes(),
        ));
        assert_eq!(challenge, begun.query["code_challenge"]);
        assert_eq!(
            (&*form["code"], &*form["grant_type"]),
            ("c-1", "authorization_code")
        );
        assert!(given.starts_with("Basic "), "{given}");
    }
    assert_eq!(
        issuer.count("/.well-known/openid-configuration"),
        1,
        "fetched when it is needed, and kept"
    );
    assert_eq!(issuer.count("/jwks"), 1);
    let row = ("ana".to_owned(), "success".to_owned(), String::new());
    assert_eq!(site.rows().await, vec![row; 4]);
    let text = site.context.metrics.registry.render();
    assert!(
        text.contains("culvert_logins_total{provider=\"corp\",result=\"success\"} 4"),
        "{text}"
    );
}

/// Each with what is said of it.
fn twisted(site: &Site, issuer: &Issuer, begun: &Begun) -> Vec<(&'static str, String)> {
    let good = || claims(site, issuer, begun);
    let signed = |claims: &Value| KEYS.token("ES256", claims);
    let changed = |name: &str, value: Value| signed(&with(good(), name, value));
    let now = site.now_s();
    let mut all = vec![
        ("wrong aud", changed("aud", json!("another"))),
        ("no aud", changed("aud", Value::Null)),
        ("empty aud", changed("aud", json!([]))),
        ("more audiences", changed("aud", json!([CLIENT, "another"]))),
        ("aud of another type", changed("aud", json!({"a": CLIENT}))),
        ("wrong iss", changed("iss", json!("https://evil.test"))),
        (
            "iss with a slash",
            changed("iss", json!(format!("{}/", issuer.url))),
        ),
        ("no iss", changed("iss", Value::Null)),
        ("no exp", changed("exp", Value::Null)),
        ("expired", changed("exp", json!(now - 61))),
        (
            "exp as text",
            changed("exp", json!((now + 300).to_string())),
        ),
        ("issued in the future", changed("iat", json!(now + 120))),
        ("no iat", changed("iat", Value::Null)),
        ("not before the future", changed("nbf", json!(now + 120))),
        ("nbf as text", changed("nbf", json!("0"))),
        ("another nonce", changed("nonce", json!("n".repeat(43)))),
        ("no nonce", changed("nonce", Value::Null)),
        (
            "nonce of another type",
            changed("nonce", json!([begun.nonce()])),
        ),
        ("no sub", changed("sub", Value::Null)),
        ("another azp", changed("azp", json!("another"))),
        ("huge", changed("padding", json!("x".repeat(200 << 10)))),
        (
            "larger than any answer",
            changed("padding", json!("x".repeat(600 << 10))),
        ),
        ("keys of somebody else", OTHERS.token("ES256", &good())),
        (
            "HS256 with the secret",
            hs256("k1-p256", SECRET.as_bytes(), &good()),
        ),
        (
            "HS256 with the public key",
            hs256("k1-rsa", &KEYS.rsa_public(), &good()),
        ),
        ("HS256 without a kid's key", hs256("none", b"", &good())),
    ];
    for alg in ["none", "None", "nOnE", ""] {
        let head = json!({"alg": alg}).to_string();
        let text = format!("{}.{}", b64(head), b64(good().to_string()));
        all.push(("alg none", format!("{text}.")));
        all.push(("alg none with a signature", format!("{text}.{}", b64("x"))));
    }
    let heads = [
        (
            "kid of another key",
            json!({"alg": "ES256", "kid": "k1-rsa"}),
        ),
        (
            "alg of another key",
            json!({"alg": "RS256", "kid": "k1-p256"}),
        ),
        ("RS384", json!({"alg": "RS384", "kid": "k1-rsa"})),
        (
            "crit",
            json!({"alg": "ES256", "kid": "k1-p256", "crit": ["exp"]}),
        ),
        (
            "nested",
            json!({"alg": "ES256", "kid": "k1-p256", "cty": "JWT"}),
        ),
        ("encrypted", json!({"alg": "dir", "enc": "A256GCM"})),
        (
            "kid as path",
            json!({"alg": "ES256", "kid": "../../dev/null"}),
        ),
    ];
    for (what, head) in heads {
        all.push((
            what,
            KEYS.of_texts("ES256", &head.to_string(), &good().to_string()),
        ));
    }
    // A key that the token itself brings.
    let mut own = OTHERS.jwks()["keys"][1].clone();
    own["kid"] = json!("own");
    let head = json!({"alg": "ES256", "kid": "own", "jwk": own, "jku": "https://evil.test/jwks"});
    all.push((
        "its own key",
        OTHERS.of_texts("ES256", &head.to_string(), &good().to_string()),
    ));
    all.extend(doubled(&good(), begun));
    let sound = signed(&good());
    let parts: Vec<&str> = sound.split('.').collect();
    let evil = b64(with(good(), "sub", json!("root")).to_string());
    let signature = parts[2];
    all.extend([
        (
            "other claims under the signature",
            format!("{}.{evil}.{signature}", parts[0]),
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("four parts", format!("{sound}.x")),
        ("a cut signature", sound[..sound.len() - 8].to_owned()),
        ("padding", format!("{sound}==")),
        ("not base64", sound.replace('.', "!.")),
        ("empty", String::new()),
    ]);
    all
}

/// Names that stand twice, signed like that: readers would see one or the other.
fn doubled(good: &Value, begun: &Begun) -> Vec<(&'static str, String)> {
    let head = json!({"alg": "ES256", "kid": "k1-p256"}).to_string();
    let text = good.to_string();
    let inner = &text[1..text.len() - 1];
    let sign = |head: &str, claims: &str| KEYS.of_texts("ES256", head, claims);
    let nonce = begun.nonce();
    vec![
        (
            "aud twice",
            sign(&head, &format!("{{{inner},\"aud\":\"another\"}}")),
        ),
        (
            "aud twice, ours last",
            sign(&head, &format!("{{\"aud\":\"another\",{inner}}}")),
        ),
        (
            "nonce twice",
            sign(&head, &format!("{{\"nonce\":\"x\",{inner}}}")),
        ),
        (
            "nonce twice, escaped",
            sign(&head, &format!("{{{inner},\"n\\u006fnce\":\"{nonce}\"}}")),
        ),
        (
            "sub twice",
            sign(&head, &format!("{{{inner},\"sub\":\"root\"}}")),
        ),
        (
            "groups twice",
            sign(&head, &format!("{{{inner},\"groups\":[\"ops\"]}}")),
        ),
        (
            "alg twice",
            sign(&format!("{{\"alg\":\"none\",{}", &head[1..]), &text),
        ),
        (
            "kid twice",
            sign(&format!("{{\"kid\":\"x\",{}", &head[1..]), &text),
        ),
    ]
}

#[tokio::test]
async fn no_twisted_token_signs_anybody_in() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let count = twisted(&site, &issuer, &site.begin("").await).len();
    assert!(count >= 50, "{count}");
    for number in 0..count {
        let begun = site.begin("").await;
        let (what, token) = twisted(&site, &issuer, &begun).swap_remove(number);
        issuer.gives(&token);
        let said = site.finish(&begun, &issuer).await;
        assert_eq!(
            (said.status, said.code()),
            (502, "idp_answer"),
            "{what}: {}",
            said.text
        );
        assert!(said.session().is_none() && said.takes_login(), "{what}");
        assert_eq!(said.body["side"], "identity provider", "{what}");
        assert!(
            said.text.len() < 2_048,
            "{what}: what is told of it is bounded"
        );
    }
    // The same site takes a sound one: it was the tokens.
    let begun = site.begin("").await;
    issuer.gives(&KEYS.token("ES256", &claims(&site, &issuer, &begun)));
    assert_eq!(site.finish(&begun, &issuer).await.status, 303);
    let rows = site.rows().await;
    let failed = rows
        .iter()
        .filter(|row| row.0 == "unknown" && row.1 == "failure" && row.2 == "idp_answer");
    assert_eq!(
        failed.count(),
        30,
        "rows of one minute have a bound: {rows:?}"
    );
    println!("{count} twisted tokens, none believed");
}

#[tokio::test]
async fn clocks_may_differ_by_a_minute() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let now = site.now_s();
    for (name, time) in [
        ("iat", now + 59),
        ("exp", now - 59),
        ("nbf", now + 59),
        ("azp", 0),
    ] {
        let begun = site.begin("").await;
        let value = match name {
            "azp" => json!(CLIENT),
            _ => json!(time),
        };
        issuer.gives(&KEYS.token("EdDSA", &with(claims(&site, &issuer, &begun), name, value)));
        assert_eq!(site.finish(&begun, &issuer).await.status, 303, "{name}");
    }
}

#[tokio::test]
async fn new_keys_are_fetched_at_most_once_a_minute() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let rotated = Keys::new("k2");
    let sign_in = async |keys: &Keys| {
        let begun = site.begin("").await;
        issuer.gives(&keys.token("ES256", &claims(&site, &issuer, &begun)));
        site.finish(&begun, &issuer).await.status
    };
    assert_eq!(sign_in(&KEYS).await, 303);
    assert_eq!(issuer.count("/jwks"), 1);
    // The provider changes its keys; within the minute of the first fetch nobody asks.
    issuer.says("/jwks", 200, rotated.jwks());
    assert_eq!(sign_in(&rotated).await, 502);
    assert_eq!(issuer.count("/jwks"), 1);
    site.wait(60);
    assert_eq!(
        sign_in(&rotated).await,
        303,
        "an unknown kid: the keys are fetched"
    );
    assert_eq!(issuer.count("/jwks"), 2);
    assert_eq!(sign_in(&KEYS).await, 502, "the old ones are gone");
    // A flood of unknown kids and of bad signatures, ten minutes long.
    let (before, mut flooded) = (issuer.count("/jwks"), 0);
    for minute in 0..10 {
        site.wait(60);
        for number in 0..12 {
            let begun = site.begin("").await;
            // Unknown, or known with a signature of somebody else.
            let kid = match number % 2 {
                0 => format!("u{minute}-{number}"),
                _ => rotated.kid("ES256"),
            };
            let head = json!({"alg": "ES256", "kid": kid}).to_string();
            let text = claims(&site, &issuer, &begun).to_string();
            let token = OTHERS.of_texts("ES256", &head, &text);
            issuer.gives(&token);
            flooded += 1;
            assert_eq!(site.finish(&begun, &issuer).await.status, 502);
        }
    }
    let fetched = issuer.count("/jwks") - before;
    println!("{flooded} tokens of unknown keys in 10 minutes: keys fetched {fetched} times");
    assert_eq!(fetched, 10);
    assert_eq!(sign_in(&rotated).await, 303);
}

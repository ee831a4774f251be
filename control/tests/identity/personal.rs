//! Personal tokens at control's own API (C-32).

use std::time::Duration;

use culvert_control::identity::Tiers;
use culvert_identity::Tier;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::*;

const ROOT: api::Caller = api::Caller::Socket { uid: 0 };

/// A site where ana reads, olga is an administrator, and a group calls itself ben.
async fn site() -> Site {
    let mut sign_in = sign_in(OLD_KEY, None);
    let mut tiers = Tiers::default();
    tiers.give("user:ana".to_owned(), Tier::Read);
    tiers.give("user:olga".to_owned(), Tier::Admin);
    tiers.give("ops".to_owned(), Tier::Admin);
    tiers.give("user:admin-token".to_owned(), Tier::Admin);
    sign_in.tiers = tiers;
    let site = Site::open(sign_in).await;
    for id in ["a", "b"] {
        let body = json!({"id": id});
        let made = site.ask_as(ROOT, "POST /api/clusters", &[], body).await;
        assert_eq!(made.status, 201);
    }
    site
}

/// A token of `principal`: its id, and the value of `Authorization`.
async fn minted(site: &Site, principal: &str, grants: &[&str]) -> (String, String) {
    let body = json!({"principal": principal, "grants": grants, "expires_in_seconds": 3_600});
    let line = "POST /api/personal-tokens";
    let said = site.ask_as(ROOT, line, &[], body).await;
    assert_eq!(said.status, 201, "{}", said.text);
    let text = |name: &str| said.body[name].as_str().unwrap().to_owned();
    (text("token_id"), format!("Bearer {}", text("token")))
}

#[tokio::test]
async fn a_personal_token_acts_as_its_principal_with_their_tier_until_it_ends() {
    let site = site().await;
    let (id, ana) = minted(&site, "ana", &["a/pg", "b/*"]).await;
    let (_, olga) = minted(&site, "olga", &["a/pg"]).await;
    // A principal that is called like a group is no member of it.
    let (_, ops) = minted(&site, "ops", &["a/*"]).await;
    let ask = async |token: &str, line: &str, body: Value| {
        site.ask(line, &[("authorization", token)], body).await
    };
    let who = ask(&ana, "GET /api/auth/whoami", Value::Null).await;
    let wanted = json!({
        "actor": "ana", "auditEnabled": true, "auditScope": "self", "mode": "tier",
        "tier": "read", "subject": "ana", "email": "", "groups": [], "authzMode": "tier",
        "expiresAt": null,
    });
    assert_eq!((who.status, &who.body), (200, &wanted));
    let new = json!({"id": "c"});
    for (token, line, body, status) in [
        (&ana, "GET /api/v1/clusters", Value::Null, 200),
        (&ana, "POST /api/v1/clusters", new.clone(), 403),
        (&ana, "POST /api/v1/clusters/a/tokens", Value::Null, 403),
        (&ana, "POST /api/v1/personal-tokens", Value::Null, 403),
        (&ana, "GET /api/v1/api-tokens", Value::Null, 403),
        (&olga, "POST /api/v1/clusters", new, 201),
        (&olga, "GET /api/v1/api-tokens", Value::Null, 200),
        (&ops, "GET /api/v1/clusters", Value::Null, 403),
        (&ops, "GET /api/v1/audit", Value::Null, 403),
        (&ops, "GET /api/v1/whoami", Value::Null, 200),
    ] {
        let said = ask(token, line, body).await;
        assert_eq!(said.status, status, "{line}: {}", said.text);
    }
    let none = ask(&ops, "GET /api/whoami", Value::Null).await;
    assert_eq!(none.body["tier"], "none");
    // Audited as the person, which the transport tells from their session.
    let line = "GET /api/audit?verb=cluster_create&actor=olga";
    let rows = site.ask_as(ROOT, line, &[], Value::Null).await.body;
    let row = &rows["items"][0];
    assert_eq!(
        (&rows["total"], &row["actor"]["sub"], &row["transport"]),
        (&json!(1), &json!("olga"), &json!("personal-token"))
    );
    // Names of the log's own are nobody's.
    let (_, forged) = minted(&site, "admin-token", &["a/*"]).await;
    let refused = ask(&forged, "GET /api/whoami", Value::Null).await;
    assert_eq!((refused.status, refused.code()), (401, "unauthenticated"));
    // One cluster less is no end; the last one, a revocation and the time are.
    let gone = site.ask_as(ROOT, "DELETE /api/clusters/a", &[], Value::Null);
    assert_eq!(gone.await.status, 204);
    assert_eq!(ask(&ana, "GET /api/whoami", Value::Null).await.status, 200);
    assert_eq!(ask(&olga, "GET /api/whoami", Value::Null).await.status, 401);
    let (_, late) = minted(&site, "ana", &["b/*"]).await;
    let line = format!("DELETE /api/personal-tokens/{id}");
    let taken = site.ask_as(ROOT, &line, &[], Value::Null).await;
    assert_eq!(taken.status, 204);
    let said = ask(&ana, "GET /api/whoami", Value::Null).await;
    assert_eq!((said.status, said.code()), (401, "unauthenticated"));
    assert_eq!(ask(&late, "GET /api/whoami", Value::Null).await.status, 200);
    site.clock.fetch_add(3_600_000, Ordering::SeqCst);
    assert_eq!(ask(&late, "GET /api/whoami", Value::Null).await.status, 401);
}

#[tokio::test]
async fn a_stream_of_events_ends_with_the_personal_token() {
    let site = site().await;
    let (id, ana) = minted(&site, "ana", &["a/*"]).await;
    let request = Request::builder()
        .uri("/api/v1/events")
        .header("host", "hub.test")
        .header("authorization", &ana)
        .extension(api::Caller::Tcp);
    let request = request.body(axum::body::Body::empty()).unwrap();
    let answer = api::router(site.context.clone()).oneshot(request).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    let line = format!("DELETE /api/personal-tokens/{id}");
    assert_eq!(site.ask_as(ROOT, &line, &[], Value::Null).await.status, 204);
    let mut body = answer.into_body().into_data_stream();
    let ended = async {
        let mut text = String::new();
        while let Some(piece) = body.next().await {
            text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
        text
    };
    let text = timeout(Duration::from_secs(15), ended).await.unwrap();
    assert!(text.contains("event: auth_expired"), "{text}");
}

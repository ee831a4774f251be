//! Who somebody is: groups, addresses, tiers, and signing out.

use serde_json::{Value, json};

use crate::issuer::Issuer;
use crate::site::{ORIGIN, Said, Site, mapping, provider};
use crate::tokens::{KEYS, claims};

/// Signs in with these claims changed; null takes one away.
async fn sign_in(site: &Site, issuer: &Issuer, changes: Value) -> Said {
    let begun = site.begin("").await;
    let mut claims = claims(site, issuer, &begun);
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
    issuer.gives(&KEYS.token("ES256", &claims));
    site.finish(&begun, issuer).await
}

#[tokio::test]
async fn who_has_no_group_with_a_tier_sees_only_who_they_are() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    for (groups, tier, clusters, tokens) in [
        (json!(["none"]), json!("none"), 403, 403),
        (json!([]), json!("none"), 403, 403),
        (json!(null), json!("none"), 403, 403),
        (json!("dev"), json!("read"), 200, 403),
        (json!(["dev", "ops"]), json!("admin"), 200, 200),
    ] {
        let cookie = sign_in(&site, &issuer, json!({"groups": groups}))
            .await
            .session()
            .unwrap();
        let who = site.whoami(&cookie).await;
        assert_eq!((who.status, &who.body["tier"]), (200, &tier), "{groups}");
        let ask = async |path: &str| {
            site.ask(&format!("GET {path}"), &[("cookie", &cookie)])
                .await
                .status
        };
        assert_eq!(ask("/api/whoami").await, 200, "{groups}");
        assert_eq!(ask("/api/v1/clusters").await, clusters, "{groups}");
        assert_eq!(ask("/api/v1/api-tokens").await, tokens, "{groups}");
        let out = [("cookie", cookie.as_str()), ("origin", ORIGIN)];
        site.wait(1);
        assert_eq!(
            site.ask("POST /api/auth/logout/everywhere", &out)
                .await
                .status,
            204,
            "{groups}"
        );
        assert_eq!(site.whoami(&cookie).await.status, 401, "{groups}");
    }
}

#[tokio::test]
async fn groups_that_do_not_fit_are_an_error_and_a_filter_helps() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let filtered = {
        let mut mapping = mapping();
        mapping.groups_filter = vec!["culvert-".to_owned()];
        mapping.prefix = "x:".to_owned();
        mapping
    };
    let providers = vec![
        provider("all", &issuer, mapping()),
        provider("some", &issuer, filtered),
    ];
    let site = Site::start(providers).await;
    let many: Vec<String> = (0..200)
        .map(|n| format!("a-group-of-the-company-{n:04}"))
        .collect();
    let mut with_one = many.clone();
    with_one.push("culvert-ops".to_owned());
    let begun = site.begin("?provider=all").await;
    let mut sent = claims(&site, &issuer, &begun);
    sent["groups"] = json!(with_one);
    issuer.gives(&KEYS.token("ES256", &sent));
    let said = site.finish(&begun, &issuer).await;
    assert_eq!(
        (said.status, said.code()),
        (403, "too_many_groups"),
        "{}",
        said.text
    );
    assert!(said.session().is_none() && said.text.contains("--oidc-groups-filter"));
    let begun = site.begin("?provider=some").await;
    sent["nonce"] = json!(begun.nonce());
    issuer.gives(&KEYS.token("ES256", &sent));
    let said = site.finish(&begun, &issuer).await;
    let who = site.whoami(&said.session().unwrap()).await.body;
    assert_eq!(who["groups"], json!(["x:culvert-ops"]));
    let rows = site.rows().await;
    assert_eq!(
        rows[0],
        (
            "ana".to_owned(),
            "denied".to_owned(),
            "too_many_groups".to_owned()
        )
    );
}

#[tokio::test]
async fn claims_that_cannot_be_used_sign_nobody_in() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let mut by_email = mapping();
    by_email.username_claim = "email".to_owned();
    let site = Site::start(vec![provider("corp", &issuer, by_email)]).await;
    for changes in [
        json!({"email_verified": false}),
        json!({"email_verified": null}),
        json!({"email_verified": true, "email": null}),
        json!({"email": "system:admin"}),
        json!({"email": "break-glass:root@example.test"}),
        json!({"email": "a\nb"}),
        json!({"groups": {"ops": true}}),
        json!({"groups": ["ops", 1]}),
        json!({"groups": null, "_claim_names": {"groups": "src1"}}),
        json!({"groups": (0..600).map(|n| n.to_string()).collect::<Vec<_>>()}),
    ] {
        let said = sign_in(&site, &issuer, changes.clone()).await;
        assert_eq!(
            (said.status, said.code()),
            (403, "bad_claims"),
            "{changes}: {}",
            said.text
        );
        assert!(said.session().is_none());
    }
    let said = sign_in(&site, &issuer, json!({})).await;
    let who = site.whoami(&said.session().unwrap()).await.body;
    assert_eq!(who["subject"], "ana@example.test");
}

#[tokio::test]
async fn claims_that_the_token_lacks_come_from_userinfo_of_the_same_subject() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let mut document = Issuer::document(&issuer.url);
    document["userinfo_endpoint"] = json!(format!("{}/userinfo", issuer.url));
    issuer.says("/.well-known/openid-configuration", 200, document);
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let thin = json!({"groups": null, "email": null, "email_verified": null});
    let said = json!({"sub": "ana", "groups": ["ops"], "email": "ana@example.test", "email_verified": true});
    issuer.says("/userinfo", 200, said);
    let signed_in = sign_in(&site, &issuer, thin.clone()).await;
    let who = site.whoami(&signed_in.session().unwrap()).await.body;
    assert_eq!(
        (&who["groups"], &who["email"], &who["tier"]),
        (&json!(["ops"]), &json!("ana@example.test"), &json!("admin"))
    );
    let bearer = issuer
        .behaviour
        .lock()
        .asked
        .iter()
        .find(|(path, ..)| path == "/userinfo")
        .unwrap()
        .1
        .clone();
    assert_eq!(bearer, "Bearer at-1");
    // What the token says stays.
    issuer.says("/userinfo", 200, json!({"sub": "ana", "groups": ["ops"]}));
    let cookie = sign_in(&site, &issuer, json!({"groups": ["dev"], "email": null}))
        .await
        .session()
        .unwrap();
    assert_eq!(site.whoami(&cookie).await.body["tier"], "read");
    for (status, body) in [
        (200, json!({"sub": "bob", "groups": ["ops"]})),
        (200, json!({"groups": ["ops"]})),
        (200, json!("{\"sub\":\"bob\",\"sub\":\"ana\"}")),
        (200, json!("a.b.c")),
        (403, json!({})),
    ] {
        issuer.says("/userinfo", status, body.clone());
        let said = sign_in(&site, &issuer, thin.clone()).await;
        assert_eq!(
            (said.status, said.code()),
            (502, "idp_answer"),
            "{body}: {}",
            said.text
        );
    }
}

#[tokio::test]
async fn signing_out_leads_to_the_provider_too() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let config = site.ask("GET /api/auth/config", &[]).await.body;
    let wanted = json!({"break_glass": false, "providers": [
        {"name": "corp", "title": "Corp", "login_url": "/api/auth/login?provider=corp"},
    ]});
    assert_eq!(config, wanted);
    let cookie = sign_in(&site, &issuer, json!({})).await.session().unwrap();
    let headers = [("cookie", cookie.as_str()), ("origin", ORIGIN)];
    let said = site.ask("POST /api/auth/logout", &headers).await;
    let url = url::Url::parse(said.body["end_session_url"].as_str().unwrap()).unwrap();
    assert_eq!(url.path(), "/end");
    let query: std::collections::HashMap<_, _> = url.query_pairs().collect();
    assert_eq!(query["client_id"], "culvert");
    assert_eq!(
        query["post_logout_redirect_uri"],
        "https://hub.test/api/auth/loggedout"
    );
    assert!(said.session().is_none() && said.headers.get_all("set-cookie").iter().count() == 2);
    let form = [headers[0], headers[1], ("accept", "text/html")];
    let said = site.ask("POST /api/auth/logout", &form).await;
    assert_eq!((said.status, said.location()), (303, url.as_str()));
    // Without a session there is nothing to end there.
    let nobody = [("origin", ORIGIN)];
    assert_eq!(site.ask("POST /api/auth/logout", &nobody).await.status, 204);
}

#[tokio::test]
async fn who_may_sign_in_at_several_providers_chooses_and_comes_back_to_the_page() {
    let (corp, partner) = (
        Issuer::start(KEYS.jwks()).await,
        Issuer::start(KEYS.jwks()).await,
    );
    let mut second = mapping();
    second.prefix = "partner:".to_owned();
    let mut second = provider("partner", &partner, second);
    second.client.title = "Partner <Inc> & \"Sons\"".to_owned();
    let providers = vec![provider("corp", &corp, mapping()), second];
    let site = Site::start(providers).await;
    let browser = [("accept", "text/html,*/*;q=0.8")];
    let path = "%2Fc%2Fprod%2Fx%3Fy%3D1%26z%3D%2522";
    let line = format!("GET /api/auth/login?return={path}");
    let page = site.ask(&line, &browser).await;
    assert_eq!(page.status, 200, "{}", page.text);
    assert!(page.headers.contains_key("content-security-policy"));
    assert!(page.session().is_none() && page.headers.get("set-cookie").is_none());
    let titles = ["Corp", "Partner &lt;Inc&gt; &amp; &quot;Sons&quot;"];
    for (title, issuer) in titles.iter().zip([&corp, &partner]) {
        let before = page.text.split(&format!("\">{title}</a>")).next().unwrap();
        let link = before.rsplit("href=\"").next().unwrap();
        let link = link.replace("&amp;", "&");
        let query = link.strip_prefix("/api/auth/login").unwrap();
        let begun = site.begin(query).await;
        issuer.gives(&KEYS.token("ES256", &claims(&site, issuer, &begun)));
        let said = site.finish(&begun, issuer).await;
        assert_eq!(said.location(), "/c/prod/x?y=1&z=%22", "{link}");
        let who = site.whoami(&said.session().unwrap()).await.body;
        let wanted = if *title == "Corp" {
            "ana"
        } else {
            "partner:ana"
        };
        assert_eq!(who["subject"], wanted);
    }
    // A program is told; another host is none of ours; one provider needs no page.
    let told = site.ask("GET /api/auth/login", &[]).await;
    assert_eq!((told.status, told.code()), (404, "unknown_provider"));
    let elsewhere = site
        .ask("GET /api/auth/login?return=%2F%2Fevil.test", &browser)
        .await;
    assert_eq!(elsewhere.status, 422, "{}", elsewhere.text);
    let alone = Site::start(vec![provider("corp", &corp, mapping())]).await;
    let sent = alone.ask(&line, &browser).await;
    assert_eq!(sent.status, 303);
    assert!(
        sent.location().starts_with(&corp.url),
        "{}",
        sent.location()
    );
}

//! What an attacker tries around the tokens: states, codes, issuers, paths, floods.

use serde_json::json;

use crate::issuer::Issuer;
use crate::site::{Site, mapping, provider};
use crate::tokens::{KEYS, claims};

#[tokio::test]
async fn a_sign_in_comes_back_once_in_time_and_in_its_own_browser() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let mine = site.begin("").await;
    let other = site.begin("").await;
    issuer.gives(&KEYS.token("ES256", &claims(&site, &issuer, &mine)));
    let iss = ("iss", issuer.url.as_str());
    let login = |begun: &crate::site::Begun| begun.cookie.clone();
    let session_as_login = format!(
        "__Host-culvert_session={}",
        login(&mine).split_once('=').unwrap().1
    );
    for (what, state, cookie) in [
        ("no cookie", mine.state(), String::new()),
        ("cookie of another browser", mine.state(), login(&other)),
        ("state of another browser", other.state(), login(&mine)),
        ("no state", "", login(&mine)),
        ("half a state", &mine.state()[..20], login(&mine)),
        (
            "two cookies",
            mine.state(),
            format!("{}; {}", login(&mine), login(&mine)),
        ),
        (
            "a cookie changed",
            mine.state(),
            login(&mine).replace('_', "-") + "A",
        ),
        ("a cookie of another name", mine.state(), session_as_login),
    ] {
        let said = site
            .back(&[("code", "c-1"), ("state", state), iss], &cookie)
            .await;
        assert_eq!(
            (said.status, said.code()),
            (400, "login_lost"),
            "{what}: {}",
            said.text
        );
        assert!(said.session().is_none() && said.takes_login(), "{what}");
    }
    let twice = [
        ("code", "c-1"),
        ("state", mine.state()),
        ("state", mine.state()),
        iss,
    ];
    assert_eq!(site.back(&twice, &mine.cookie).await.status, 422);
    assert_eq!(issuer.count("/token"), 0, "no code was shown to anybody");
    // It is good once, in all that time; the code is not even tried again.
    assert_eq!(site.finish(&mine, &issuer).await.status, 303);
    let again = site.finish(&mine, &issuer).await;
    assert_eq!((again.status, again.code()), (400, "login_lost"));
    assert_eq!(issuer.count("/token"), 1);
    // Ten minutes, and it is over.
    let late = site.begin("").await;
    site.wait(600);
    let said = site.finish(&late, &issuer).await;
    assert_eq!(
        (said.status, said.code()),
        (400, "login_lost"),
        "{}",
        said.text
    );
    assert_eq!(issuer.count("/token"), 1);
}

#[tokio::test]
async fn an_answer_of_another_issuer_gets_no_code_out() {
    let (honest, evil) = (
        Issuer::start(KEYS.jwks()).await,
        Issuer::start(KEYS.jwks()).await,
    );
    let mut behind = mapping();
    behind.prefix = "evil:".to_owned();
    let providers = vec![
        provider("honest", &honest, mapping()),
        provider("evil", &evil, behind),
    ];
    let site = Site::start(providers).await;
    let nobody = site.ask("GET /api/auth/login", &[]).await;
    assert_eq!((nobody.status, nobody.code()), (404, "unknown_provider"));
    assert!(nobody.text.contains("honest, evil"), "{}", nobody.text);
    // The browser began at the evil one, which lets the honest one answer: its code must not go
    // to the evil token endpoint.
    for iss in [
        Some(honest.url.clone()),
        Some(format!("{}/", evil.url)),
        Some(String::new()),
        None,
    ] {
        let begun = site.begin("?provider=evil").await;
        let mut params = vec![("code", "code-of-honest"), ("state", begun.state())];
        params.extend(iss.as_deref().map(|iss| ("iss", iss)));
        let said = site.back(&params, &begun.cookie).await;
        assert_eq!(
            (said.status, said.code()),
            (400, "login_issuer"),
            "{iss:?}: {}",
            said.text
        );
        assert!(said.session().is_none());
    }
    assert_eq!(evil.count("/token") + honest.count("/token"), 0);
    // Its own token for the sign-in of the other does not help either.
    let begun = site.begin("?provider=honest").await;
    honest.gives(&KEYS.token("ES256", &claims(&site, &evil, &begun)));
    assert_eq!(site.finish(&begun, &honest).await.code(), "idp_answer");
    // People of the evil one are nobody else's: the prefix keeps subject and groups apart.
    let begun = site.begin("?provider=evil").await;
    evil.gives(&KEYS.token("ES256", &claims(&site, &evil, &begun)));
    let said = site.finish(&begun, &evil).await;
    let who = site.whoami(&said.session().unwrap()).await.body;
    assert_eq!(
        (&who["subject"], &who["groups"], &who["tier"]),
        (
            &json!("evil:ana"),
            &json!(["evil:ops", "evil:people"]),
            &json!("none")
        )
    );
}

#[tokio::test]
async fn a_code_that_the_provider_does_not_take_signs_nobody_in() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let refused = json!({"error": "invalid_grant", "error_description": "used\r\nbefore"});
    for (status, body, wanted, code) in [
        (400, refused, 400, "login_code"),
        (401, json!({"error": "invalid_client"}), 502, "idp_answer"),
        (400, json!("no JSON"), 502, "idp_answer"),
        (
            200,
            json!({"access_token": "a", "token_type": "Bearer"}),
            502,
            "idp_answer",
        ),
        (200, json!({"id_token": 1}), 502, "idp_answer"),
        (302, json!({}), 502, "idp_answer"),
        (500, json!({}), 503, "idp_unreachable"),
    ] {
        issuer.says("/token", status, body.clone());
        let begun = site.begin("").await;
        let said = site.finish(&begun, &issuer).await;
        assert_eq!(
            (said.status, said.code()),
            (wanted, code),
            "{status} {body}: {}",
            said.text
        );
        assert!(said.session().is_none() && said.takes_login());
    }
    let begun = site.begin("").await;
    let params = [
        ("error", "access_denied"),
        ("error_description", "<script>no</script>"),
        ("state", begun.state()),
    ];
    let line = format!(
        "GET /api/auth/oidc/callback?error=access_denied&error_description=%3Cscript%3Eno&state={}",
        begun.state()
    );
    let page = site
        .ask(
            &line,
            &[("cookie", &begun.cookie), ("accept", "text/html,*/*")],
        )
        .await;
    assert_eq!(page.status, 403);
    assert!(
        page.text.contains("&lt;script>no") || page.text.contains("&lt;script&gt;no"),
        "{}",
        page.text
    );
    assert!(!page.text.contains("<script"), "{}", page.text);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let said = site.back(&params, &begun.cookie).await;
    assert_eq!(said.code(), "login_lost", "a refusal ends the sign-in too");
    let begun = site.begin("").await;
    let none = site.back(&[("state", begun.state())], &begun.cookie).await;
    assert_eq!((none.status, none.code()), (400, "login_code"));
}

#[tokio::test]
async fn a_sign_in_leads_to_this_host_only() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    for bad in [
        "https://evil.test/",
        "//evil.test",
        "/%5Cevil.test",
        "%5C%5Cevil.test",
        "evil.test",
        "javascript:alert(1)",
        "/%09/evil.test",
        "%0a//evil.test",
        "/%0d%0aSet-Cookie:x=y",
        "",
    ] {
        let said = site
            .ask(&format!("GET /api/auth/login?return={bad}"), &[])
            .await;
        assert_eq!((said.status, said.code()), (422, "bad_field"), "{bad}");
        assert!(said.cookie_of("__Host-culvert_login").is_none(), "{bad}");
        site.wait(10);
    }
    let begun = site.begin("").await;
    issuer.gives(&KEYS.token("ES256", &claims(&site, &issuer, &begun)));
    assert_eq!(site.finish(&begun, &issuer).await.location(), "/");
}

#[tokio::test]
async fn a_flood_of_sign_ins_is_bounded_for_an_address_and_in_all() {
    let issuer = Issuer::start(KEYS.jwks()).await;
    let site = Site::start(vec![provider("corp", &issuer, mapping())]).await;
    let from = |address: &str, line: &str| {
        let (address, line, site) = (address.to_owned(), line.to_owned(), &site);
        async move { site.ask(&line, &[("x-forwarded-for", &address)]).await }
    };
    // Starts and answers count together.
    for number in 0..30 {
        let (line, status) = match number % 2 {
            0 => ("GET /api/auth/login", 303),
            _ => ("GET /api/auth/callback?state=x&code=y", 400),
        };
        assert_eq!(from("192.0.2.1", line).await.status, status, "{number}");
    }
    for line in [
        "GET /api/auth/login",
        "GET /api/auth/callback?state=x",
        "GET /api/auth/oidc/callback",
    ] {
        let said = from("192.0.2.1", line).await;
        assert_eq!(
            (said.status, said.code()),
            (429, "too_many_logins"),
            "{line}"
        );
        assert!(said.headers.contains_key("retry-after"));
    }
    let mut admitted = 30;
    for number in 0..700 {
        let address = format!("198.51.{}.{}", number >> 8, number & 255);
        admitted += u32::from(from(&address, "GET /api/auth/login").await.status == 303);
    }
    assert_eq!(admitted, 600);
    let asked = issuer.behaviour.lock().asked.len();
    assert_eq!(asked, 2, "no start asks the provider again");
    site.wait(60);
    assert_eq!(from("192.0.2.1", "GET /api/auth/login").await.status, 303);
}

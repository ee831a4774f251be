//! Which cookies open something, and from where.

use std::time::Duration;

use anyhow::Result;
use culvert_identity::{LOGIN_COOKIE, SESSION_COOKIE};

use super::hub::{NEXT_PASSWORD, OWN, PASSWORD, People, Signed, front};
use crate::client::{self, Answer, Live};
use crate::hub::ready;

#[test]
fn no_forged_changed_old_or_doubled_cookie_opens_a_cluster() -> Result<()> {
    if !ready(
        "no_forged_changed_old_or_doubled_cookie_opens_a_cluster",
        &[],
    ) {
        return Ok(());
    }
    let people = People::start()?;
    let ana = || Signed::new("ana").of(&["ops"]);
    let good = ana().text(SESSION_COOKIE, PASSWORD)?;
    let line = |text: &str| format!("Cookie: a=b; {SESSION_COOKIE}={text}; c=d");
    let before = people.kube.heads().len();
    let mut tried = 0;
    let mut refused = |lines: &[&str], what: &str| -> Result<()> {
        let answer = people.get("/c/kube/id/x", lines)?;
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
        assert_eq!(
            answer.header("culvert-error"),
            Some("unauthenticated"),
            "{what}"
        );
        tried += 1;
        Ok(())
    };
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        refused(&[&line(&String::from_utf8(bytes)?)], &format!("byte {at}"))?;
    }
    for (what, text) in [
        ("another key", ana().text(SESSION_COOKIE, NEXT_PASSWORD)?),
        ("another cookie's box", ana().text(LOGIN_COOKIE, PASSWORD)?),
        (
            "idle for too long",
            ana().begun_ago(1_800).text(SESSION_COOKIE, PASSWORD)?,
        ),
        ("cut", good[..good.len() - 4].to_owned()),
        ("empty", String::new()),
        ("huge", "A".repeat(5_000)),
    ] {
        refused(&[&line(&text)], what)?;
    }
    let mut promised = ana().begun_ago(28_800);
    // Sealed when sessions lived longer than they may now.
    promised.life.absolute_s = 86_400;
    promised.life.idle_s = 86_400;
    refused(
        &[&promised.cookie(PASSWORD)?],
        "over the absolute life of now",
    )?;
    let both = format!("Cookie: {SESSION_COOKIE}={good}; {SESSION_COOKIE}={good}");
    refused(&[&both], "two in a line")?;
    refused(&[&line(&good), &line(&good)], "two lines")?;
    refused(&["Cookie: a=b"], "none")?;
    println!("{tried} cookies refused");
    assert_eq!(people.kube.heads().len(), before, "something arrived");
    assert_eq!(people.get("/c/kube/id/x", &[&line(&good)])?.status, 200);
    // Split as HTTP/2 splits it.
    let split = ["Cookie: a=b", &format!("Cookie: {SESSION_COOKIE}={good}")];
    assert_eq!(people.get("/c/kube/id/x", &split)?.status, 200);
    Ok(())
}

#[test]
fn who_is_not_signed_in_is_sent_to_sign_in_and_learns_of_no_cluster() -> Result<()> {
    if !ready(
        "who_is_not_signed_in_is_sent_to_sign_in_and_learns_of_no_cluster",
        &[],
    ) {
        return Ok(());
    }
    let people = People::start()?;
    let page = ["Sec-Fetch-Mode: navigate", "Accept: text/html"];
    let answer = people.get("/c/web/a?b=c&d=%2F", &page)?;
    assert_eq!(answer.status, 302, "{answer:?}");
    let back = "/api/auth/login?return=/c/web/a%3Fb%3Dc%26d%3D%252F";
    assert_eq!(answer.header("location"), Some(back));
    let told = |cluster: &str| {
        let answer = people.get(&format!("/c/{cluster}/x"), &[])?;
        let headers: Vec<_> = answer
            .headers
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        anyhow::Ok((answer.status, headers, answer.text()))
    };
    let seen = told("kube")?;
    assert_eq!(seen.0, 401);
    assert_eq!(seen, told("web")?);
    assert_eq!(seen, told("nowhere")?);
    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    assert_eq!(people.get("/c/nowhere/x", &[&ana])?.status, 404);
    Ok(())
}

#[test]
fn a_cookie_changes_something_from_our_own_pages_only() -> Result<()> {
    if !ready("a_cookie_changes_something_from_our_own_pages_only", &[]) {
        return Ok(());
    }
    let people = People::start()?;
    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    let upgrade = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let before = people.web.heads().len();
    for origin in [
        &[][..],
        &["Origin: null"],
        &["Origin: https://evil.test"],
        &["Origin: http://hub.test"],
        &["Origin: https://hub.test.evil.test"],
        &["Origin: https://hub.test:444"],
        &[OWN, "Origin: https://evil.test"],
        &[OWN, "Sec-Fetch-Site: cross-site"],
    ] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "TRACE"] {
            let lines = [&[ana.as_str()][..], origin].concat();
            let answer = people.ask(method, "/c/web/id/x", &lines)?;
            assert_eq!(answer.status, 403, "{method} {origin:?}: {answer:?}");
            assert_eq!(answer.header("culvert-error"), Some("forbidden"));
        }
        let raw = raw(&ana, "/c/web/websocket", &[&upgrade[..], origin].concat());
        let mut live = Live::open(&people.bed.client, front(), raw.as_bytes())?;
        live.read_end(Duration::from_secs(5))?;
        assert_eq!(
            Answer::parse(&live.received)?.status,
            403,
            "upgrade {origin:?}"
        );
    }
    // Nor is anything read by another name, which somebody had point here.
    for host in ["evil.test", "hub.test.evil.test", "10.77.2.1"] {
        let raw = raw(&ana, "/c/web/id/x", &["Connection: close"]).replacen("hub.test", host, 1);
        let answer = client::exchange(&people.bed.client, front(), raw.as_bytes())?;
        assert_eq!(Answer::parse(&answer)?.status, 403, "{host}");
    }
    assert_eq!(people.web.heads().len(), before, "something arrived");
    let own = [ana.as_str(), OWN, "Sec-Fetch-Site: same-origin"];
    assert_eq!(people.ask("POST", "/c/web/id/x", &own)?.status, 200);
    let raw = raw(&ana, "/c/web/websocket", &[&upgrade[..], &[OWN]].concat());
    let mut live = Live::open(&people.bed.client, front(), raw.as_bytes())?;
    live.read_text("HTTP/1.1 101", Duration::from_secs(5))?;
    Ok(())
}

fn raw(cookie: &str, target: &str, lines: &[&str]) -> String {
    let lines = lines.join("\r\n");
    format!("GET {target} HTTP/1.1\r\nHost: hub.test\r\n{cookie}\r\n{lines}\r\n\r\n")
}

#[test]
fn a_session_half_idle_is_sealed_anew_and_pages_stay_in_their_box() -> Result<()> {
    if !ready(
        "a_session_half_idle_is_sealed_anew_and_pages_stay_in_their_box",
        &[],
    ) {
        return Ok(());
    }
    let people = People::start()?;
    let at = |seconds| {
        Signed::new("ana")
            .of(&["ops"])
            .begun_ago(seconds)
            .cookie(PASSWORD)
    };
    let fresh = people.get("/c/web/id/x", &[&at(60)?])?;
    assert_eq!(fresh.header("set-cookie"), None);
    let csp = fresh.header("content-security-policy").unwrap_or_default();
    assert!(
        csp.starts_with("sandbox ") && !csp.contains("same-origin"),
        "{csp}"
    );
    assert_eq!(fresh.header("x-content-type-options"), Some("nosniff"));
    let used = people.get("/c/web/id/x", &[&at(1_000)?])?;
    let renewed = used.header("set-cookie").unwrap_or_default().to_owned();
    assert!(
        renewed.contains("Secure; HttpOnly; SameSite=Lax"),
        "{used:?}"
    );
    let pair = renewed.split(';').next().unwrap_or_default();
    let line = format!("Cookie: {pair}");
    assert_ne!(line, at(1_000)?);
    assert_eq!(
        people.get("/c/web/id/x", &[&line])?.header("set-cookie"),
        None
    );
    Ok(())
}

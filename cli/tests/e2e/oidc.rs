//! People sign in at a real OpenID provider: npm's oidc-provider, over TLS, with nginx in front of
//! control. Once by following its redirects and filling its forms, once in a browser.

mod browser;
mod login;
mod site;
mod walk;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::hub::ready;
use site::{ALGORITHMS, HUB, PASSWORD, Site};
use walk::Walker;

/// What the log says of an answer of 502 or 503.
const FAILED: &str = "\"request failed\"";

pub const PROGRAMS: [&str; 4] = ["node", "nginx", "curl", "openssl"];

#[test]
fn a_real_provider_signs_people_in_with_every_algorithm() -> Result<()> {
    if !ready(
        "a_real_provider_signs_people_in_with_every_algorithm",
        &PROGRAMS,
    ) {
        return Ok(());
    }
    let site = Site::start()?;
    for (number, alg) in ALGORITHMS.iter().enumerate() {
        let walker = Walker::new(&site.bed, alg)?;
        let name = alg.to_ascii_lowercase();
        let end = walker.sign_in(&name, "ana", "/api/auth/whoami")?;
        ensure!(end.url == format!("{HUB}/api/auth/whoami"), "{end:?}");
        let who: serde_json::Value = serde_json::from_str(&end.body)?;
        // The first provider speaks for itself, the others behind their prefix.
        let behind = |text: &str| match number {
            0 => text.to_owned(),
            _ => format!("{name}:{text}"),
        };
        assert_eq!(who["subject"], behind("ana"));
        assert_eq!(who["groups"], json!([behind("ops"), behind("people")]));
        assert_eq!(who["email"], "ana@example.test");
        assert_eq!(
            who["tier"],
            if number == 0 {
                json!("admin")
            } else {
                json!("none")
            }
        );
        // curl's jar marks what no script may read. What is taken away while it follows redirects
        // curl 7.88 reads from the jar again: that is for the browser to show.
        let jar = walker.jar()?;
        let session = jar
            .lines()
            .find(|line| line.contains("__Host-culvert_session"));
        ensure!(
            session.is_some_and(|line| line.starts_with("#HttpOnly_localhost\tFALSE\t/\tTRUE")),
            "{jar}"
        );
    }
    let rows = site.control.ok("GET", "/api/audit?verb=login", None)?;
    assert_eq!(rows["total"], ALGORITHMS.len());
    assert_eq!(rows["items"][0]["outcome"], "success");
    Ok(())
}

#[test]
fn a_code_is_good_once_also_after_a_restart_of_control() -> Result<()> {
    if !ready(
        "a_code_is_good_once_also_after_a_restart_of_control",
        &PROGRAMS,
    ) {
        return Ok(());
    }
    let mut site = Site::start()?;
    let walker = Walker::new(&site.bed, "once")?;
    let callback = walker.until_callback("rs256", "ana")?;
    let (kept, late) = (walker.copy("kept")?, walker.copy("late")?);
    let first = walker.get(&callback)?;
    ensure!(first.status == 303, "{first:?}");
    let again = kept.get(&callback)?;
    ensure!(
        again.status == 400 && again.body.contains("login_lost"),
        "{again:?}"
    );
    site.restart(&[])?;
    // This process never saw it; its cookie is still good, and the provider knows the code.
    let again = late.get(&callback)?;
    ensure!(
        again.status == 400 && again.body.contains("login_code"),
        "{again:?}"
    );
    // The session that the code began outlives the restart.
    let who = walker.get(&format!("{HUB}/api/whoami"))?;
    ensure!(who.status == 200, "{who:?}");
    Ok(())
}

#[test]
fn a_token_under_the_clients_own_secret_is_refused() -> Result<()> {
    if !ready("a_token_under_the_clients_own_secret_is_refused", &PROGRAMS) {
        return Ok(());
    }
    let mut site = Site::start()?;
    site.control.process.expect(&[FAILED]);
    let walker = Walker::new(&site.bed, "hs256")?;
    let end = walker.sign_in("hs256", "ana", "/")?;
    ensure!(
        end.status == 502 && end.body.contains("idp_answer"),
        "{end:?}"
    );
    ensure!(!walker.jar()?.contains("__Host-culvert_session"));
    Ok(())
}

#[test]
fn without_its_provider_a_hub_keeps_its_sessions_and_its_administrator() -> Result<()> {
    if !ready(
        "without_its_provider_a_hub_keeps_its_sessions_and_its_administrator",
        &PROGRAMS,
    ) {
        return Ok(());
    }
    let mut site = Site::start()?;
    let walker = Walker::new(&site.bed, "outage")?;
    let end = walker.sign_in("es256", "bob", "/api/whoami")?;
    ensure!(end.status == 200, "{end:?}");
    // Bob's group has no tier here: he sees who he is, and nothing else.
    ensure!(walker.get(&format!("{HUB}/api/clusters"))?.status == 403);
    site.provider.kill_9()?;
    site.provider.wait_end(Duration::from_secs(5))?;
    let who = walker.get(&format!("{HUB}/api/whoami"))?;
    ensure!(who.status == 200, "{who:?}");
    site.restart(&[FAILED])?;
    let who = walker.get(&format!("{HUB}/api/whoami"))?;
    ensure!(
        who.status == 200,
        "a session is good without provider and after a restart: {who:?}"
    );
    let page = walker.page(&format!("{HUB}/api/auth/login?provider=es256"))?;
    ensure!(page.status == 503, "{page:?}");
    for word in [
        "does not answer",
        "identity provider",
        "idp_unreachable",
        "administrator",
    ] {
        ensure!(page.body.contains(word), "{word}: {page:?}");
    }
    let login = json!({"email": "root@example.test", "password": PASSWORD}).to_string();
    let admin = Walker::new(&site.bed, "admin")?;
    site.control.process.expect(&["break-glass login"]);
    let said = admin.post_json(&format!("{HUB}/api/auth/login"), &login)?;
    ensure!(said.status == 200, "{said:?}");
    let who = admin.get(&format!("{HUB}/api/auth/whoami"))?;
    ensure!(who.body.contains("\"tier\":\"admin\""), "{who:?}");
    // It comes back, and so do sign-ins.
    site.restart_provider()?;
    let walker = Walker::new(&site.bed, "back")?;
    // Half a second between two tries: more would meet the limit of an address.
    let end = culvert_perf::testbed::wait_for("a sign-in", Duration::from_secs(15), || {
        let end = walker.sign_in("es256", "bob", "/api/whoami").ok();
        if end.is_none() {
            std::thread::sleep(Duration::from_millis(500));
        }
        end
    })?;
    ensure!(end.status == 200, "{end:?}");
    Ok(())
}

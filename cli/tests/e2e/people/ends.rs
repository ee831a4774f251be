//! What people have running ends with their right to it, and the log says why.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_perf::testbed::wait_for;
use serde_json::{Value, json};

use super::hub::{OWN, PASSWORD, People, Signed, front};
use crate::client::{End, Live};
use crate::control::token;
use crate::hub::ready;

/// Longest life after the right.
const ENDS_MAX: Duration = Duration::from_secs(5);
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A shell that echoes, with these further lines.
fn shell(people: &People, line: &str) -> Result<Live> {
    let raw = format!(
        "GET /c/kube/api/v1/namespaces/n/pods/p/exec HTTP/1.1\r\nHost: hub.test\r\n\
         Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{line}\r\n{OWN}\r\n\r\n"
    );
    let mut live = Live::open(&people.bed.client, front(), raw.as_bytes())?;
    live.read_text("101 Switching", ANSWER_MAX)?;
    echoes(&mut live, "ping")?;
    Ok(live)
}

fn echoes(live: &mut Live, text: &str) -> Result<()> {
    live.send(text.as_bytes())?;
    live.read_text(text, ANSWER_MAX)?;
    Ok(())
}

/// A stream of the web service.
fn stream(people: &People, path: &str, line: &str) -> Result<Live> {
    let raw = format!("GET /c/web{path} HTTP/1.1\r\nHost: hub.test\r\n{line}\r\n\r\n");
    let mut live = Live::open(&people.bed.client, front(), raw.as_bytes())?;
    live.read_text("200 OK", ANSWER_MAX)?;
    Ok(live)
}

/// The row of the end of somebody's shell.
fn closed(people: &People, who: &str) -> Result<Value> {
    let path = format!("/api/audit?verb=exec_close&actor={who}");
    wait_for("the end of a shell in the log", ANSWER_MAX, || {
        let page = people.control.ok("GET", &path, None).ok()?;
        page["items"].as_array()?.first().cloned()
    })
    .with_context(|| format!("of {who}"))
}

#[test]
fn what_people_have_running_ends_with_their_right_to_it() -> Result<()> {
    let name = "what_people_have_running_ends_with_their_right_to_it";
    if !ready(name, &[]) {
        return Ok(());
    }
    let people = People::start()?;
    let session = |who: &str| Signed::new(who).of(&["ops"]).cookie(PASSWORD);
    let (ana, ben, cyd) = (session("ana")?, session("ben")?, session("cyd")?);
    let grants = json!({"grants": [
        {"group": "ops", "tier": "write"},
        {"group": "user:rob", "tier": "write"},
    ]});
    people.access("kube", grants)?;
    let body = json!({"principal": "rob", "grants": ["kube/*"]});
    let minted = people
        .control
        .ok("POST", "/api/personal-tokens", Some(body))?;
    people.control.settled()?;
    let rob = format!("Authorization: Bearer {}", token(&minted)?);

    let mut anas = shell(&people, &ana)?;
    let mut bens = shell(&people, &ben)?;
    let mut robs = shell(&people, &rob)?;
    let mut watch = stream(&people, "/step", &ana)?;
    // One that does not read what comes, and so never hears by itself.
    let mut stalled = stream(&people, "/endless", &cyd)?;

    let began = Instant::now();
    let out = people.ask("POST", "/api/auth/logout/everywhere", &[&ana, OWN])?;
    assert_eq!(out.status, 204, "{out:?}");
    assert_eq!(watch.read_end(ENDS_MAX)?, End::Reset);
    assert_eq!(anas.read_end(ENDS_MAX)?, End::Reset);
    println!("signed out everywhere: over after {:?}", began.elapsed());
    let row = closed(&people, "ana")?;
    assert_eq!(
        (&row["reason"], &row["outcome"]),
        (&json!("signed_out"), &json!("success"))
    );

    let path = format!(
        "/api/personal-tokens/{}",
        minted["token_id"].as_str().context("an id")?
    );
    let began = Instant::now();
    people.control.ok("DELETE", &path, None)?;
    assert_eq!(robs.read_end(ENDS_MAX)?, End::Reset);
    println!("a token revoked: over after {:?}", began.elapsed());
    let row = closed(&people, "rob")?;
    assert_eq!(
        (&row["reason"], &row["transport"]),
        (&json!("token_revoked"), &json!("personal-token"))
    );

    // Others went on all the time; a higher right ends nothing either.
    echoes(&mut bens, "still here")?;
    people.access(
        "kube",
        json!({"grants": [{"group": "ops", "tier": "admin"}]}),
    )?;
    echoes(&mut bens, "and again")?;
    let began = Instant::now();
    people.access(
        "kube",
        json!({"grants": [{"group": "ops", "tier": "read"}]}),
    )?;
    assert_eq!(bens.read_end(ENDS_MAX)?, End::Reset);
    println!("a grant made less: over after {:?}", began.elapsed());
    assert_eq!(closed(&people, "ben")?["reason"], "grant_ended");

    people.access("web", json!({}))?;
    assert_eq!(stalled.read_end(ENDS_MAX)?, End::Reset);
    Ok(())
}

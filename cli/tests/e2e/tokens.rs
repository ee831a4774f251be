//! Tokens under traffic: minted, rotated, expired, revoked.

use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_perf::testbed::{Testbed, wait_for};
use serde_json::json;

use crate::client::{self, Answer, Live};
use crate::control::{Fleet, token};
use crate::hub::{Agent, internal, public, ready};
use crate::load::Load;
use crate::watched::HUB_GONE;

/// The status of a hello with this token.
fn knock(bed: &Testbed, token: &str) -> Result<u16> {
    let raw = format!(
        "GET /agent HTTP/1.1\r\nHost: hub.test\r\nConnection: Upgrade\r\nUpgrade: culvert/1\r\n\
         Culvert-Version: 0.1.0\r\nCulvert-Instance: 01890a5d-ac96-774b-bcce-b302099a8057\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    let mut live = Live::open(&bed.site, public(), raw.as_bytes())?;
    live.read_text("\r\n\r\n", Duration::from_secs(5))?;
    Ok(Answer::parse(&live.received)?.status)
}

#[test]
fn rotation_under_traffic_loses_nothing() -> Result<()> {
    if !ready("rotation_under_traffic_loses_nothing", &[]) {
        return Ok(());
    }
    let mut fleet = Fleet::start()?;
    fleet.dev_agent.expect(HUB_GONE);
    let load = Load::start(
        &fleet.bed.client,
        internal(),
        "dev",
        4,
        Duration::from_millis(2),
    )?;
    load.wait_answered(100, Duration::from_secs(10))?;
    let mut fresh = fleet.dev_token.clone();
    let mut successor = None;
    for round in 0..5 {
        let path = "/api/clusters/dev/rotate-token";
        let value = fleet
            .control
            .ok("POST", path, Some(json!({"overlap_seconds": 600})))?;
        fresh = token(&value)?;
        assert!(fresh.starts_with("rhc_"), "a token of ours");
        fleet.control.settled()?;
        // The new token works, beside the session that the old one opened.
        let name = format!("successor-{round}");
        let mut agent = Agent::plain(&fleet.bed.site, &name, &fresh, fleet.dev.address);
        agent.health = 8090 + round;
        let next = agent.start(&fleet.bed)?;
        if let Some(mut old) = successor.replace(next) {
            old.terminate()?;
            old.wait_end(Duration::from_secs(35))?;
        }
        let already = load.tally().answered;
        load.wait_answered(already + 100, Duration::from_secs(10))?;
    }
    let tally = load.finish();
    println!(
        "5 rotations: {} answered, {} failed",
        tally.answered, tally.failed
    );
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);

    // Zero overlap: what came before ends within a second.
    let path = "/api/clusters/dev/rotate-token?now=true";
    let last = token(&fleet.control.ok("POST", path, Some(json!({})))?)?;
    let start = Instant::now();
    wait_for(
        "the old tokens to be refused",
        Duration::from_secs(5),
        || {
            let old = [&fresh, &fleet.dev_token];
            old.iter()
                .all(|token| knock(&fleet.bed, token).is_ok_and(|s| s == 401))
                .then_some(())
        },
    )?;
    println!("--now: old tokens refused after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(knock(&fleet.bed, &last)?, 101);
    Ok(())
}

#[test]
fn revocation_cuts_one_cluster_within_a_second() -> Result<()> {
    if !ready("revocation_cuts_one_cluster_within_a_second", &[]) {
        return Ok(());
    }
    let mut fleet = Fleet::start()?;
    fleet.dev_agent.expect(HUB_GONE);
    let client = &fleet.bed.client;
    let neighbour = Load::start(client, internal(), "neighbour", 4, Duration::from_millis(2))?;
    let mut cut = Live::get(client, internal(), "/tunnel/dev/step")?;
    let mut kept = Live::get(client, internal(), "/tunnel/neighbour/step")?;
    fleet.dev.step("first");
    fleet.neighbour.step("first");
    cut.read_text("first", Duration::from_secs(3))?;
    kept.read_text("first", Duration::from_secs(3))?;

    let start = Instant::now();
    fleet.control.revoke("dev")?;
    cut.read_end(Duration::from_secs(5))?;
    let took = start.elapsed();
    println!("revoked: the live stream was cut after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(
        !Answer::parse(&cut.received)?.whole,
        "truncated as complete"
    );
    assert_ne!(
        client::get(client, internal(), "/tunnel/dev/id/x")?.status,
        200
    );
    assert_eq!(knock(&fleet.bed, &fleet.dev_token)?, 401);

    fleet.neighbour.step("second");
    kept.read_text("second", Duration::from_secs(3))?;
    let already = neighbour.tally().answered;
    neighbour.wait_answered(already + 200, Duration::from_secs(10))?;
    let tally = neighbour.finish();
    println!(
        "the neighbour: {} answered, longest gap {:?}",
        tally.answered, tally.longest_gap
    );
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    assert!(
        tally.longest_gap < Duration::from_secs(1),
        "{:?}",
        tally.longest_gap
    );
    Ok(())
}

#[test]
fn expired_and_deleted_tokens_are_refused_like_unknown_ones() -> Result<()> {
    if !ready(
        "expired_and_deleted_tokens_are_refused_like_unknown_ones",
        &[],
    ) {
        return Ok(());
    }
    let fleet = Fleet::start()?;
    let tokens = "/api/clusters/dev/tokens";
    let short = fleet
        .control
        .ok("POST", tokens, Some(json!({"expires_in_seconds": 2})))?;
    let short = token(&short)?;
    let reaches = |token: &str, status: u16| {
        wait_for(&format!("a {status}"), Duration::from_secs(6), || {
            knock(&fleet.bed, token)
                .is_ok_and(|seen| seen == status)
                .then_some(())
        })
    };
    reaches(&short, 101)?;
    reaches(&short, 401)?;
    let value = fleet.control.ok("POST", tokens, Some(json!({})))?;
    let deleted = token(&value)?;
    reaches(&deleted, 101)?;
    let id = value["token_id"].as_str().unwrap_or_default();
    fleet
        .control
        .ok("DELETE", &format!("{tokens}/{id}"), None)?;
    reaches(&deleted, 401)?;
    // A damaged character is found by the checksum, and answered alike.
    let mut damaged = fleet.dev_token.clone();
    let last = damaged
        .pop()
        .map_or('0', |last| if last == '0' { '1' } else { '0' });
    damaged.push(last);
    assert_eq!(knock(&fleet.bed, &damaged)?, 401);
    // A stored token is a hash: the text appears nowhere.
    for file in ["control.db", "control.db-wal"] {
        let bytes = std::fs::read(fleet.bed.path(file)).unwrap_or_default();
        assert!(
            !client::contains(&bytes, fleet.dev_token.as_bytes()),
            "a token in {file}"
        );
    }
    for process in [&fleet.control.process, &fleet.dataplane, &fleet.dev_agent] {
        assert!(
            !process.log().contains(&fleet.dev_token),
            "a token in a log"
        );
    }
    Ok(())
}

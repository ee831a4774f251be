//! The old session ends late: it must never unregister the newer one (decision D-05).

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_perf::testbed::wait_for;

use crate::client::{self, metric};
use crate::hub::{PUBLIC, Rig, complaints, internal, ready, wait_served};
use crate::load::Load;

/// The agent loses its connection, the hub hears nothing of it and keeps a half-open one until
/// its deadline; the agent is back at once. From then on no request may fail, and the late end of
/// the old session changes nothing.
#[test]
fn the_late_end_of_an_old_session_changes_nothing() -> Result<()> {
    if !ready("the_late_end_of_an_old_session_changes_nothing", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let ports = rig
        .bed
        .site
        .output("ss", &["-Htn", "dport", "=", &format!(":{PUBLIC}")])?;
    let old = ports
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("10.77.2.2:"))
        .next()
        .context("the agent's own port")?
        .to_owned();
    rig.bed.site.nft(&format!(
        "table inet half {{
           chain in {{ type filter hook input priority -200; tcp dport {old} drop; }};
           chain out {{ type filter hook output priority -200; tcp sport {old} drop; }}; }}"
    ))?;
    let killed = rig
        .bed
        .site
        .output("ss", &["-K", "-tn", "sport", "=", &format!(":{old}")])?;
    assert!(killed.contains(&old), "ss -K did not bite: {killed}");
    let start = Instant::now();
    wait_for("a new session", Duration::from_secs(10), || {
        let ports = rig
            .bed
            .site
            .output("ss", &["-Htn", "dport", "=", &format!(":{PUBLIC}")])
            .ok()?;
        (ports.contains("ESTAB") && !ports.contains(&old)).then_some(())
    })?;
    let back = wait_served(&rig.bed, "dev", Duration::from_secs(5))?;
    println!(
        "a new session after {:?}, served {back:?} later",
        start.elapsed()
    );

    let load = Load::start(
        &rig.bed.client,
        internal(),
        "dev",
        8,
        Duration::from_millis(2),
    )?;
    // Longer than the old one can live: 15 s without a byte.
    wait_for(
        "the half-open connection to end",
        Duration::from_secs(20),
        || {
            let held = rig
                .bed
                .hub
                .output("ss", &["-Htn", "sport", "=", &format!(":{PUBLIC}")])
                .ok()?;
            (!held.contains(&format!("10.77.2.2:{old}"))).then_some(())
        },
    )?;
    let already = load.tally().answered;
    load.wait_answered(already + 500, Duration::from_secs(10))?;
    let tally = load.finish();
    println!(
        "{} requests, longest gap {:?}",
        tally.answered, tally.longest_gap
    );
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    let metrics = rig.get("/metrics")?.text();
    assert_eq!(metric(&metrics, "agents_connected"), 1.0);
    assert_eq!(
        client::get(&rig.bed.client, internal(), "/tunnel/dev/id/end")?.text(),
        "end"
    );
    assert!(
        !complaints(&rig.dataplane, &[])
            .iter()
            .any(|line| line.contains("panicked"))
    );
    Ok(())
}

/// Carriers without an instance id: the last writer wins, and the end of the loser is harmless.
#[test]
fn the_last_connector_wins_whenever_the_others_end() -> Result<()> {
    if !ready("the_last_connector_wins_whenever_the_others_end", &[]) {
        return Ok(());
    }
    use crate::radar::Connector;
    let mut rig = Rig::start()?;
    rig.agent.kill_9()?;
    wait_for(
        "the native agent to be gone",
        Duration::from_secs(5),
        || (rig.get("/tunnel/dev/id/x").ok()?.status == 503).then_some(()),
    )?;
    let token = crate::hub::DEV_TOKEN;
    let mut older = Vec::new();
    for number in 0..3 {
        let tag = format!("connector-{number}");
        older.push(Connector::connect(&rig.bed.site, "/agent", token, &tag)?);
        // The 101 was read here a moment before the hub's table has the session.
        wait_for(&tag, Duration::from_secs(2), || {
            let answer = rig.get("/tunnel/dev/id/x").ok()?;
            (answer.header("x-tag") == Some(tag.as_str())).then_some(())
        })?;
    }
    let last = older.pop().context("three were made")?;
    for connector in older {
        connector.close();
        for _ in 0..50 {
            let answer = rig.get("/tunnel/dev/id/x")?;
            assert_eq!(answer.header("x-tag"), Some("connector-2"), "{answer:?}");
        }
    }
    last.close();
    wait_for("nobody is left", Duration::from_secs(5), || {
        (rig.get("/tunnel/dev/id/x").ok()?.status == 503).then_some(())
    })
}

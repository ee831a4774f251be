//! kill -9 of each process under traffic.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_perf::testbed::wait_for;

use crate::client;
use crate::control::{Control, Fleet};
use crate::hub::{Agent, Rig, internal, ready, wait_served};
use crate::load::Load;
use crate::watched::{CONTROL_GONE, HUB_GONE};

#[test]
fn control_dies_and_no_request_notices() -> Result<()> {
    if !ready("control_dies_and_no_request_notices", &[]) {
        return Ok(());
    }
    let mut fleet = Fleet::start()?;
    fleet.dataplane.expect(CONTROL_GONE);
    fleet.dev_agent.expect(HUB_GONE);
    let pause = Duration::from_millis(2);
    let load = Load::start(&fleet.bed.client, internal(), "dev", 4, pause)?;
    load.wait_answered(200, Duration::from_secs(10))?;
    fleet.control.process.kill_9()?;
    let already = load.tally().answered;
    load.wait_answered(already + 500, Duration::from_secs(20))?;
    // An agent that is enrolled comes back without control.
    fleet.neighbour_agent.kill_9()?;
    let tally = load.finish();
    println!(
        "control killed: {} answered, {} failed",
        tally.answered, tally.failed
    );
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);

    // The data plane starts again from its disk.
    fleet.dataplane.kill_9()?;
    let start = Instant::now();
    let link = fleet.control.link.clone();
    fleet.dataplane = Fleet::dataplane(&fleet.bed, "dataplane-2", &link)?;
    fleet.dataplane.expect(CONTROL_GONE);
    let bound = start.elapsed();
    wait_served(&fleet.bed, "dev", Duration::from_secs(20))?;
    println!(
        "cold start without control: bound after {bound:?}, served after {:?}",
        start.elapsed()
    );

    // A revocation that the data plane could not hear of arrives when control is back.
    let store = fleet.bed.path("control.db");
    let elsewhere = Control::with(&fleet.bed, "control-2", "elsewhere.sock", &store)?;
    elsewhere.revoke("dev")?;
    assert_eq!(
        client::get(&fleet.bed.client, internal(), "/tunnel/dev/id/x")?.status,
        200
    );
    drop(elsewhere);
    let start = Instant::now();
    let _control = Control::start(&fleet.bed, "control-3")?;
    wait_for("the revocation", Duration::from_secs(20), || {
        let answer = client::get(&fleet.bed.client, internal(), "/tunnel/dev/id/x").ok()?;
        (answer.status != 200).then_some(())
    })?;
    println!(
        "the revocation arrived {:?} after control was started",
        start.elapsed()
    );
    Ok(())
}

#[test]
fn the_agent_dies_and_its_successor_serves() -> Result<()> {
    if !ready("the_agent_dies_and_its_successor_serves", &[]) {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    let load = Load::start(
        &rig.bed.client,
        internal(),
        "dev",
        4,
        Duration::from_millis(5),
    )?;
    load.wait_answered(100, Duration::from_secs(10))?;
    rig.agent.kill_9()?;
    let start = Instant::now();
    rig.agent = Agent::plain(
        &rig.bed.site,
        "agent-2",
        crate::hub::DEV_TOKEN,
        rig.upstream.address,
    )
    .start(&rig.bed)?;
    wait_served(&rig.bed, "dev", Duration::from_secs(10))?;
    let recovered = start.elapsed();
    let tally = load.finish();
    println!(
        "agent killed: served again {recovered:?} after the restart; {} failed",
        tally.failed
    );
    assert!(
        recovered < Duration::from_secs(2),
        "{recovered:?} (contract A-51: 2 s)"
    );
    for failure in &tally.failures {
        assert!(!failure.contains("MIXED UP"), "{failure}");
    }
    Ok(())
}

#[test]
fn the_data_plane_dies_and_its_agents_return() -> Result<()> {
    if !ready("the_data_plane_dies_and_its_agents_return", &[]) {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    rig.agent.expect(HUB_GONE);
    let clusters = rig.bed.path("clusters.json").to_string_lossy().into_owned();
    let mut times = Vec::new();
    for round in 0..3 {
        rig.dataplane.kill_9()?;
        let start = Instant::now();
        let name = format!("dataplane-{round}");
        rig.dataplane = crate::hub::dataplane(&rig.bed, &name, &["--clusters", &clusters])?;
        wait_served(&rig.bed, "dev", Duration::from_secs(30))?;
        times.push(start.elapsed());
    }
    println!("data plane killed: served again after {times:?}");
    let longest = times.iter().max().context("three rounds")?;
    assert!(*longest < Duration::from_secs(10), "{times:?}");
    Ok(())
}

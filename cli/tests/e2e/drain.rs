//! SIGTERM: what is in flight ends well, agents move first.

use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_perf::testbed::{Testbed, wait_for};

use crate::client;
use crate::hub::{Agent, DEV_TOKEN, Rig, internal, ready, wait_served, write_clusters};
use crate::load::Load;
use crate::upstream::Upstream;
use crate::watched::HUB_GONE;

/// Starts `count` requests that take two seconds, and runs `meanwhile` when all are under way.
fn in_flight(
    bed: &Testbed,
    upstream: &Upstream,
    count: usize,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let ask = || client::get(&bed.client, internal(), "/tunnel/dev/hold/2000");
        let requests: Vec<_> = (0..count).map(|_| scope.spawn(ask)).collect();
        wait_for("all under way", Duration::from_secs(2), || {
            (upstream.heads().len() >= count).then_some(())
        })?;
        meanwhile()?;
        for request in requests {
            let answer = request.join().expect("no panic")?;
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (200, "held"),
                "{answer:?}"
            );
            assert!(answer.whole);
        }
        Ok(())
    })
}

#[test]
fn the_data_plane_ends_after_its_requests() -> Result<()> {
    if !ready("the_data_plane_ends_after_its_requests", &[]) {
        return Ok(());
    }
    let Rig {
        bed,
        upstream,
        mut dataplane,
        mut agent,
    } = Rig::start()?;
    agent.expect(HUB_GONE);
    let start = Instant::now();
    in_flight(&bed, &upstream, 20, || dataplane.terminate())?;
    let status = dataplane.wait_end(Duration::from_secs(5))?;
    println!(
        "20 requests ended well, the process {:?} after the start",
        start.elapsed()
    );
    assert!(status.success(), "{status}");
    Ok(())
}

#[test]
fn the_agent_ends_after_its_requests() -> Result<()> {
    if !ready("the_agent_ends_after_its_requests", &[]) {
        return Ok(());
    }
    let Rig {
        bed,
        upstream,
        dataplane: _dataplane,
        mut agent,
    } = Rig::start()?;
    in_flight(&bed, &upstream, 20, || agent.terminate())?;
    let status = agent.wait_end(Duration::from_secs(5))?;
    assert!(status.success(), "{status}");
    let answer = client::get(&bed.client, internal(), "/tunnel/dev/id/x")?;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("culvert-error"), Some("agent_absent"));
    assert!(answer.header("retry-after").is_some());
    Ok(())
}

#[test]
fn a_new_data_plane_takes_over_without_a_broken_answer() -> Result<()> {
    if !ready("a_new_data_plane_takes_over_without_a_broken_answer", &[]) {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    rig.agent.expect(HUB_GONE);
    let clusters = write_clusters(&rig.bed, &[("dev", DEV_TOKEN)])?;
    let load = Load::start(
        &rig.bed.client,
        internal(),
        "dev",
        4,
        Duration::from_millis(5),
    )?;
    load.wait_answered(50, Duration::from_secs(10))?;
    // Both listen on the same ports (SO_REUSEPORT); the old one hands its agents over.
    let admin = ["--clusters", &clusters, "--admin-addr", "127.0.0.1:9911"];
    let mut next = crate::hub::spawn_dataplane(&rig.bed, "next", &admin)?;
    next.wait_until("its admin port", Duration::from_secs(10), |_| {
        rig.bed
            .hub
            .probe(([127, 0, 0, 1], 9911).into())
            .then_some(())
    })?;
    rig.dataplane.terminate()?;
    let status = rig.dataplane.wait_end(Duration::from_secs(40))?;
    assert!(status.success(), "{status}");
    let up = wait_served(&rig.bed, "dev", Duration::from_secs(10))?;
    let tally = load.finish();
    println!(
        "{} answered, {} failed, longest gap {:?}",
        tally.answered, tally.failed, tally.longest_gap
    );
    println!("served by the next one {up:?} after the end");
    // Clients that the old one sends away find the next one before the agents do: until these have
    // moved they are refused, in words, and no answer is broken.
    for failure in &tally.failures {
        assert!(failure.contains("agent_absent"), "{failure}");
    }
    assert!(tally.failed <= tally.failures.len() as u64, "{tally:#?}");
    let gap = tally.longest_gap;
    assert!(
        gap < Duration::from_secs(5),
        "nothing was served for {gap:?}"
    );
    Ok(())
}

#[test]
fn several_agents_share_and_one_may_leave() -> Result<()> {
    if !ready("several_agents_share_and_one_may_leave", &[]) {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    let mut second = Agent::plain(&rig.bed.site, "second", DEV_TOKEN, rig.upstream.address);
    second.health = 8082;
    let _second = second.start(&rig.bed)?;
    let load = Load::start(&rig.bed.client, internal(), "dev", 8, Duration::ZERO)?;
    load.wait_answered(500, Duration::from_secs(20))?;
    for health in [8081, 8082] {
        let metrics = client::get(&rig.bed.site, ([127, 0, 0, 1], health).into(), "/metrics")?;
        let served = client::metric(&metrics.text(), "agent_upstream_requests_total");
        assert!(served > 20.0, "the agent at {health} served {served}");
    }
    rig.agent.terminate()?;
    let status = rig.agent.wait_end(Duration::from_secs(40))?;
    assert!(status.success(), "{status}");
    let already = load.tally().answered;
    load.wait_answered(already + 200, Duration::from_secs(20))?;
    let tally = load.finish();
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    Ok(())
}

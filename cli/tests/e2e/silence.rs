//! A peer that goes silent: found within 15 s on our own carrier, idle and with writes queued.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{BlackHole, Way, wait_for};

use crate::client::{self, Live, metric};
use crate::hub::{Rig, internal, public, ready, wait_served};
use crate::radar::QueuedUpload;

/// The promise of contract A-18, and a second for looking.
const FOUND_MAX: Duration = Duration::from_millis(15_000 + 1_000);

#[test]
fn idle_silence_is_found_by_both_sides() -> Result<()> {
    if !ready("idle_silence_is_found_by_both_sides", &[]) {
        return Ok(());
    }
    each_way(|way| {
        let rig = Rig::start()?;
        found(&rig, way, &format!("idle, {way:?}"))
    })
}

#[test]
fn silence_with_writes_queued_both_ways_is_found() -> Result<()> {
    if !ready("silence_with_writes_queued_both_ways_is_found", &[]) {
        return Ok(());
    }
    each_way(|way| {
        let rig = Rig::start()?;
        // Down: a reader that stopped. Up: a service that never reads. Both queues are full.
        let mut download = Live::get(&rig.bed.client, internal(), "/tunnel/dev/endless")?;
        download.read_text("xxxx", Duration::from_secs(5))?;
        let _upload = QueuedUpload::start(&rig.bed, internal(), "/tunnel/dev/sink")?;
        found(&rig, way, &format!("writes queued, {way:?}"))?;
        download.read_end(Duration::from_secs(10))?;
        ensure!(
            !download.received.ends_with(b"0\r\n\r\n"),
            "truncated as complete"
        );
        Ok(())
    })
}

/// The three ways at once, each in its own testbed: the time is spent waiting.
fn each_way(trial: impl Fn(Way) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let trial = &trial;
        let threads: Vec<_> = [Way::In, Way::Out, Way::Both]
            .into_iter()
            .map(|way| scope.spawn(move || trial(way).with_context(|| format!("{way:?}"))))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic in a trial"))
    })
}

fn found(rig: &Rig, way: Way, what: &str) -> Result<()> {
    let hole = BlackHole::dig(&rig.bed.hub, &rig.bed.site, way, public())?;
    let start = Instant::now();
    let (mut hub, mut agent) = (None, None);
    wait_for(what, Duration::from_secs(40), || {
        if hub.is_none() {
            let metrics = rig.get("/metrics").ok()?.text();
            hub = (metric(&metrics, "agents_connected") == 0.0).then(|| start.elapsed());
        }
        if agent.is_none() {
            let health = ([127, 0, 0, 1], 8081).into();
            let metrics = client::get(&rig.bed.site, health, "/metrics").ok()?.text();
            agent = (metric(&metrics, "agent_connected") == 0.0).then(|| start.elapsed());
        }
        hub.and(agent)
    })?;
    let mut output = std::io::stdout();
    writeln!(output, "{what}: hub after {hub:?}, agent after {agent:?}")?;
    // A panic, so that the logs of both processes are shown.
    assert!(
        hub < Some(FOUND_MAX),
        "{what}: the hub found it after {hub:?}"
    );
    assert!(
        agent < Some(FOUND_MAX),
        "{what}: the agent found it after {agent:?}"
    );
    drop(hole);
    let back = wait_served(&rig.bed, "dev", Duration::from_secs(65))?;
    writeln!(output, "{what}: back {back:?} after it healed")?;
    Ok(())
}

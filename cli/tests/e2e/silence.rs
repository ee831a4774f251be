//! A peer that goes silent: found within 15 s on our own carrier, idle and with writes queued.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{BlackHole, Way, wait_for};

use crate::client::{self, Live, metric};
use crate::hub::{Rig, internal, public, ready, wait_served};
use crate::radar::QueuedUpload;
use crate::watched::HUB_GONE;

/// The promise of contract A-18.
const FOUND_MAX: Duration = Duration::from_secs(15);

#[test]
fn idle_silence_is_found_by_both_sides() -> Result<()> {
    if !ready("idle_silence_is_found_by_both_sides", &[]) {
        return Ok(());
    }
    each_way(|way| {
        let mut rig = Rig::start()?;
        rig.agent.expect(HUB_GONE);
        found(&rig, way, &format!("idle, {way:?}"))
    })
}

#[test]
fn silence_with_writes_queued_both_ways_is_found() -> Result<()> {
    if !ready("silence_with_writes_queued_both_ways_is_found", &[]) {
        return Ok(());
    }
    each_way(|way| {
        let mut rig = Rig::start()?;
        rig.agent.expect(HUB_GONE);
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

/// What one side said of its session, in time since the silence began.
#[derive(Debug, Default)]
struct Seen {
    alive: Duration,
    found: Option<Duration>,
}

impl Seen {
    fn look(&mut self, hole: &BlackHole<'_>, is_alive: impl Fn() -> Option<bool>) {
        if self.found.is_some() {
            return;
        }
        let before = hole.since().elapsed();
        match is_alive() {
            Some(true) => self.alive = before,
            Some(false) => self.found = Some(hole.since().elapsed()),
            None => {}
        }
    }
}

fn found(rig: &Rig, way: Way, what: &str) -> Result<()> {
    let hole = BlackHole::dig(&rig.bed.hub, &rig.bed.site, way, public())?;
    // Of each side: when it was last seen alive, and when it first was not.
    let (mut hub, mut agent) = (Seen::default(), Seen::default());
    wait_for(what, Duration::from_secs(40), || {
        hub.look(&hole, || {
            let metrics = rig.get("/metrics").ok()?.text();
            Some(metric(&metrics, "agents_connected") == 1.0)
        });
        agent.look(&hole, || {
            let health = ([127, 0, 0, 1], 8081).into();
            let metrics = client::get(&rig.bed.site, health, "/metrics").ok()?.text();
            Some(metric(&metrics, "agent_connected") == 1.0)
        });
        hub.found.and(agent.found)
    })?;
    let mut output = std::io::stdout();
    writeln!(output, "{what}: hub {hub:?}, agent {agent:?}")?;
    for (side, seen) in [("hub", &hub), ("agent", &agent)] {
        // A panic, so that the logs of both processes are shown.
        assert!(seen.alive <= FOUND_MAX, "{what}: the {side}: {seen:?}");
    }
    drop(hole);
    let back = wait_served(&rig.bed, "dev", Duration::from_secs(65))?;
    writeln!(output, "{what}: back {back:?} after it healed")?;
    Ok(())
}

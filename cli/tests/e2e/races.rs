//! The old session ends late: it must never unregister the newer one (decision D-05).

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_perf::testbed::{Layout, Namespace, Testbed, wait_for};

use crate::client::{self, metric};
use crate::hub::{
    Agent, DEV_TOKEN, PUBLIC, Rig, dataplane, internal, ready, wait_served, write_clusters,
};
use crate::load::Load;
use crate::radar::Connector;
use crate::upstream::Upstream;
use crate::watched::HUB_GONE;

/// The agents lose their connections, the hub hears nothing of it and keeps half-open ones until
/// their deadline; the agents are back at once. From then on no request may fail, and the late end
/// of the old sessions changes nothing. Three trials at once, of three agents each, at different
/// distances from the last beat.
#[test]
fn the_late_end_of_an_old_session_changes_nothing() -> Result<()> {
    if !ready("the_late_end_of_an_old_session_changes_nothing", &[]) {
        return Ok(());
    }
    std::thread::scope(|scope| {
        let trials: Vec<_> = [0, 1_500, 3_300]
            .map(|after_ms| scope.spawn(move || late_end(Duration::from_millis(after_ms))))
            .into();
        trials
            .into_iter()
            .try_for_each(|trial| trial.join().expect("no panic in a trial"))
    })
}

const CLUSTERS: [(&str, &str); 3] = [
    ("dev", DEV_TOKEN),
    ("second", "second-token-0123456789abcdef"),
    ("third", "third-token-0123456789abcdef"),
];

fn late_end(after: Duration) -> Result<()> {
    let bed = Testbed::new(Layout::default())?;
    let upstream = Upstream::start(&bed.site)?;
    let file = write_clusters(&bed, &CLUSTERS)?;
    let dataplane = dataplane(&bed, "dataplane", &["--clusters", &file])?;
    let mut agents = Vec::new();
    for (health, (cluster, token)) in (8081..).zip(CLUSTERS) {
        let mut agent = Agent::plain(&bed.site, cluster, token, upstream.address);
        agent.health = health;
        let mut agent = agent.start(&bed)?;
        agent.expect(HUB_GONE);
        agents.push(agent);
    }
    std::thread::sleep(after);
    let old = own_ports(&bed.site)?;
    assert_eq!(old.len(), CLUSTERS.len());
    let set = old.join(", ");
    bed.site.nft(&format!(
        "table inet half {{
           chain in {{ type filter hook input priority -200; tcp dport {{ {set} }} drop; }};
           chain out {{ type filter hook output priority -200; tcp sport {{ {set} }} drop; }}; }}"
    ))?;
    let start = Instant::now();
    for port in &old {
        let sport = format!(":{port}");
        let killed = bed
            .site
            .output("ss", &["-K", "-tn", "sport", "=", &sport])?;
        assert!(killed.contains(port), "ss -K did not bite: {killed}");
    }
    wait_for("new sessions", Duration::from_secs(10), || {
        let ports = own_ports(&bed.site).ok()?;
        let fresh = ports.iter().filter(|port| !old.contains(port)).count();
        (fresh == CLUSTERS.len()).then_some(())
    })?;
    let mut loads = Vec::new();
    for (cluster, _) in CLUSTERS {
        wait_served(&bed, cluster, Duration::from_secs(5))?;
        let pause = Duration::from_millis(5);
        loads.push(Load::start(&bed.client, internal(), cluster, 3, pause)?);
    }
    let mut output = std::io::stdout();
    writeln!(output, "served again after {:?}", start.elapsed())?;
    // Longer than the old ones can live: 15 s without a byte.
    wait_for(
        "the half-open connections to end",
        Duration::from_secs(20),
        || {
            let sport = format!(":{PUBLIC}");
            let held = bed.hub.output("ss", &["-Htn", "sport", "=", &sport]).ok()?;
            let is_held = |port: &String| held.contains(&format!("10.77.2.2:{port}"));
            (!old.iter().any(is_held)).then_some(())
        },
    )?;
    for (load, (cluster, _)) in loads.into_iter().zip(CLUSTERS) {
        let already = load.tally().answered;
        load.wait_answered(already + 200, Duration::from_secs(20))?;
        let tally = load.finish();
        let (answered, gap) = (tally.answered, tally.longest_gap);
        writeln!(
            output,
            "{cluster}: {answered} requests, longest gap {gap:?}"
        )?;
        assert_eq!(tally.failed, 0, "{cluster}: {:#?}", tally.failures);
    }
    let metrics = client::get(&bed.client, internal(), "/metrics")?.text();
    assert_eq!(metric(&metrics, "agents_connected"), 3.0);
    // The first to be dropped: what the agents say of its end is no part of the test.
    drop(dataplane);
    Ok(())
}

/// The site's own ports of its connections to the hub.
fn own_ports(site: &Namespace) -> Result<Vec<String>> {
    let dport = format!(":{PUBLIC}");
    let said = site.output(
        "ss",
        &["-Htn", "state", "established", "dport", "=", &dport],
    )?;
    let words = said.split_whitespace();
    let own = words.filter_map(|word| word.strip_prefix("10.77.2.2:"));
    Ok(own.map(str::to_owned).collect())
}

/// Carriers without an instance id: the last writer wins, and the end of the losers is harmless in
/// each order.
#[test]
fn the_last_connector_wins_whenever_the_others_end() -> Result<()> {
    if !ready("the_last_connector_wins_whenever_the_others_end", &[]) {
        return Ok(());
    }
    std::thread::scope(|scope| {
        // Each in its own testbed: a cluster that swaps its session too often is held down.
        let trials: Vec<_> = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]]
            .map(|order| scope.spawn(move || last_wins(order)))
            .into();
        trials
            .into_iter()
            .try_for_each(|trial| trial.join().expect("no panic in a trial"))
    })
}

fn last_wins(order: [usize; 3]) -> Result<()> {
    let mut rig = Rig::start()?;
    rig.agent.kill_9()?;
    wait_for(
        "the native agent to be gone",
        Duration::from_secs(5),
        || (rig.get("/tunnel/dev/id/x").ok()?.status == 503).then_some(()),
    )?;
    let mut older = Vec::new();
    for number in 0..4 {
        let tag = format!("connector-{number}");
        let site = &rig.bed.site;
        older.push(Some(Connector::connect(site, "/agent", DEV_TOKEN, &tag)?));
        // The 101 was read here a moment before the hub's table has the session.
        wait_for(&tag, Duration::from_secs(2), || {
            let answer = rig.get("/tunnel/dev/id/x").ok()?;
            (answer.header("x-tag") == Some(tag.as_str())).then_some(())
        })?;
    }
    let last = older.pop().flatten().context("four were made")?;
    for loser in order {
        older[loser].take().context("each ends once")?.close();
        for _ in 0..30 {
            let answer = rig.get("/tunnel/dev/id/x")?;
            assert_eq!(answer.header("x-tag"), Some("connector-3"), "{answer:?}");
        }
    }
    last.close();
    wait_for("nobody is left", Duration::from_secs(5), || {
        (rig.get("/tunnel/dev/id/x").ok()?.status == 503).then_some(())
    })
}

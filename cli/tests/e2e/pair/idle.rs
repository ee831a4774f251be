//! Boxes on the way that forget: connections kept by their own beats, and those lost replaced.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{HUB_FOR_SITE, Namespace, wait_for};

use super::echo::{self, PAIR_GONE, RELAY_GONE, again, ask, wait_answered};
use super::{Files, Paired, RELAY, bed, wait_ready};
use crate::hub::ready;

/// What the box remembers, and for how long we say nothing.
const FORGETS_S: u64 = 60;
const IDLE: Duration = Duration::from_secs(FORGETS_S + 8);
/// A dead pair is found.
const FOUND_MAX: Duration = Duration::from_secs(15);
/// From there to the next pair.
const PAIRED_MAX: Duration = Duration::from_secs(5);
/// What a client waits for at most while the relay has two dead waiters before it: 2 s for each.
const FOUND_BESIDE_MAX: Duration = Duration::from_secs(8);
/// Waiters hear a word every 15 s; after this silence they come again.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// A box before `host` that lets nothing in but answers, and forgets what is idle for a minute.
fn forget(host: &Namespace) -> Result<()> {
    for (name, value) in [
        ("nf_conntrack_tcp_timeout_established", FORGETS_S),
        // What is forgotten is not learnt again from the middle.
        ("nf_conntrack_tcp_loose", 0),
    ] {
        let setting = format!("net.netfilter.{name}={value}");
        host.output("sysctl", &["-qw", &setting])?;
    }
    host.nft(
        "table inet forgets {
           chain in { type filter hook input priority -10; policy accept;
             iifname lo accept
             ct state established,related accept
             counter drop
           }
           chain out { type filter hook output priority -10; policy accept;
             oifname lo accept
             ct state invalid counter drop
           }
         }",
    )
}

/// The local ports of `host`'s connections to the relay.
fn ports(host: &Namespace) -> Result<BTreeSet<u16>> {
    ports_of(host, 0)
}

/// Of connections with a relay: the ports of this end (0), or of the other where this is it (1).
fn ports_of(host: &Namespace, end: usize) -> Result<BTreeSet<u16>> {
    let listed = host.output("ss", &["-Htn", "state", "established"])?;
    let of = |line: &str| {
        let ends: Vec<_> = line.split_whitespace().skip(2).take(2).collect();
        let with_relay = ends.get(1 - end)?.ends_with(&format!(":{RELAY}"));
        let port = ends.get(end)?.rsplit(':').next()?.parse().ok()?;
        with_relay.then_some(port)
    };
    Ok(listed.lines().filter_map(of).collect())
}

/// From now on nothing passes on the connections from these ports, and nobody is told.
fn cut(hub: &Namespace, ports: &BTreeSet<u16>) -> Result<()> {
    let all: Vec<String> = ports.iter().map(u16::to_string).collect();
    let all = all.join(", ");
    hub.nft(&format!(
        "table inet cut {{
           chain in {{ type filter hook input priority -200; tcp sport {{ {all} }} counter drop; }};
           chain out {{ type filter hook output priority -200; tcp dport {{ {all} }} counter drop; }}; }}"
    ))
}

/// Says nothing on anything for longer than the box remembers.
fn idle(name: &str, for_broker: &[&str], matches: f64) -> Result<()> {
    if !ready(name, &["ss", "sysctl"]) {
        return Ok(());
    }
    let bed = bed()?;
    forget(&bed.site)?;
    forget(&bed.client)?;
    let to = echo::start(&bed.site)?;
    let rig = Paired::start(bed, to, [&[], &[], for_broker])?;
    let bed = &rig.bed;
    // A connection that nobody keeps alive proves that the box bites.
    let listener = bed.hub.run(|| TcpListener::bind(("0.0.0.0", 7)))?;
    let mut unkept = bed.site.run(|| TcpStream::connect((HUB_FOR_SITE, 7)))?;
    let (mut far, _) = listener.accept()?;
    unkept.write_all(b"a")?;
    far.read_exact(&mut [0])?;
    let mut held = ask(&bed.client, Duration::from_secs(20))?;
    wait_for("the waiters", Duration::from_secs(20), || {
        (rig.relay_metric("culvert_pair_waiting").ok()? == 2.0).then_some(())
    })?;
    let before = (ports(&bed.client)?, ports(&bed.site)?);
    ensure!(
        !before.0.is_empty() && before.1.len() == before.0.len() + 2,
        "{before:?}"
    );

    std::thread::sleep(IDLE);

    unkept.write_all(b"b")?;
    far.set_read_timeout(Some(Duration::from_secs(2)))?;
    ensure!(far.read(&mut [0]).is_err(), "the box does not forget");
    let after = (ports(&bed.client)?, ports(&bed.site)?);
    println!("idle for {IDLE:?}: ports of broker and bridge {before:?} -> {after:?}");
    ensure!(before == after, "connections were replaced");
    let start = Instant::now();
    again(&mut held).context("what was idle goes on")?;
    ask(&bed.client, Duration::from_secs(20)).context("a new connection")?;
    println!("both served within {:?}", start.elapsed());
    let matched = rig.relay_metric("culvert_pair_matches_total")?;
    ensure!(matched == matches, "{matched} pairs were made");
    Ok(())
}

#[test]
fn an_idle_pair_and_its_waiters_outlive_a_box_that_forgets() -> Result<()> {
    idle(
        "an_idle_pair_and_its_waiters_outlive_a_box_that_forgets",
        &[],
        1.0,
    )
}

#[test]
fn an_idle_connection_with_its_own_pair_outlives_a_box_that_forgets() -> Result<()> {
    let name = "an_idle_connection_with_its_own_pair_outlives_a_box_that_forgets";
    idle(name, &["--flow-per-pair"], 2.0)
}

#[test]
fn a_pair_that_is_cut_in_silence_is_replaced() -> Result<()> {
    if !ready("a_pair_that_is_cut_in_silence_is_replaced", &["ss"]) {
        return Ok(());
    }
    let bed = bed()?;
    let to = echo::start(&bed.site)?;
    let mut rig = Paired::start(bed, to, [&[], &[], &[]])?;
    rig.broker.expect(PAIR_GONE);
    let bed = &rig.bed;
    ask(&bed.client, Duration::from_secs(20))?;
    let old = ports(&bed.client)?;
    ensure!(old.len() == 1, "{old:?}");
    cut(&bed.hub, &old)?;
    let start = Instant::now();
    // A client every second, who waits as long as clients do.
    let tried = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..22)
            .map(|second| {
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_secs(second));
                    let asked = ask(&bed.client, Duration::from_secs(30));
                    (
                        second,
                        start.elapsed(),
                        asked.map(drop).map_err(|why| why.kind()),
                    )
                })
            })
            .collect();
        let joined = tries
            .into_iter()
            .map(|it| it.join().expect("a client does not panic"));
        joined.collect::<Vec<_>>()
    });
    let mut served = tried.iter().filter(|(.., asked)| asked.is_ok());
    let first = served
        .clone()
        .map(|(_, at, _)| *at)
        .min()
        .context("anybody served")?;
    let lost: Vec<_> = tried.iter().filter(|(.., asked)| asked.is_err()).collect();
    println!(
        "the first is served {first:?} after the cut, {} of 22; lost: {lost:?}",
        served.by_ref().count()
    );
    ensure!(first < FOUND_MAX + PAIRED_MAX, "{first:?}");
    ensure!(lost.is_empty(), "{lost:?}");
    ensure!(
        old.is_disjoint(&ports(&bed.client)?),
        "the old connection lives"
    );
    Ok(())
}

#[test]
fn waiters_that_are_cut_in_silence_come_again() -> Result<()> {
    if !ready("waiters_that_are_cut_in_silence_come_again", &["ss"]) {
        return Ok(());
    }
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let to = echo::start(&bed.site)?;
    let relay = files.relay(&bed, "relay", &[])?;
    let mut bridge = files.bridge(&bed, to, &[])?;
    bridge.expect(RELAY_GONE);
    wait_ready(&mut bridge, &bed.site)?;
    let waiting = |wanted: usize| -> Result<BTreeSet<u16>> {
        wait_for("the waiters", Duration::from_secs(20), || {
            ports(&bed.site).ok().filter(|ports| ports.len() == wanted)
        })
    };
    let old = waiting(2)?;
    cut(&bed.hub, &old)?;
    let start = Instant::now();
    let limit = SILENCE_MAX + PAIRED_MAX;
    let new = wait_for("two new waiters", limit, || {
        let new: BTreeSet<u16> = ports(&bed.site).ok()?.difference(&old).copied().collect();
        (new.len() == 2).then_some(new)
    })?;
    println!("{old:?} are cut; {new:?} wait {:?} later", start.elapsed());
    // The relay lets the dead ones go too, or a broker would meet one of them.
    wait_for("the relay to see it", limit, || {
        let held = ports_of(&bed.hub, 1).ok()?;
        held.is_disjoint(&old).then_some(())
    })?;
    println!("the relay has but them {:?} after the cut", start.elapsed());
    let mut broker = files.broker(&bed, &[])?;
    broker.expect(PAIR_GONE);
    let took = wait_answered(&bed.client, Duration::from_secs(20))?;
    println!("a broker that comes then is served within {took:?}");
    ensure!(took < PAIRED_MAX, "{took:?}");
    drop((broker, bridge, relay));
    Ok(())
}

/// The host of a bridge is gone without a word, and its connections wait at the relay before those of
/// the bridge that took its place.
fn vanished(name: &str, for_broker: &[&str]) -> Result<()> {
    if !ready(name, &["ss"]) {
        return Ok(());
    }
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let to = echo::start(&bed.site)?;
    let relay = files.relay(&bed, "relay", &[])?;
    let mut gone = files.bridge(&bed, to, &[])?;
    wait_ready(&mut gone, &bed.site)?;
    let old = wait_for("the waiters", Duration::from_secs(20), || {
        ports(&bed.site).ok().filter(|ports| ports.len() == 2)
    })?;
    cut(&bed.hub, &old)?;
    gone.kill_9()?;
    let start = Instant::now();
    let mut bridge = files.bridge(&bed, to, &[])?;
    wait_ready(&mut bridge, &bed.site)?;
    wait_for("all waiters", Duration::from_secs(20), || {
        let held = ports_of(&bed.hub, 1).ok()?;
        (held.len() == 4 && old.is_subset(&held)).then_some(())
    })?;
    let mut broker = files.broker(&bed, for_broker)?;
    broker.wait_log("broker starts", crate::hub::START_MAX)?;
    let asked = Instant::now();
    ask(&bed.client, Duration::from_secs(20)).context("a client beside dead waiters")?;
    println!(
        "{for_broker:?}: served {:?} after it asked, {:?} after the host was gone",
        asked.elapsed(),
        start.elapsed()
    );
    ensure!(asked.elapsed() < FOUND_BESIDE_MAX, "{:?}", asked.elapsed());
    drop((broker, bridge, relay));
    Ok(())
}

#[test]
fn a_vanished_bridge_costs_a_client_no_connection() -> Result<()> {
    let name = "a_vanished_bridge_costs_a_client_no_connection";
    vanished(name, &[])?;
    vanished(name, &["--flow-per-pair"])
}

//! Relays that die and come back: the sides find each other again within 5 s.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use culvert_perf::testbed::{HUB_FOR_CLIENT, Spawn, Testbed, wait_for};

use super::echo::{self, PAIR_GONE, RELAY_GONE, ask, wait_answered};
use super::{Files, Paired, RELAY, bed, wait_ready};
use crate::hub::{START_MAX, binary, ready};
use crate::routed::metric;
use crate::watched::Watched;

/// The promise of contract B-12, for each loss of a relay.
const PAIRED_MAX: Duration = Duration::from_secs(5);
const RELAYS: u16 = 3;
const ROUNDS: u16 = 6;
const EVERY: Duration = Duration::from_secs(5);

/// Three relays on one host, told apart by port.
struct Relays<'a> {
    bed: &'a Testbed,
    files: &'a Files,
    running: Vec<Watched>,
}

impl Relays<'_> {
    fn start(&self, nth: u16, life: &str) -> Result<Watched> {
        let port = RELAY + nth;
        let spawn = Spawn::new(binary("culvert-dataplane")?)
            .args(["relay", "--addr", &format!("0.0.0.0:{port}")])
            .args(["--tls-cert", &self.files.relay_cert])
            .args(["--tls-key", &self.files.relay_key])
            .args(["--admin-addr", &admin(nth).to_string()]);
        let name = format!("relay-{nth}-{life}");
        let mut relay = Watched::start(spawn, self.bed, &self.bed.hub, &name)?;
        relay.wait_port(&self.bed.client, (HUB_FOR_CLIENT, port).into(), START_MAX)?;
        Ok(relay)
    }

    fn count(&self, nth: u16, of: &str) -> Result<f64> {
        metric(&self.bed.hub, admin(nth), of)
    }

    /// The relay through which the pair runs.
    fn carrying(&self) -> Result<u16> {
        wait_for("one relay with the pair", Duration::from_secs(20), || {
            let carries = |nth: &u16| {
                self.count(*nth, "culvert_pair_live")
                    .is_ok_and(|it| it > 0.0)
            };
            let carrying: Vec<u16> = (0..RELAYS).filter(carries).collect();
            (carrying.len() == 1).then(|| carrying[0])
        })
    }

    fn wait_waited_at(&self) -> Result<()> {
        wait_for("the bridge at every relay", Duration::from_secs(20), || {
            let waits = |nth| self.count(nth, "culvert_pair_waiting").ok();
            (0..RELAYS).all(|nth| waits(nth) == Some(2.0)).then_some(())
        })
    }
}

fn admin(nth: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 9901 + nth).into()
}

#[test]
fn one_of_three_relays_is_killed_every_five_seconds() -> Result<()> {
    if !ready("one_of_three_relays_is_killed_every_five_seconds", &[]) {
        return Ok(());
    }
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let to = echo::start(&bed.site)?;
    let mut relays = Relays {
        bed: &bed,
        files: &files,
        running: Vec::new(),
    };
    for nth in 0..RELAYS {
        let relay = relays.start(nth, "first")?;
        relays.running.push(relay);
    }
    let further = |at| [1, 2].map(|nth| format!("--relay={at}:{}", RELAY + nth));
    let (for_bridge, for_broker) = (further("10.77.2.1"), further("10.77.1.1"));
    let mut bridge = files.bridge(&bed, to, &for_bridge.each_ref().map(String::as_str))?;
    bridge.expect(RELAY_GONE);
    wait_ready(&mut bridge, &bed.site)?;
    relays.wait_waited_at()?;
    let mut broker = files.broker(&bed, &for_broker.each_ref().map(String::as_str))?;
    broker.expect(PAIR_GONE);
    wait_ready(&mut broker, &bed.client)?;

    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let carrying = relays.carrying()?;
        // In turn, and between two turns the one that hurts.
        let victim = if round % 2 == 0 {
            carrying
        } else {
            round % RELAYS
        };
        relays.running[usize::from(victim)].kill_9()?;
        let start = Instant::now();
        let took = wait_answered(&bed.client, Duration::from_secs(20))?;
        println!(
            "round {round}: relay {victim} dies, {carrying} had the pair: served after {took:?}"
        );
        times.push(took);
        relays.running[usize::from(victim)] = relays.start(victim, &round.to_string())?;
        wait_for("the next round", EVERY * 2, || {
            (start.elapsed() >= EVERY).then_some(())
        })?;
    }
    assert!(times.iter().all(|took| *took < PAIRED_MAX), "{times:?}");
    // The bridge is back everywhere, with as much as before.
    relays.carrying()?;
    relays.wait_waited_at()
}

#[test]
fn the_only_relay_comes_back() -> Result<()> {
    if !ready("the_only_relay_comes_back", &[]) {
        return Ok(());
    }
    let bed = bed()?;
    let to = echo::start(&bed.site)?;
    let mut rig = Paired::start(bed, to, [&[], &[], &[]])?;
    rig.bridge.expect(RELAY_GONE);
    rig.broker.expect(PAIR_GONE);
    ask(&rig.bed.client, START_MAX)?;
    // Both sides wait longer and longer between two tries; the longest pause counts.
    for (life, away_ms) in [100, 2_000, 5_000, 9_000].into_iter().enumerate() {
        rig.relay.kill_9()?;
        std::thread::sleep(Duration::from_millis(away_ms));
        rig.relay = rig.files.relay(&rig.bed, &format!("relay-{life}"), &[])?;
        let took = wait_answered(&rig.bed.client, Duration::from_secs(20))?;
        println!("away for {away_ms} ms: served {took:?} after it listens");
        ensure!(took < PAIRED_MAX, "{took:?}");
    }
    Ok(())
}

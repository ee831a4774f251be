//! Position-dependent bytes through a relay that splices, on both of its engines.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_perf::testbed::{SITE, wait_for};

use super::super::routed::amount;
use crate::hub::ready;
use crate::pair::{BROKER, Paired, bed};
use crate::pattern::{self, Amount};

/// Slices of what `cargo xtask soak` moves.
const BYTES: u64 = 256 << 20;
const CONNECTIONS: u64 = 150;
/// Where each connection has a pair, the relay's limits bound how many come in a minute.
const PAIRS: u64 = 400;
const RELAY: &[&str] = &["--connections-per-minute", "1000", "--io-engine"];

fn every_byte(test: &str, engine: &str, each: bool) -> Result<()> {
    if !ready(test, &[]) {
        return Ok(());
    }
    let service = SocketAddr::from((SITE, 5_000));
    let relay = [RELAY, &[engine]].concat();
    let broker: &[&str] = if each { &["--flow-per-pair"] } else { &[] };
    let rig = Paired::start(bed()?, service, [&relay, &[], broker])?;
    let connections = amount("CULVERT_PATTERN_CONNECTIONS", CONNECTIONS)?;
    let amount = Amount {
        connections: connections.min(if each { PAIRS } else { u64::MAX }),
        bytes: amount("CULVERT_PATTERN_BYTES", BYTES)?,
        at_once: if each { 16 } else { 64 },
        seed: amount("CULVERT_PATTERN_SEED", 1)?,
    };
    let start = Instant::now();
    let tally = pattern::run(&rig.bed.client, BROKER, &rig.bed.site, service, amount)?;
    let took = start.elapsed();
    let spliced = rig.spliced_of(tally.bytes)?;
    let pairs = rig.relay_metric("culvert_pair_matches_total")?;
    let memory = [&rig.relay, &rig.bridge, &rig.broker].map(|it| it.resident_kib().ok());
    println!(
        "{engine}: {tally:?} in {took:?}, {pairs} pairs, {spliced} bytes spliced, \
         KiB of relay, bridge and broker {memory:?}"
    );
    assert_eq!(tally.connections, amount.connections);
    assert!(
        tally.resets > 0 && tally.bytes > amount.bytes / 4,
        "{tally:?}"
    );
    assert!(spliced > tally.bytes as f64 / 4.0, "{spliced}");
    if !each {
        assert_eq!(pairs, 1.0);
        return Ok(());
    }
    assert!(pairs >= amount.connections as f64, "{pairs} pairs");
    wait_for("the pairs to end", Duration::from_secs(30), || {
        let pairs = rig.relay_metric("culvert_engine_pairs").ok()?;
        (pairs == 0.0).then_some(())
    })
}

#[test]
fn every_byte_over_one_pair_on_io_uring() -> Result<()> {
    every_byte("every_byte_over_one_pair_on_io_uring", "io_uring", false)
}

#[test]
fn every_byte_over_one_pair_on_epoll() -> Result<()> {
    every_byte("every_byte_over_one_pair_on_epoll", "epoll", false)
}

#[test]
fn every_byte_over_a_pair_for_each_on_io_uring() -> Result<()> {
    let test = "every_byte_over_a_pair_for_each_on_io_uring";
    every_byte(test, "io_uring", true)
}

#[test]
fn every_byte_over_a_pair_for_each_on_epoll() -> Result<()> {
    every_byte("every_byte_over_a_pair_for_each_on_epoll", "epoll", true)
}

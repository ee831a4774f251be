//! Position-dependent bytes over connections of random lives, on both backends and all datapaths.

use super::*;

/// Slices of what `cargo xtask soak` moves: 10 GiB over 2,000 connections.
const BYTES: u64 = 192 << 20;
const CONNECTIONS: u64 = 200;

fn every_byte(test: &str, flags: &[&str], datapath: &str) -> Result<()> {
    if !ready(test, &[]) {
        return Ok(());
    }
    let rig = rig(flags)?;
    let amount = Amount {
        connections: amount("CULVERT_PATTERN_CONNECTIONS", CONNECTIONS)?,
        bytes: amount("CULVERT_PATTERN_BYTES", BYTES)?,
        at_once: 64,
        seed: amount("CULVERT_PATTERN_SEED", 1)?,
    };
    let start = Instant::now();
    let bed = &rig.bed;
    let tally = pattern::run(&bed.client, at_hub(PORT), &bed.site, service(), amount)?;
    let name = format!("culvert_flows_total{{datapath=\"{datapath}\"");
    let flows = rig.metric(&name)?;
    println!(
        "{flags:?}: {tally:?} in {:?}, {flows} flows by {datapath}",
        start.elapsed()
    );
    assert_eq!(tally.connections, amount.connections);
    assert!(
        tally.resets > 0 && tally.bytes > amount.bytes / 4,
        "{tally:?}"
    );
    assert!(
        flows >= amount.connections as f64 * 0.9,
        "{flows} by {datapath}"
    );
    wait_idle(&rig)
}

#[test]
fn every_byte_by_splice_on_io_uring() -> Result<()> {
    let flags = [PLAINTEXT, "--io-engine", "io_uring"];
    every_byte("every_byte_by_splice_on_io_uring", &flags, "splice")
}

#[test]
fn every_byte_by_splice_on_epoll() -> Result<()> {
    let flags = [PLAINTEXT, "--io-engine", "epoll"];
    every_byte("every_byte_by_splice_on_epoll", &flags, "splice")
}

#[test]
fn every_byte_by_streams_of_the_carrier() -> Result<()> {
    every_byte("every_byte_by_streams_of_the_carrier", &[], "stream")
}

//! Position-dependent bytes where no relay is between, and under a relay's kept TLS. What the relay
//! splices is proven by the heavy tests.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use culvert_perf::testbed::{HUB_FOR_CLIENT, HUB_FOR_SITE, Namespace, SITE};

use super::{BROKER, Files, Paired, bed, wait_ready};
use crate::hub::{START_MAX, ready};
use crate::pattern::{self, Amount};
use crate::watched::Watched;

/// Where one side listens for the other, without a relay.
const MEET: u16 = 8443;
const SERVICE: u16 = 5_000;

const AMOUNT: Amount = Amount {
    connections: 60,
    bytes: 32 << 20,
    at_once: 16,
    seed: 4,
};

/// Runs lives of the pattern from `client` through the broker to a service.
fn every_byte(client: &Namespace, site: &Namespace, service: SocketAddr) -> Result<()> {
    let tally = pattern::run(client, BROKER, site, service, AMOUNT)?;
    println!("{tally:?}");
    assert_eq!(tally.connections, AMOUNT.connections);
    assert!(tally.resets > 0 && tally.bytes > AMOUNT.bytes / 4);
    Ok(())
}

/// Both ways to use a pair: one for all, one for each.
fn each_way(mut one: impl FnMut(&[&str]) -> Result<()>) -> Result<()> {
    one(&[])?;
    one(&["--flow-per-pair"])
}

#[test]
fn every_byte_where_the_bridge_dials_the_broker() -> Result<()> {
    if !ready("every_byte_where_the_bridge_dials_the_broker", &[]) {
        return Ok(());
    }
    each_way(|flags| {
        let bed = bed()?;
        let files = Files::make(&bed)?;
        let meet = format!("{HUB_FOR_SITE}:{MEET}");
        let service = SocketAddr::from((SITE, SERVICE));
        let bridge = files
            .certified("bridge")?
            .args(["--mode", "reverse", "--dial", &meet])
            .args(["--to", &service.to_string()]);
        let broker = files
            .certified("broker")?
            .args(["--mode", "reverse", "--listen-pair", &meet])
            .args(flags);
        // The site cannot be dialled: the broker stands where the relay stood.
        let mut broker = Watched::start(broker, &bed, &bed.hub, "broker")?;
        broker.wait_log("broker starts", START_MAX)?;
        let mut bridge = Watched::start(bridge, &bed, &bed.site, "bridge")?;
        wait_ready(&mut bridge, &bed.site)?;
        wait_ready(&mut broker, &bed.hub)?;
        every_byte(&bed.hub, &bed.site, service)
    })
}

#[test]
fn every_byte_where_the_broker_dials_the_bridge() -> Result<()> {
    if !ready("every_byte_where_the_broker_dials_the_bridge", &[]) {
        return Ok(());
    }
    each_way(|flags| {
        let bed = bed()?;
        let files = Files::make(&bed)?;
        let meet = format!("{HUB_FOR_CLIENT}:{MEET}");
        let service = SocketAddr::from((Ipv4Addr::LOCALHOST, SERVICE));
        let bridge = files
            .certified("bridge")?
            .args(["--mode", "direct", "--listen-pair", &meet])
            .args(["--to", &service.to_string()]);
        let broker = files
            .certified("broker")?
            .args(["--mode", "direct", "--dial", &meet])
            .args(flags);
        let mut bridge = Watched::start(bridge, &bed, &bed.hub, "bridge")?;
        wait_ready(&mut bridge, &bed.hub)?;
        let mut broker = Watched::start(broker, &bed, &bed.client, "broker")?;
        wait_ready(&mut broker, &bed.client)?;
        every_byte(&bed.client, &bed.hub, service)
    })
}

#[test]
fn every_byte_under_the_relays_kept_tls() -> Result<()> {
    if !ready("every_byte_under_the_relays_kept_tls", &[]) {
        return Ok(());
    }
    each_way(|flags| {
        let keep = ["--outer-tls", "keep"];
        let broker = [&keep[..], flags].concat();
        let service = SocketAddr::from((SITE, SERVICE));
        let relay = [&keep[..], &["--connections-per-minute", "1000"]].concat();
        let rig = Paired::start(bed()?, service, [&relay, &keep, &broker])?;
        every_byte(&rig.bed.client, &rig.bed.site, service)?;
        assert_eq!(rig.relay_metric("culvert_engine_spliced_bytes_total")?, 0.0);
        Ok(())
    })
}

//! How many round trips lie between a client's dial and its first byte: counted on a path that is so
//! long that nothing else matters.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_perf::delay::{Delayer, Path};
use culvert_perf::testbed::{Namespace, Spawn};

use super::echo::{self, ask};
use super::{Files, RELAY, bed, wait_ready};
use crate::hub::{START_MAX, binary, ready};
use crate::mtls::Authority;
use crate::watched::Watched;

const ROUND_TRIP: Duration = Duration::from_millis(200);
/// Ends of the long path: the hub, and the client.
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 8, 1));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 8, 2));
/// Where a bridge listens that is called directly.
const MEET: u16 = 8443;
const TRIES: usize = 5;

/// The fewest round trips of some connections through the broker at `client`.
fn round_trips(what: &str, client: &Namespace) -> Result<f64> {
    let mut fewest = f64::MAX;
    for _ in 0..TRIES {
        let start = Instant::now();
        ask(client, Duration::from_secs(20))?;
        let took = start.elapsed();
        fewest = fewest.min(took.as_secs_f64() / ROUND_TRIP.as_secs_f64());
    }
    println!("{what}: {fewest:.2} round trips from the dial to the first byte");
    Ok(fewest)
}

/// Bridge and service at the hub, broker and clients behind the long path, which is where most
/// brokers stand; each connection has its own pair.
#[test]
fn the_first_byte_through_a_waiting_bridge_is_a_round_trip_later_than_directly() -> Result<()> {
    let name = "the_first_byte_through_a_waiting_bridge_is_a_round_trip_later_than_directly";
    if !ready(name, &["chrt"]) {
        return Ok(());
    }
    let path = Path {
        round_trip_ms: ROUND_TRIP.as_secs_f64() * 1e3,
        rate_mbit: 1_000.0,
        loss_percent: 0.0,
    };
    let bed = bed()?;
    let _delayer = Delayer::start(&bed.hub, &bed.client, path)?;
    let files = Files::make(&bed)?;
    let at_hub = echo::start_at(&bed.hub, Ipv4Addr::LOCALHOST.into())?;
    let relay = format!("--relay={FAR}:{RELAY}");
    let near_relay = format!("--relay={NEAR}:{RELAY}");
    let side = |role: &str, at: &Namespace, more: &[&str]| {
        let spawn = files.certified(role)?.args(more);
        Watched::start(spawn, &bed, at, role)
    };
    let to = at_hub.to_string();

    // The broker dials the bridge itself.
    let meet = format!("{NEAR}:{MEET}");
    let direct = {
        let listen = ["--mode", "direct", "--listen-pair", &meet, "--to", &to];
        let mut bridge = side("bridge", &bed.hub, &listen)?;
        wait_ready(&mut bridge, &bed.hub)?;
        let dial = ["--mode", "direct", "--dial", &meet, "--flow-per-pair"];
        let mut broker = side("broker", &bed.client, &dial)?;
        wait_ready(&mut broker, &bed.client)?;
        round_trips("directly", &bed.client)?
    };
    let authority = Authority::new()?;
    let relay_ca = authority.write(&bed.path("long-ca.pem"))?;
    let names = [NEAR, FAR].map(|address| address.to_string());
    let (cert, key) = authority.issue(&names, false, &bed.path("long"))?;
    let trust = ["--relay-ca", &relay_ca];
    let through = |what: &str, relays_host: &Namespace, place: &str| -> Result<f64> {
        let relay = Spawn::new(binary("culvert-dataplane")?).args([
            "relay",
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
        ]);
        let mut relay = Watched::start(relay, &bed, relays_host, "relay")?;
        relay.wait_port(relays_host, (Ipv4Addr::LOCALHOST, RELAY).into(), START_MAX)?;
        let mut bridge = side(
            "bridge",
            &bed.hub,
            &[&trust[..], &[place, "--to", &to]].concat(),
        )?;
        wait_ready(&mut bridge, &bed.hub)?;
        let each = [&trust[..], &[place, "--flow-per-pair"]].concat();
        let mut broker = side("broker", &bed.client, &each)?;
        wait_ready(&mut broker, &bed.client)?;
        let counted = round_trips(what, &bed.client)?;
        // In this order, so that nobody misses the other.
        drop((broker, bridge, relay));
        Ok(counted)
    };
    let beside_bridge = through("relay beside the bridge", &bed.hub, &near_relay)?;
    let beside_broker = through("relay beside the broker", &bed.client, &relay)?;
    // Each leg counts as often as it is passed, so half-way between the two it is half of both.
    let halfway = (beside_bridge + beside_broker) / 2.0;
    println!("relay half-way: {halfway:.2}, directly {direct:.2}");
    assert!(
        (direct - 3.0).abs() < 0.3,
        "TCP, TLS and the byte: {direct}"
    );
    assert!(halfway <= direct + 1.0, "{halfway}");
    assert!(beside_bridge <= direct + 2.3, "{beside_bridge}");
    assert!(beside_broker <= direct, "{beside_broker}");
    Ok(())
}

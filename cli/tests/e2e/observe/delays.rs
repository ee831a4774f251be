//! A delay put into one place shows in that place's figure, and in no other.

use std::thread::sleep;
use std::time::Instant;

use culvert_perf::delay::{Delayer, Path};

use super::*;

const RESIDENCE: &str = "culvert_relay_residence_seconds";
const RTT: &str = "culvert_tcp_rtt_seconds";
/// Questions for each figure.
const ASKED: usize = 60;
/// What is put in.
const DELAY: Duration = Duration::from_millis(20);
/// What the engine is told to wait: so much that a sleep that ends late is little beside it.
const DRAG: Duration = Duration::from_millis(40);
/// More than a relay or a veth takes, on a machine with other work.
const QUICK_S: f64 = 0.010;
/// A peer that answers soon acknowledges with its answer, and after so long without: a round trip
/// of TCP may hold that much of the peer's own time.
const ACK_S: f64 = 0.050;

/// Means in seconds: residence to the service and to the client, round trips of client and data leg.
fn figures(before: &Scrape, after: &Scrape, asked: usize) -> [f64; 4] {
    let residence = |direction| {
        let labels = [
            ("cluster", "dev"),
            ("direction", direction),
            ("queue", "empty"),
        ];
        let (mean, count) = after.mean(before, RESIDENCE, &labels);
        assert!(count >= asked as f64 * 0.8, "{count} samples {direction}");
        mean
    };
    let rtt = |leg| {
        after
            .mean(before, RTT, &[("cluster", "dev"), ("leg", leg)])
            .0
    };
    [
        residence("to_service"),
        residence("to_client"),
        rtt("client"),
        rtt("data"),
    ]
}

fn is_about(seen: f64, wanted: Duration, percent: f64) -> bool {
    (seen - wanted.as_secs_f64()).abs() <= wanted.as_secs_f64() * percent / 100.0
}

#[test]
fn a_slow_service_is_not_the_relay_nor_the_path() -> Result<()> {
    if !observing("a_slow_service_is_not_the_relay_nor_the_path", &[]) {
        return Ok(());
    }
    let rig = Observed::start(&["--ebpf", "require"])?;
    let echo = Echo::start(&rig.bed.site)?;
    let mut stream = rig.connect()?;
    let late = 10 * DELAY;
    echo.delay(late);
    let before = rig.scrape()?;
    for _ in 0..ASKED / 4 {
        ping(&mut stream)?;
    }
    // The first byte back is the service's: one connection, one question.
    let mut other = rig.connect()?;
    ping(&mut other)?;
    drop(other);
    let after = wait_for("the close record", Duration::from_secs(10), || {
        let after = rig.scrape().ok()?;
        let name = "culvert_first_byte_duration_seconds";
        let (mean, count) = after.mean(&before, name, &[("cluster", "dev")]);
        (count >= 1.0 && mean > 0.0).then_some(after)
    })?;
    let seen = figures(&before, &after, ASKED / 4);
    let first_byte = after.mean(
        &before,
        "culvert_first_byte_duration_seconds",
        &[("cluster", "dev")],
    );
    println!("service {late:?} late: {seen:?}, first byte {first_byte:?}");
    assert!(seen[..2].iter().all(|it| *it < QUICK_S), "{seen:?}");
    assert!(seen[2..].iter().all(|it| *it < ACK_S), "{seen:?}");
    let late_s = late.as_secs_f64();
    assert!(
        (late_s..late_s * 1.5).contains(&first_byte.0),
        "{first_byte:?}"
    );
    Ok(())
}

#[test]
fn a_long_tunnel_shows_in_its_own_round_trips() -> Result<()> {
    if !observing("a_long_tunnel_shows_in_its_own_round_trips", &["chrt"]) {
        return Ok(());
    }
    let bed = bed()?;
    let path = Path {
        round_trip_ms: DELAY.as_secs_f64() * 1e3,
        rate_mbit: 1000.0,
        loss_percent: 0.0,
    };
    let _delayer = Delayer::start(&bed.hub, &bed.site, path)?;
    let server = format!("ws://10.77.8.1:{PUBLIC}/agent");
    let rig = Observed::with(bed, Rights::All, &["--ebpf", "require"], Some(server))?;
    let _echo = Echo::start(&rig.bed.site)?;
    let mut stream = rig.connect()?;
    let before = rig.scrape()?;
    for _ in 0..ASKED {
        ping(&mut stream)?;
    }
    let after = rig.scrape()?;
    let [to_service, to_client, client, data] = figures(&before, &after, ASKED);
    let list = rig.connections("cluster=dev&sort=rtt")?;
    let leg = |role: usize| list["connections"][0]["legs"][role].clone();
    println!(
        "tunnel {DELAY:?} long: residence {to_service} and {to_client}, client {client}, data {data}; {}",
        leg(1)
    );
    // The agent's time until it acknowledges is inside, and the machine's.
    let delay_s = DELAY.as_secs_f64();
    assert!((delay_s..delay_s * 1.6).contains(&data), "{data}");
    assert!(to_service < QUICK_S && to_client < QUICK_S && client < QUICK_S);
    // What `ss` says of the same socket.
    let peer = leg(1)["peer"].as_str().context("a peer")?.to_owned();
    let said = rig.bed.hub.output("ss", &["-tinH", "dst", &peer])?;
    let rtt = said
        .split(" rtt:")
        .nth(1)
        .and_then(|it| it.split('/').next());
    let ss_ms: f64 = rtt.context("ss tells a round trip")?.parse()?;
    let ours_ms = leg(1)["srtt_us"]
        .as_f64()
        .context("a smoothed round trip")?
        / 1e3;
    println!("smoothed round trip: ss {ss_ms} ms, ours {ours_ms} ms");
    assert!((ss_ms - ours_ms).abs() <= ss_ms * 0.05, "{ss_ms} {ours_ms}");
    let least_us = leg(1)["rtt_min_us"]
        .as_f64()
        .context("a least round trip")?;
    assert!(is_about(least_us / 1e6, DELAY, 10.0), "{least_us}");
    Ok(())
}

#[test]
fn a_stopped_data_plane_is_residence_and_nothing_else() -> Result<()> {
    if !observing("a_stopped_data_plane_is_residence_and_nothing_else", &[]) {
        return Ok(());
    }
    let mut rig = Observed::start(&["--ebpf", "require", "--spin", "off"])?;
    let _echo = Echo::start(&rig.bed.site)?;
    let mut stream = rig.connect()?;
    ping(&mut stream)?;
    let before = rig.scrape()?;
    // From the write until it was told to go on, and until the answer.
    let (mut at_least, mut at_most) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ASKED {
        rig.dataplane.stop()?;
        let began = Instant::now();
        stream.write_all(&[7; 200])?;
        let written = Instant::now();
        sleep(DELAY);
        at_least += written.elapsed();
        rig.dataplane.resume()?;
        stream.read_exact(&mut [0; 200])?;
        at_most += began.elapsed();
    }
    let asked = u32::try_from(ASKED)?;
    let bounds = [at_least / asked, at_most / asked].map(|it| it.as_secs_f64());
    let after = rig.scrape()?;
    let [to_service, to_client, client, data] = figures(&before, &after, ASKED);
    println!(
        "stopped for {DELAY:?} ({bounds:?}): residence {to_service} and {to_client}, client {client}, data {data}"
    );
    let range = bounds[0] * 0.85..bounds[1] * 1.15;
    assert!(range.contains(&to_service), "{to_service} {bounds:?}");
    // The answer found it awake; the kernel acknowledged for it all the time.
    assert!(to_client < QUICK_S, "{to_client}");
    assert!(client < ACK_S && data < ACK_S, "{client} {data}");
    Ok(())
}

#[test]
fn a_delay_in_the_engine_is_residence_both_ways_and_nothing_else() -> Result<()> {
    if !observing(
        "a_delay_in_the_engine_is_residence_both_ways_and_nothing_else",
        &[],
    ) {
        return Ok(());
    }
    let drag_us = DRAG.as_micros().to_string();
    let rig = Observed::start(&[
        "--ebpf",
        "require",
        "--spin",
        "off",
        "--engine-drag-us",
        &drag_us,
    ])?;
    let echo = Echo::start(&rig.bed.site)?;
    let mut stream = rig.connect()?;
    ping(&mut stream)?;
    let before = rig.scrape()?;
    let began = Instant::now();
    for _ in 0..ASKED {
        ping(&mut stream)?;
    }
    let whole = began.elapsed() / u32::try_from(ASKED)?;
    let after = rig.scrape()?;
    let [to_service, to_client, client, data] = figures(&before, &after, ASKED);
    println!(
        "engine drags {DRAG:?}: residence {to_service} and {to_client}, client {client}, data {data}, an answer {whole:?}"
    );
    for residence in [to_service, to_client] {
        assert!(is_about(residence, DRAG, 15.0), "{residence}");
    }
    assert!(client < ACK_S && data < ACK_S, "{client} {data}");
    // All that the client waits for is in these two and in what is quick.
    let rest = whole.as_secs_f64() - to_service - to_client;
    assert!(rest < QUICK_S, "{whole:?}");
    // A service that is slow besides is in none of them.
    let late = 2 * DRAG;
    echo.delay(late);
    let before = rig.scrape()?;
    let began = Instant::now();
    for _ in 0..ASKED / 3 {
        ping(&mut stream)?;
    }
    let whole = began.elapsed() / u32::try_from(ASKED / 3)?;
    let [to_service, to_client, ..] = figures(&before, &rig.scrape()?, ASKED / 3);
    println!("and the service is {late:?} late: {to_service} and {to_client}, an answer {whole:?}");
    for residence in [to_service, to_client] {
        assert!(is_about(residence, DRAG, 15.0), "{residence}");
    }
    assert!(whole >= late + 2 * DRAG, "{whole:?}");
    Ok(())
}

//! A relay of pairs is observed like a hub: its two sockets are one relay, whose cluster is `_pair`.

use crate::pair::{BROKER, Files, Paired, bed as pair_bed, wait_ready};

use super::*;

/// Put into the relay's engine, so that residence has something to tell.
const DRAG: Duration = Duration::from_millis(40);
const ASKED: usize = 40;

#[test]
fn a_relay_of_pairs_tells_bytes_and_residence() -> Result<()> {
    if !observing("a_relay_of_pairs_tells_bytes_and_residence", &[]) {
        return Ok(());
    }
    let bed = pair_bed()?;
    let files = Files::make(&bed)?;
    let drag = DRAG.as_micros().to_string();
    let flags = [
        "--ebpf",
        "require",
        "--spin",
        "off",
        "--engine-drag-us",
        &drag,
    ];
    let relay = files.relay_from(Spawn::new("sh").args(["-c", WITH_CGROUP, "sh"]), &flags)?;
    let relay = files.started(relay, &bed, "relay")?;
    let mut bridge = files.bridge(&bed, (SITE, SERVICE).into(), &[])?;
    wait_ready(&mut bridge, &bed.site)?;
    let mut broker = files.broker(&bed, &["--flow-per-pair"])?;
    wait_ready(&mut broker, &bed.client)?;
    let rig = Paired {
        broker,
        bridge,
        relay,
        files,
        bed,
    };
    let _echo = Echo::start(&rig.bed.site)?;
    let mut stream = wait_for("an echo", START_MAX, || {
        rig.bed.client.run(|| {
            let mut stream = TcpStream::connect(BROKER).ok()?;
            stream.set_nodelay(true).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .ok()?;
            ping(&mut stream).ok()?;
            Some(stream)
        })
    })?;
    let before = scrape(&rig.bed)?;
    assert_eq!(before.tier(), "skb");
    for _ in 0..ASKED {
        ping(&mut stream)?;
    }
    let after = scrape(&rig.bed)?;
    for direction in ["to_service", "to_client"] {
        let labels = [
            ("cluster", "_pair"),
            ("direction", direction),
            ("queue", "empty"),
        ];
        let name = "culvert_relay_residence_seconds";
        let (mean, count) = after.mean(&before, name, &labels);
        println!("{direction}: {mean} s over {count} samples");
        assert!(count >= ASKED as f64 * 0.8, "{count} samples {direction}");
        let drag_s = DRAG.as_secs_f64();
        assert!(
            (mean - drag_s).abs() <= drag_s * 0.15,
            "{direction}: {mean}"
        );
    }
    let rtts = [("cluster", "_pair"), ("leg", "pair")];
    assert!(after.sum("culvert_tcp_rtt_seconds_count", &rtts) > 0.0);
    drop(stream);
    // What the engine delivered the kernel saw come and go, and besides only how the two met.
    let told = wait_for("the pair's end", Duration::from_secs(15), || {
        let told = scrape(&rig.bed).ok()?;
        let relayed = told.sum("culvert_engine_bytes_total", &[]);
        let used = told.sum("culvert_ebpf_pair_slots", &[("state", "used")]);
        (relayed > 0.0 && used == 0.0).then_some(told)
    })?;
    let relayed = told.sum("culvert_engine_bytes_total", &[]);
    for direction in ["rx", "tx"] {
        let labels = [
            ("cluster", "_pair"),
            ("leg", "pair"),
            ("direction", direction),
        ];
        let seen = told.sum("culvert_leg_bytes_total", &labels);
        println!("{direction}: {seen} bytes, {relayed} relayed");
        assert!(seen >= relayed && seen - relayed < 16_384.0, "{direction}");
    }
    let offset = [("reason", "offset")];
    assert_eq!(
        told.sum("culvert_relay_residence_unsampled_total", &offset),
        0.0
    );
    assert_eq!(told.sum("culvert_ebpf_tag_failures_total", &[]), 0.0);
    Ok(())
}

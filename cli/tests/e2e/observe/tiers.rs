//! Hosts that permit less: bytes do not notice, and what is missing is said.

use crate::pattern::{self, Amount};

use super::*;

const BOTH: &[&str] = &["bpf", "net_admin"];

/// Runs random lives through a data plane with these rights and flags.
fn lives(rights: Rights, flags: &[&str]) -> Result<(Observed, Scrape)> {
    let rig = Observed::with(bed()?, rights, flags, None)?;
    let amount = Amount {
        connections: 60,
        bytes: 40 << 20,
        at_once: 16,
        seed: 3,
    };
    let bed = &rig.bed;
    let tally = pattern::run(
        &bed.client,
        at_hub(PORT),
        &bed.site,
        (SITE, SERVICE).into(),
        amount,
    )?;
    assert_eq!(tally.connections, 60, "{flags:?}");
    let told = rig.scrape()?;
    println!("{flags:?}: tier {}, {tally:?}", told.tier());
    Ok((rig, told))
}

/// Effective and permitted capabilities of every thread.
fn capabilities(pid: u32) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        for line in status.lines() {
            if let Some(set) = line
                .strip_prefix("CapEff:")
                .or(line.strip_prefix("CapPrm:"))
            {
                all.push(u64::from_str_radix(set.trim(), 16)?);
            }
        }
    }
    Ok(all)
}

#[test]
fn with_two_capabilities_the_tier_is_skb_and_none_is_kept() -> Result<()> {
    if !observing(
        "with_two_capabilities_the_tier_is_skb_and_none_is_kept",
        &["setpriv"],
    ) {
        return Ok(());
    }
    let (rig, told) = lives(Rights::Only(BOTH), &["--ebpf", "require"])?;
    assert_eq!(told.tier(), "skb");
    let kept = capabilities(rig.dataplane.pid())?;
    assert!(
        kept.len() >= 4 && kept.iter().all(|set| *set == 0),
        "{kept:x?}"
    );
    assert!(
        told.sum(
            "culvert_relay_residence_seconds_count",
            &[("cluster", "dev")]
        ) > 0.0
    );
    assert_eq!(told.sum("culvert_ebpf_tag_failures_total", &[]), 0.0);
    Ok(())
}

#[test]
fn without_capabilities_the_same_families_come_from_tcp_info() -> Result<()> {
    if !observing(
        "without_capabilities_the_same_families_come_from_tcp_info",
        &["setpriv"],
    ) {
        return Ok(());
    }
    let (rig, told) = lives(Rights::Only(&[]), &[])?;
    assert_eq!(told.tier(), "tcp_info");
    let labels = [("reason", "missing_capability"), ("source", "tcp_info")];
    assert_eq!(told.sum("culvert_observer_info", &labels), 1.0);
    let log = rig.dataplane.log();
    assert!(log.contains("missing=cap_bpf,cap_net_admin"), "{log}");
    let dev = ("cluster", "dev");
    let client = told.sum(
        "culvert_leg_bytes_total",
        &[dev, ("leg", "client"), ("direction", "rx")],
    );
    let relayed = told.sum(
        "culvert_relay_bytes_total",
        &[dev, ("direction", "to_service")],
    );
    assert!(client > 0.0 && client == relayed, "{client} {relayed}");
    assert!(told.sum("culvert_tcp_rtt_seconds_count", &[dev, ("leg", "client")]) > 0.0);
    assert!(told.sum("culvert_first_byte_duration_seconds_count", &[dev]) > 0.0);
    // What this tier cannot tell is there, and tells nothing.
    let residence = "culvert_relay_residence_seconds_count";
    assert!(told.0.contains(residence) && told.sum(residence, &[]) == 0.0);
    Ok(())
}

#[test]
fn off_and_sockops_carry_the_same_bytes() -> Result<()> {
    if !observing("off_and_sockops_carry_the_same_bytes", &[]) {
        return Ok(());
    }
    let (_rig, off) = lives(Rights::All, &["--ebpf", "off"])?;
    assert_eq!(off.tier(), "tcp_info");
    assert_eq!(
        off.sum("culvert_observer_info", &[("reason", "disabled")]),
        1.0
    );
    let flags = ["--ebpf", "require", "--ebpf-tier-max", "sockops"];
    let (_rig, sockops) = lives(Rights::All, &flags)?;
    assert_eq!(sockops.tier(), "sockops");
    let labels = [("cluster", "dev"), ("leg", "client")];
    assert!(sockops.sum("culvert_tcp_rtt_seconds_count", &labels) > 0.0);
    assert_eq!(
        sockops.sum("culvert_relay_residence_seconds_count", &[]),
        0.0
    );
    assert!(
        sockops.sum("culvert_leg_bytes_total", &labels) > 0.0,
        "from the relays"
    );
    Ok(())
}

#[test]
fn what_is_required_and_refused_is_no_start() -> Result<()> {
    if !observing("what_is_required_and_refused_is_no_start", &["setpriv"]) {
        return Ok(());
    }
    let bed = bed()?;
    let clusters = write_routes(&bed, &[tcp("raw", PORT)])?;
    let flags = ["--clusters", &clusters, "--ebpf", "require"];
    let mut refused = spawn(&bed, "dataplane", Rights::Only(&["net_admin"]), &flags)?;
    refused.expect(&["the data plane does not start"]);
    let status = refused.wait_end(START_MAX)?;
    assert!(!status.success());
    let log = refused.log();
    assert!(
        log.contains("missing_capability") && log.contains("cap_bpf"),
        "{log}"
    );
    Ok(())
}

#[test]
fn two_data_planes_on_one_host_see_their_own_connections() -> Result<()> {
    if !observing("two_data_planes_on_one_host_see_their_own_connections", &[]) {
        return Ok(());
    }
    let first = Observed::start(&["--ebpf", "require"])?;
    let second = Observed::start(&["--ebpf", "require"])?;
    let _echo = Echo::start(&first.bed.site)?;
    let mut stream = first.connect()?;
    for _ in 0..20 {
        ping(&mut stream)?;
    }
    let residence = |rig: &Observed| -> Result<f64> {
        let told = rig.scrape()?;
        assert_eq!(told.tier(), "skb");
        Ok(told.sum(
            "culvert_relay_residence_seconds_count",
            &[("cluster", "dev")],
        ))
    };
    assert!(residence(&first)? >= 40.0);
    assert_eq!(residence(&second)?, 0.0);
    Ok(())
}

#[test]
fn culvert_check_says_what_this_host_permits() -> Result<()> {
    if !observing("culvert_check_says_what_this_host_permits", &["setpriv"]) {
        return Ok(());
    }
    let bed = bed()?;
    let culvert = binary("culvert")?.to_string_lossy().into_owned();
    let check = |rights: &[&str], form: &str| {
        let set: String = rights.iter().map(|right| format!(",+{right}")).collect();
        let bounding = format!("--bounding-set=-all{set}");
        let arguments = [
            "-c",
            WITH_CGROUP,
            "sh",
            "setpriv",
            &bounding,
            "--inh-caps=-all",
            &culvert,
            "check",
            "ebpf",
            "--output",
            form,
        ];
        bed.hub.output("sh", &arguments)
    };
    let able: Value = serde_json::from_str(&check(&["bpf", "net_admin"], "json")?)?;
    assert_eq!(able["tier"], "skb", "{able}");
    assert!(
        able["checks"]
            .as_array()
            .is_some_and(|checks| checks.len() >= 8)
    );
    for rights in [&[][..], &["net_admin"], &["bpf"], &["bpf", "perfmon"]] {
        let words = check(rights, "table")?;
        println!("{rights:?}:\n{words}");
        assert!(
            words.contains("tier tcp_info") && words.contains("fix   "),
            "{words}"
        );
        assert!(words.contains("missing_capability"), "{words}");
    }
    Ok(())
}

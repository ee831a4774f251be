//! `culvert debug trace`: a closer look that ends by itself, and what it says where it cannot look.

use std::process::{Command, Stdio};

use socket2::SockRef;

use super::*;

/// What a trace needs beside the observer's own.
const WITH_PERFMON: &[&str] = &["bpf", "net_admin", "perfmon"];
const FLAGS: &[&str] = &["--ebpf", "require", "--ebpf-trace", "--spin", "off"];
/// For so long a message lies unread.
const LIES: Duration = Duration::from_millis(30);

fn culvert(bed: &Testbed, arguments: &[&str]) -> Result<Command> {
    let mut command = bed.hub.command(&binary("culvert")?.to_string_lossy());
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// What a trace that cannot be says.
fn refused(bed: &Testbed, arguments: &[&str]) -> Result<String> {
    let said = culvert(bed, arguments)?.output()?;
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    anyhow::ensure!(said.status.code() == Some(1), "{}: {words}", said.status);
    Ok(words)
}

/// Messages that lie in the client's leg until the data plane goes on, and a reset on it.
fn give_it_something(rig: &mut Observed, stream: &mut TcpStream) -> Result<()> {
    for _ in 0..10 {
        rig.dataplane.stop()?;
        stream.write_all(&[7; 200])?;
        std::thread::sleep(LIES);
        rig.dataplane.resume()?;
        stream.read_exact(&mut [0; 200])?;
    }
    // The client resets; the data plane passes that on to the agent.
    let reset = rig.connect()?;
    SockRef::from(&reset).set_linger(Some(Duration::ZERO))?;
    drop(reset);
    Ok(())
}

#[test]
fn a_trace_tells_of_waits_and_resets_and_ends_by_itself() -> Result<()> {
    if !observing(
        "a_trace_tells_of_waits_and_resets_and_ends_by_itself",
        &["setpriv"],
    ) {
        return Ok(());
    }
    let mut rig = Observed::with(bed()?, Rights::Only(WITH_PERFMON), FLAGS, None)?;
    let _echo = Echo::start(&rig.bed.site)?;
    let mut stream = rig.connect()?;
    let waits = (
        "culvert_tcp_rx_queue_wait_seconds_count",
        [("cluster", "dev")],
    );
    let resets = |told: &Scrape| told.sum("culvert_tcp_resets_total", &[("leg", "data")]);
    let before = rig.scrape()?;
    assert_eq!((before.sum(waits.0, &waits.1), resets(&before)), (0.0, 0.0));
    let asked = [
        "debug",
        "trace",
        "--cluster",
        "dev",
        "--for",
        "4s",
        "--output",
        "json",
    ];
    let trace = culvert(&rig.bed, &asked)?.spawn()?;
    rig.dataplane.wait_log("a trace runs", START_MAX)?;
    give_it_something(&mut rig, &mut stream)?;
    // One at a time.
    let busy = refused(&rig.bed, &["debug", "trace", "--for", "1s"])?;
    assert!(
        busy.contains("trace_refused") && busy.contains("a trace runs already"),
        "{busy}"
    );
    let said = trace.wait_with_output()?;
    assert!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    let seen: Value = serde_json::from_slice(&said.stdout)?;
    println!("{seen:#}");
    assert!(
        seen["marked"].as_u64().is_some_and(|marked| marked >= 2),
        "{seen}"
    );
    assert!(
        seen["seconds"]
            .as_f64()
            .is_some_and(|seconds| (4.0..6.0).contains(&seconds))
    );
    let waited = &seen["receive_queue_wait"][0];
    assert_eq!(waited["cluster"], "dev");
    assert!(
        waited["samples"]
            .as_u64()
            .is_some_and(|samples| samples >= 10),
        "{waited}"
    );
    let p99_us = waited["p99_us"].as_f64().context("a quantile")?;
    assert!(p99_us >= LIES.as_micros() as f64, "{waited}");
    let of_data = |reset: &&Value| reset["leg"] == "data";
    let reset = seen["resets"]
        .as_array()
        .context("a list")?
        .iter()
        .find(of_data);
    let reset = reset.context("a reset towards the agent")?;
    assert!(
        reset["count"].as_u64().is_some_and(|count| count >= 1),
        "{reset}"
    );
    assert!(
        reset["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty()),
        "{reset}"
    );
    // Its end: what happens now is not seen any more, in no family.
    let ended = rig.scrape()?;
    assert!(ended.sum(waits.0, &waits.1) >= 10.0 && resets(&ended) >= 1.0);
    give_it_something(&mut rig, &mut stream)?;
    let after = rig.scrape()?;
    assert_eq!(after.sum(waits.0, &waits.1), ended.sum(waits.0, &waits.1));
    assert_eq!(resets(&after), resets(&ended));
    assert_eq!(after.sum("culvert_ebpf_tag_failures_total", &[]), 0.0);
    Ok(())
}

#[test]
fn a_trace_ends_with_whoever_asked_for_it() -> Result<()> {
    if !observing("a_trace_ends_with_whoever_asked_for_it", &["setpriv"]) {
        return Ok(());
    }
    let mut rig = Observed::with(bed()?, Rights::Only(WITH_PERFMON), FLAGS, None)?;
    let mut long = culvert(&rig.bed, &["debug", "trace", "--for", "10m"])?.spawn()?;
    rig.dataplane.wait_log("a trace runs", START_MAX)?;
    long.kill()?;
    long.wait()?;
    let table = wait_for("the first trace's end", Duration::from_secs(10), || {
        rig.bed
            .hub
            .output(
                &binary("culvert").ok()?.to_string_lossy(),
                &["debug", "trace", "--for", "1s"],
            )
            .ok()
    })?;
    println!("{table}");
    assert!(
        table.contains("CLUSTER") && table.contains("REASON"),
        "{table}"
    );
    let unknown = refused(&rig.bed, &["debug", "trace", "--cluster", "nobody"])?;
    assert!(unknown.contains("no_such_cluster"), "{unknown}");
    Ok(())
}

#[test]
fn where_no_trace_can_be_the_command_says_what_is_missing() -> Result<()> {
    if !observing(
        "where_no_trace_can_be_the_command_says_what_is_missing",
        &["setpriv"],
    ) {
        return Ok(());
    }
    for (rights, flags, part) in [
        (
            &["bpf", "net_admin"][..],
            &["--ebpf-trace"][..],
            "missing cap_perfmon",
        ),
        (WITH_PERFMON, &[], "it was not asked for at the start"),
        (&[], &["--ebpf-trace"], "tier below skb"),
    ] {
        let rig = Observed::with(bed()?, Rights::Only(rights), flags, None)?;
        let words = refused(&rig.bed, &["debug", "trace"])?;
        println!("{rights:?} {flags:?}: {words}");
        assert!(
            words.contains("trace_unavailable") && words.contains("--ebpf-trace"),
            "{words}"
        );
        assert!(words.contains(part), "{part}: {words}");
    }
    Ok(())
}

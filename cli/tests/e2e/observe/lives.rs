//! Starts, ends and many short connections leave nothing behind.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A slice; `cargo xtask soak` makes 100,000.
const CONNECTIONS: u64 = 2_000;

/// Programs and maps that a process holds, by their numbers in the kernel.
fn held(pid: u32) -> Result<BTreeSet<(&'static str, u32)>> {
    let mut held = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // One that was closed since is not held.
        let Ok(info) = std::fs::read_to_string(entry?.path()) else {
            continue;
        };
        for line in info.lines() {
            for (key, kind) in [("prog_id:", "program"), ("map_id:", "map")] {
                if let Some(number) = line.strip_prefix(key) {
                    held.insert((kind, number.trim().parse()?));
                }
            }
        }
    }
    // Arrays are mapped, not open: the programs name them.
    let programs: Vec<_> = aya::programs::loaded_programs().flatten().collect();
    for program in programs {
        if held.contains(&("program", program.id())) {
            let maps = program.map_ids()?.unwrap_or_default();
            held.extend(maps.into_iter().map(|map| ("map", map)));
        }
    }
    Ok(held)
}

/// Those that the kernel still has.
fn alive(numbers: &BTreeSet<(&'static str, u32)>) -> Vec<(&'static str, u32)> {
    let programs: BTreeSet<u32> = aya::programs::loaded_programs()
        .filter_map(|info| Some(info.ok()?.id()))
        .collect();
    let maps: BTreeSet<u32> = aya::maps::loaded_maps()
        .filter_map(|info| Some(info.ok()?.id()))
        .collect();
    let is_there = |(kind, number): &&(&'static str, u32)| match *kind {
        "program" => programs.contains(number),
        _ => maps.contains(number),
    };
    numbers.iter().filter(is_there).copied().collect()
}

#[test]
fn a_restart_under_load_leaves_no_program_and_no_map() -> Result<()> {
    if !observing("a_restart_under_load_leaves_no_program_and_no_map", &[]) {
        return Ok(());
    }
    let mut rig = Observed::start(&["--ebpf", "require"])?;
    let _echo = Echo::start(&rig.bed.site)?;
    drop(rig.connect()?);
    let numbers = held(rig.dataplane.pid())?;
    println!("held: {numbers:?}");
    let count = |of| numbers.iter().filter(|(kind, _)| *kind == of).count();
    assert!(count("program") >= 3 && count("map") >= 7, "{numbers:?}");
    assert_eq!(alive(&numbers).len(), numbers.len());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rig.bed.client.run(|| {
                    let Ok(mut stream) = TcpStream::connect(at_hub(PORT)) else {
                        return;
                    };
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                    let _ = ping(&mut stream);
                });
            }
        });
        rig.agent.expect(crate::watched::HUB_GONE);
        let killed = rig.dataplane.kill_9();
        stop.store(true, Ordering::Relaxed);
        killed
    })?;
    wait_for("the kernel to let go", Duration::from_secs(10), || {
        alive(&numbers).is_empty().then_some(())
    })?;
    Ok(())
}

#[test]
fn many_short_connections_leave_no_entry() -> Result<()> {
    if !observing("many_short_connections_leave_no_entry", &[]) {
        return Ok(());
    }
    let rig = Observed::start(&["--ebpf", "require"])?;
    let _echo = Echo::start(&rig.bed.site)?;
    drop(rig.connect()?);
    // Clients and agent end first, and their ports would rest for a minute each.
    for host in [&rig.bed.client, &rig.bed.site] {
        host.output("sysctl", &["-w", "net.ipv4.tcp_tw_reuse=1"])?;
    }
    let connections = crate::heavy::routed::amount("CULVERT_OBSERVE_SHORT", CONNECTIONS)?;
    let threads = 8;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                rig.bed.client.run(|| {
                    for _ in 0..connections / threads {
                        let mut stream = TcpStream::connect(at_hub(PORT)).expect("a connection");
                        ping(&mut stream).expect("an answer");
                    }
                });
            });
        }
    });
    let told = wait_for("everything to end", Duration::from_secs(30), || {
        let told = rig.scrape().ok()?;
        let open = told.sum(
            "culvert_connections",
            &[("cluster", "dev"), ("leg", "client")],
        );
        let slots = told.sum("culvert_ebpf_pair_slots", &[("state", "used")]);
        let resting = told.sum("culvert_ebpf_pair_slots", &[("state", "resting")]);
        (open == 0.0 && slots == 0.0 && resting == 0.0).then_some(told)
    })?;
    let labels = [("cluster", "dev"), ("leg", "client")];
    let opened = told.sum("culvert_connections_opened_total", &labels);
    let closed = told.sum("culvert_connections_closed_total", &labels);
    println!("{opened} opened, {closed} closed");
    assert!(
        opened >= connections as f64 && opened == closed,
        "{opened} {closed}"
    );
    assert_eq!(told.sum("culvert_flows", &[]), 0.0);
    assert_eq!(told.sum("culvert_engine_pairs", &[]), 0.0);
    assert_eq!(told.sum("culvert_ebpf_tag_failures_total", &[]), 0.0);
    assert_eq!(told.sum("culvert_ebpf_stat_failures_total", &[]), 0.0);
    let accepted = told.sum(
        "culvert_accept_queue_duration_seconds_count",
        &[("leg", "client")],
    );
    assert!(
        accepted >= connections as f64 / 20.0,
        "{accepted} of {connections} accepts were looked at"
    );
    assert_eq!(rig.connections("")?["total"], 0);
    Ok(())
}

//! From start to end of processes: capabilities that are gone, programs that are gone, neighbours.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use culvert_observe::{Kind, Leg, Observer, Offsets, Own, Settings, Tier, TraceError, Traced};
use rustix::thread::CapabilitySet;

use crate::rig::{
    GRANTED_TRACE, Row, Rows, alone, child, has_traces_and_accounts, in_a_child, is_root,
    keeps_bpf, limit, programs_max, role, small, started, until,
};

/// A field of `/proc/self/task/*/status`, for each task.
fn of_each_task(field: &str) -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let value = |task: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    tasks.map(value).collect()
}

/// A set of capabilities as the kernel prints it.
fn set(bits: u64) -> String {
    format!("{bits:016x}")
}

/// What an older kernel makes the observer keep.
fn kept() -> u64 {
    if keeps_bpf() {
        CapabilitySet::BPF.bits()
    } else {
        0
    }
}

#[test]
#[ignore = "run by the test below"]
fn without_capability() {
    alone(without_capability_alone);
}

fn without_capability_alone() {
    // Root with all it has, as in a container that drops nothing: SETPCAP empties the bounding set.
    assert_eq!(of_each_task("Name:").len(), 1, "before any other thread");
    let observer = started(&Settings {
        trace: true,
        ..small()
    });
    assert_eq!(observer.tier(), Tier::Skb);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let stopped = std::sync::Mutex::new(stopped);
    std::thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| stopped.lock().unwrap().recv());
        }
        for field in ["CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(of_each_task(field), vec![set(0); 4], "{field}");
        }
        for field in ["CapPrm:", "CapEff:"] {
            assert_eq!(of_each_task(field), vec![set(kept()); 4], "{field}");
        }
        assert_eq!(of_each_task("NoNewPrivs:"), ["1"; 4]);
        everything_works(&observer);
        drop(stop);
    });
}

/// Tagging, lookups, maps, rings, statistics and trace links.
fn everything_works(observer: &Observer) {
    let mut rows = Rows::v4(observer);
    let cluster = observer.cluster("after");
    let mut row = rows.row(cluster);
    let slot = rows.join(&row, cluster, Default::default()).unwrap();
    row.pass_to_service(b"still", Duration::ZERO);
    assert_eq!(observer.stat(row.near.as_fd()).unwrap().rx_end, 5);
    assert_eq!(observer.residence(slot.id()).unwrap()[0].samples, 1);
    assert_eq!(observer.program_stats().len(), programs_max());
    if has_traces_and_accounts() {
        traces(observer, &mut rows, &mut row);
    }
    drop((slot, row));
    until(|| observer.closes().next());
    assert_eq!(observer.tag_failures(), []);
}

/// Waits in the receive queue and resets, while the trace programs are linked.
fn traces(observer: &Observer, rows: &mut Rows, row: &mut Row) {
    let cluster = observer.cluster("after");
    let untraced = observer.mark(cluster);
    let other = observer.cluster("other");
    let trace = observer.begin_trace(Traced::Cluster(cluster)).unwrap();
    assert!(observer.is_tracing());
    assert!(matches!(
        observer.begin_trace(Traced::All),
        Err(TraceError::Busy)
    ));
    assert_ne!(observer.mark(cluster), untraced);
    assert_eq!(observer.mark(other), untraced);
    assert!(observer.follow_trace(row.near.as_fd()));
    row.pass_to_service(b"and how long it lay there", Duration::ZERO);
    let waits = |observer: &Observer| {
        let reading = observer.read();
        let own = reading.clusters().find(|it| it.name == "after").unwrap();
        own.histogram(Kind::RxWait).map_or(0, |it| it.count())
    };
    until(|| (waits(observer) > 0).then_some(()));
    resets(observer, rows);
    // What waits when a trace ends is none of the next one's, however late it is read.
    row.client.write_all(b"left behind").unwrap();
    until(|| (row.near.peek(&mut [0; 11]).ok()? == 11).then_some(()));
    drop(trace);
    assert!(!observer.is_tracing());
    let so_far = waits(observer);
    row.near.read_exact(&mut [0; 11]).unwrap();
    row.pass_to_service(b"unseen", Duration::ZERO);
    assert_eq!(waits(observer), so_far);
    std::thread::sleep(Duration::from_millis(50));
    let sum_ns = |observer: &Observer| {
        let reading = observer.read();
        let own = reading.clusters().find(|it| it.name == "after").unwrap();
        own.histogram(Kind::RxWait).unwrap().sum_ns
    };
    let before_ns = sum_ns(observer);
    let again = observer.begin_trace(Traced::All).unwrap();
    assert_eq!(observer.mark(other), observer.mark(cluster));
    assert!(observer.follow_trace(row.near.as_fd()));
    row.pass_to_service(b"seen again", Duration::ZERO);
    until(|| (waits(observer) > so_far).then_some(()));
    assert!(sum_ns(observer) - before_ns < 50_000_000);
    drop(again);
    assert!(!observer.follow_trace(row.near.as_fd()));
}

/// A close with bytes unread is a reset, and the kernel names the reason.
fn resets(observer: &Observer, rows: &mut Rows) {
    assert_eq!(observer.read().resets().count(), 0);
    let mut row = rows.row(observer.cluster("after"));
    row.client.write_all(b"never read").unwrap();
    until(|| (row.near.peek(&mut [0]).ok()? > 0).then_some(()));
    drop(row.near);
    until(|| (observer.read().resets().count() > 0).then_some(()));
    let reading = observer.read();
    let resets: Vec<_> = reading.resets().collect();
    let (leg, reason, count) = resets.first().unwrap();
    assert_eq!(
        (resets.len(), *leg, *count),
        (1, Leg::Client, 1),
        "{resets:?}"
    );
    println!("reset: {reason}");
    assert!(!reason.starts_with("reason_"), "{reason} is a number");
}

#[test]
fn after_the_start_no_thread_has_a_capability_and_everything_works() {
    if is_root("after_the_start_no_thread_has_a_capability_and_everything_works") {
        in_a_child("lives::without_capability", "");
    }
}

#[test]
#[ignore = "run by the test below"]
fn with_a_port_to_bind() {
    alone(with_a_port_to_bind_alone);
}

fn with_a_port_to_bind_alone() {
    limit(GRANTED_TRACE | CapabilitySet::NET_BIND_SERVICE);
    let observer = started(&Settings {
        keep_net_bind: true,
        ..small()
    });
    let line = observer.report().caps.to_string();
    assert!(
        line.starts_with("kept:") && line.contains("cap_net_bind_service"),
        "{line}"
    );
    let held = set(kept() | CapabilitySet::NET_BIND_SERVICE.bits());
    for field in ["CapEff:", "CapPrm:"] {
        assert_eq!(of_each_task(field), [&*held], "{field}");
    }
}

#[test]
fn a_low_port_keeps_its_one_capability() {
    if is_root("a_low_port_keeps_its_one_capability") {
        in_a_child("lives::with_a_port_to_bind", "");
    }
}

#[test]
#[ignore = "run by the tests below"]
fn life() {
    limit(GRANTED_TRACE);
    let observer = started(&Settings {
        trace: true,
        ..small()
    });
    let trace = observer.begin_trace(Traced::All);
    assert_eq!(trace.is_ok(), has_traces_and_accounts());
    // Linked until the end, whatever it is.
    let _linked = trace;
    let ids: Vec<_> = observer
        .program_stats()
        .iter()
        .map(|it| it.id.to_string())
        .collect();
    println!("programs {}", ids.join(" "));
    let mut rows = Rows::v4(&observer);
    let cluster = observer.cluster("life");
    let mut moved = 0;
    let mut go = String::new();
    std::io::stdin().read_line(&mut go).unwrap();
    while moved < 200 {
        let mut row = rows.row(cluster);
        let slot = rows.join(&row, cluster, [Offsets::default(); 2]).unwrap();
        row.pass_to_service(&[1; 1_000], Duration::ZERO);
        row.pass_to_client(&[2; 3_000], Duration::ZERO);
        moved += 1;
        drop((slot, row));
    }
    if role() == "detached" {
        let reading = observer.read();
        let mut own = reading.clusters().filter(|it| it.name == "life");
        assert!(own.all(|it| it.legs().count() == 0), "nobody counts");
        assert_eq!(observer.tag_failures(), [], "and nobody complains");
        return;
    }
    let reading = observer.read();
    let own = reading.clusters().find(|it| it.name == "life").unwrap();
    let bytes: u64 = own.legs().map(|(_, cnt)| cnt.rx_bytes).sum();
    assert_eq!(
        bytes,
        moved * 4_000,
        "its own bytes, all of them and no others"
    );
    let samples = |kind| own.histogram(kind).map_or(0, |it| it.count());
    assert_eq!(samples(Kind::ToServiceEmpty), moved);
    assert_eq!(samples(Kind::ToClientEmpty), moved);
    assert_eq!(reading.own(Own::OffsetSkipped), 0);
    if role() == "killed" {
        println!("done");
        std::io::stdin().read_line(&mut go).unwrap();
    }
}

/// A process with an observer that stands before its traffic, and the ids of its programs.
fn begin(role: &str) -> (Child, BufReader<std::process::ChildStdout>, Vec<u32>) {
    let mut begun = child("lives::life", role);
    let begun = begun.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut begun = begun.spawn().unwrap();
    let mut out = BufReader::new(begun.stdout.take().unwrap());
    let line = line(&mut out, "programs ");
    let ids = line.split(' ').map(|id| id.parse().unwrap()).collect();
    (begun, out, ids)
}

/// The rest of the line that begins with `start`.
fn line(out: &mut impl std::io::BufRead, start: &str) -> String {
    let lines = out.lines().map(Result::unwrap);
    let mut lines = lines.filter_map(|line| Some(line.split_once(start)?.1.to_owned()));
    lines.next().unwrap()
}

fn finish(mut child: Child) {
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn two_in_one_cgroup_each_see_their_own() {
    if !is_root("two_in_one_cgroup_each_see_their_own") {
        return;
    }
    let [first, second] = [begin("one"), begin("other")];
    assert!(first.2.iter().all(|id| !second.2.contains(id)));
    // Pipes that nobody reads would end them.
    let readers = [first.1, second.1]
        .map(|mut out| std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink())));
    let [first, second] = [first.0, second.0];
    let second = std::thread::spawn(move || finish(second));
    finish(first);
    second.join().unwrap();
    for reader in readers {
        reader.join().unwrap().unwrap();
    }
}

/// Of these programs, those that are loaded, with their maps and links.
fn loaded(programs: &HashSet<u32>) -> (HashSet<u32>, HashSet<u32>, HashSet<u32>) {
    let infos: Vec<_> = aya::programs::loaded_programs().flatten().collect();
    let ours = infos.iter().filter(|it| programs.contains(&it.id()));
    let mut maps = HashSet::new();
    let mut left = HashSet::new();
    for info in ours {
        // One may go while it is looked at.
        if let Ok(of_it) = info.map_ids() {
            left.insert(info.id());
            maps.extend(of_it.unwrap_or_default());
        }
    }
    let links = aya::programs::loaded_links().flatten();
    let links = links.filter(|it| programs.contains(&it.program_id()));
    (left, maps, links.map(|it| it.id()).collect())
}

#[test]
fn links_that_are_taken_away_at_run_time_change_no_byte() {
    if !is_root("links_that_are_taken_away_at_run_time_change_no_byte") {
        return;
    }
    let (process, mut out, ids) = begin("detached");
    let (_, _, links) = loaded(&ids.into_iter().collect());
    // The trace links are of another kind, which cannot be taken away from outside.
    let taken = links
        .iter()
        .filter(|link| crate::load::detach(**link))
        .count();
    assert_eq!(taken, 3);
    let reader = std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    finish(process);
    reader.join().unwrap().unwrap();
}

#[test]
fn twenty_lives_leave_no_program_map_or_link() {
    if !is_root("twenty_lives_leave_no_program_map_or_link") {
        return;
    }
    let (mut programs, mut maps, mut links) = (HashSet::new(), HashSet::new(), HashSet::new());
    for life in 0..20 {
        // Every other one is killed in its traffic.
        let role = if life % 2 == 0 { "ends" } else { "killed" };
        let (mut process, mut out, ids) = begin(role);
        let ids: HashSet<u32> = ids.into_iter().collect();
        let (alive, of_maps, of_links) = loaded(&ids);
        let counts = (alive.len(), of_maps.len(), of_links.len());
        assert_eq!(
            counts,
            (programs_max(), 8, programs_max()),
            "while it lives"
        );
        programs.extend(ids);
        maps.extend(of_maps);
        links.extend(of_links);
        if role == "killed" {
            process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
            line(&mut out, "done");
            process.kill().unwrap();
            process.wait().unwrap();
        } else {
            let reader = std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
            finish(process);
            reader.join().unwrap().unwrap();
        }
    }
    assert_eq!(maps.len(), 160);
    assert_eq!(
        (programs.len(), links.len()),
        (20 * programs_max(), 20 * programs_max())
    );
    // The kernel frees in its own time.
    until(|| {
        let left = loaded(&programs);
        let maps_left = aya::maps::loaded_maps()
            .flatten()
            .filter(|it| maps.contains(&it.id()));
        let links_left = aya::programs::loaded_links()
            .flatten()
            .filter(|it| links.contains(&it.id()));
        (left.0.is_empty()
            && left.2.is_empty()
            && maps_left.count() == 0
            && links_left.count() == 0)
            .then_some(())
    });
}

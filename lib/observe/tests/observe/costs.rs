//! What the calls cost, printed for docs/ebpf.md:
//! `cargo nextest run -p culvert-observe --run-ignored only --no-capture -E 'test(costs)'`

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use culvert_observe::{ConnId, Ident, Kind, Leg, Observer, Own, Role, Settings, Tag};
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::rig::{GRANTED, Rows, alone, limit, started, tag, until};

/// Processor time of one call, the best of some rounds: what else runs here does not count.
fn mean_ns(what: &str, count: u32, mut call: impl FnMut(u32)) {
    const ROUNDS: u32 = 9;
    let rounds = (0..ROUNDS).map(|round| {
        let begun = processor_ns();
        let of_round = count / ROUNDS;
        for number in 0..of_round {
            call(round * of_round + number);
        }
        (processor_ns() - begun) / i64::from(of_round)
    });
    println!("{what}: {} ns", rounds.min().unwrap());
}

fn processor_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Kernel memory in slabs that cannot be reclaimed, in bytes.
fn slab() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("SUnreclaim:"))
        .unwrap();
    let kib: i64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1_024
}

/// The same once the kernel has freed what it frees in its own time.
fn settled() -> i64 {
    let mut last = slab();
    until(|| {
        std::thread::sleep(Duration::from_millis(250));
        let now = slab();
        let change = now - std::mem::replace(&mut last, now);
        (change.abs() < 256 << 10).then_some(())
    });
    last
}

fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: i64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

#[test]
#[ignore = "measures, asserts nothing about time"]
fn costs() {
    alone(costs_alone);
}

fn costs_alone() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    limit(GRANTED);
    let (before, begun) = (resident(), Instant::now());
    let observer = started(&Settings::default());
    let (took, held) = (begun.elapsed(), (resident() - before) >> 10);
    // SAFETY: gives free memory back, and touches no other.
    unsafe { libc::malloc_trim(0) };
    let kept = (resident() - before) >> 10;
    println!("start: {took:?}, {held} KiB more in memory, {kept} KiB without free heap");
    memory(&observer);
    calls(&observer);
    scrape(&observer);
}

fn calls(observer: &Observer) {
    let mut rows = Rows::v4(observer);
    let cluster = observer.cluster("costs");
    let row = rows.row(cluster);
    let sockets: Vec<_> = (0..5_000).map(|_| socket()).collect();
    let first = tag(1, cluster, Role::Client);
    mean_ns("first tag of a socket", 5_000, |at| {
        observer.tag(sockets[at as usize].as_fd(), first);
    });
    drop(sockets);
    mean_ns("retag", 100_000, |_| observer.tag(row.near.as_fd(), first));
    mean_ns("stat", 100_000, |_| {
        assert!(observer.stat(row.near.as_fd()).is_some());
    });
    mean_ns("cluster by name", 100_000, |_| {
        assert_eq!(observer.cluster("costs"), cluster);
    });
    until(|| (observer.read().slots().free == 65_536).then_some(()));
    mean_ns("join and its end", 60_000, |_| {
        assert!(rows.join(&row, cluster, Default::default()).is_some());
    });
    let slot = rows.join(&row, cluster, Default::default()).unwrap();
    mean_ns("residence of a pair", 100_000, |_| {
        assert!(observer.residence(slot.id()).is_some());
    });
    mean_ns("sweep of 60,000 slots", 18, |_| observer.sweep());
    mean_ns("program statistics", 100, |_| {
        assert_eq!(observer.program_stats().len(), 3);
    });
}

fn socket() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

/// The median of some differences: other processes have sockets, too.
fn median(mut once: impl FnMut() -> i64) -> i64 {
    let mut seen: Vec<_> = (0..5).map(|_| once()).collect();
    seen.sort_unstable();
    seen[2]
}

fn memory(observer: &Observer) {
    const SOCKETS: i64 = 15_000;
    let cluster = observer.cluster("memory");
    let identity = median(|| {
        let sockets: Vec<_> = (0..SOCKETS).map(|_| socket()).collect();
        let before = settled();
        for socket in &sockets {
            observer.tag(socket.as_fd(), tag(1, cluster, Role::Client));
        }
        slab() - before
    });
    println!("identity alone: {} bytes a socket", identity / SOCKETS);
    // Established ones have statistics, too: the difference to as many without a tag.
    let pairs = |listener: &TcpListener| -> i64 {
        let address = listener.local_addr().unwrap();
        let before = settled();
        let both: Vec<_> = (0..SOCKETS / 2)
            .map(|_| {
                let near = TcpStream::connect(address).unwrap();
                (near, listener.accept().unwrap())
            })
            .collect();
        let held = slab() - before;
        drop(both);
        held
    };
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = socket();
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    observer.listener(socket.as_fd(), Leg::Client);
    socket.listen(1_024).unwrap();
    let marked: TcpListener = socket.into();
    let more = median(|| {
        let without = pairs(&plain);
        pairs(&marked) - without
    });
    println!(
        "identity and statistics: {} bytes a socket",
        more / (SOCKETS / 2)
    );
}

fn scrape(observer: &Observer) {
    // Every cluster with traffic on two legs.
    let mut rows = Rows::v4(observer);
    let mut row = rows.row(observer.cluster("costs"));
    for number in 0..1_020 {
        let cluster = observer.cluster(&format!("cluster-{number}"));
        for (socket, role) in [(&row.near, Role::Client), (&row.far, Role::Service)] {
            let tag = Tag {
                conn: ConnId::of_sequence(1),
                flags: Ident::NO_RESIDENCE,
                ..tag(1, cluster, role)
            };
            observer.tag(socket.as_fd(), tag);
        }
        row.pass_to_service(b"x", Duration::ZERO);
        row.pass_to_client(b"x", Duration::ZERO);
    }
    let kinds = [
        Kind::ToServiceEmpty,
        Kind::ToClientEmpty,
        Kind::ToServiceBehind,
        Kind::ToClientBehind,
        Kind::RttClient,
        Kind::RttCarrier,
        Kind::RttData,
        Kind::RxWait,
    ];
    let mut seen = (0, 0);
    mean_ns("all counters and histograms of 1,024 clusters", 100, |_| {
        let reading = observer.read();
        seen = (0, 0);
        for cluster in reading.clusters() {
            seen.0 += cluster.legs().count();
            let histograms = kinds.iter().filter_map(|kind| cluster.histogram(*kind));
            seen.1 += histograms.map(|it| it.cumulative().count()).sum::<usize>() / 28;
        }
        std::hint::black_box(reading.own(Own::ClosesLost));
    });
    println!(
        "of these {} legs and {} histograms that moved",
        seen.0, seen.1
    );
}

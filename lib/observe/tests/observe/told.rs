//! What the kernel tells of connections: bytes, times, RTTs, how they ended.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use culvert_observe::{
    Close, CloseKind, ConnId, Ident, Kind, Leg, Observer, Own, Role, Settings, Stat, Tag,
    monotonic_ns,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::rig::{
    Datapath, GRANTED, Row, Rows, alone, in_a_child, is_root, limit, observer, role, small,
    started, until,
};

/// Close records of `count` sockets, by connection and role.
fn closes(observer: &Observer, count: usize) -> HashMap<u64, Close> {
    let mut seen = HashMap::new();
    until(|| {
        seen.extend(observer.closes().map(|close| (close.conn_id, close)));
        (seen.len() >= count).then_some(())
    });
    seen
}

/// How many are moved: the soak asks for more.
fn relays() -> u64 {
    let asked = std::env::var("CULVERT_OBSERVE_RELAYS");
    asked.map_or(500, |count| count.parse().unwrap())
}

/// Random enough, and the same each time.
fn sizes() -> impl Iterator<Item = usize> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let bits = state % 15;
        1 + (state >> 8) as usize % (1 << bits)
    })
}

#[test]
#[ignore = "run by the test below"]
fn bytes_as_moved() {
    alone(bytes_as_moved_alone);
}

fn bytes_as_moved_alone() {
    limit(GRANTED);
    // Each slot rests for a second.
    let pairs_max = 16_384;
    let observer = started(&Settings {
        pairs_max,
        ..small()
    });
    let cluster = observer.cluster("bytes");
    let mut rows = match role().as_str() {
        "v6" => Rows::new(&observer, Ipv6Addr::LOCALHOST.into()),
        _ => Rows::v4(&observer),
    };
    let (mut up, mut down, mut sizes) = (0_u64, 0_u64, sizes());
    let payload = vec![0xa5; 1 << 15];
    let relays = relays();
    let (mut expected, mut seen) = (HashMap::new(), HashMap::new());
    for sequence in 1..=relays {
        let mut row = rows.row(cluster);
        if role() == "spliced" {
            row.datapath = Datapath::Splice;
        }
        let slot = rows.join(&row, cluster, Default::default()).unwrap();
        let (mut there, mut back) = (0, 0);
        for _ in 0..2 {
            let (one, other) = (sizes.next().unwrap(), sizes.next().unwrap());
            row.pass_to_service(&payload[..one], Duration::ZERO);
            row.pass_to_client(&payload[..other], Duration::ZERO);
            (there, back) = (there + one as u64, back + other as u64);
        }
        let conn = ConnId::of_sequence(sequence);
        expected.insert(conn.with_role(Role::Client), (there, back));
        expected.insert(conn.with_role(Role::Service), (back, there));
        (up, down) = (up + there, down + back);
        drop((slot, row));
        seen.extend(observer.closes().map(|close| (close.conn_id, close)));
    }
    seen.extend(closes(
        &observer,
        2 * usize::try_from(relays).unwrap() - seen.len(),
    ));
    for (conn, bytes) in expected {
        let close = &seen[&conn];
        assert_eq!((close.rx_bytes, close.tx_bytes), bytes, "{close:?}");
        assert_eq!(close.cluster, cluster.number());
        assert!(
            close.t_est <= close.t_first_rx && close.t_first_rx <= close.t_close,
            "{close:?}"
        );
    }
    let reading = observer.read();
    let own = reading.clusters().find(|it| it.name == "bytes").unwrap();
    let legs: HashMap<Leg, _> = own.legs().collect();
    let (client, upstream) = (legs[&Leg::Client], legs[&Leg::Upstream]);
    assert_eq!((client.rx_bytes, client.tx_bytes), (up, down));
    assert_eq!((upstream.rx_bytes, upstream.tx_bytes), (down, up));
    assert_eq!(client.closes + upstream.closes, 2 * relays);
    assert_eq!(reading.own(Own::ClosesLost), 0);
    assert_eq!(reading.own(Own::OffsetSkipped), 0);
    let rtts = own.histogram(Kind::RttClient).unwrap();
    assert!(rtts.count() >= relays, "{}", rtts.count());
    assert_eq!(observer.tag_failures(), []);
}

#[test]
fn bytes_are_counted_to_the_byte_on_both_legs() {
    if is_root("bytes_are_counted_to_the_byte_on_both_legs") {
        for role in ["v4", "v6", "spliced"] {
            in_a_child("told::bytes_as_moved", role);
        }
    }
}

#[test]
#[ignore = "run by the test below"]
fn stat_of_sockets() {
    alone(stat_of_sockets_alone);
}

fn stat_of_sockets_alone() {
    let observer = observer();
    let cluster = observer.cluster("a");
    let before = monotonic_ns();
    let mut rows = Rows::v4(&observer);
    let mut row = rows.row(cluster);
    let after = monotonic_ns();
    let near = observer.stat(row.near.as_fd()).unwrap();
    assert!(near.flags & Stat::EST != 0 && near.flags & Stat::BASE != 0);
    assert!(
        (before..after).contains(&near.t_est),
        "the handshake, not the accept"
    );
    let far = observer.stat(row.far.as_fd()).unwrap();
    assert!(far.t_conn <= far.t_est && far.t_conn >= before, "{far:?}");
    assert_eq!((near.t_first_rx, far.t_first_tx), (0, 0), "no byte yet");
    row.pass_to_service(b"hello", Duration::ZERO);
    row.pass_to_client(b"hello to you", Duration::ZERO);
    let near = observer.stat(row.near.as_fd()).unwrap();
    assert_eq!((near.rx_end, near.tx_end), (5, 12));
    assert!(near.t_first_rx < near.t_first_tx, "{near:?}");
    let untagged = observer.stat(row.client.as_fd());
    assert!(untagged.is_none(), "nobody's socket");
    assert_eq!(observer.tag_failures(), []);
    // What is no socket is counted, and nothing else.
    let file = std::fs::File::open("/proc/self/status").unwrap();
    assert_eq!(observer.stat(file.as_fd()), None);
    observer.listener(file.as_fd(), Leg::Client);
    let failures = observer.tag_failures();
    let ops: Vec<_> = failures
        .iter()
        .map(|it| (it.op, &*it.errno, it.count))
        .collect();
    assert_eq!(ops, [("listener", "ENOTSOCK", 1), ("stat", "ENOTSOCK", 1)]);
}

#[test]
fn a_socket_tells_when_it_connected_and_what_it_moved() {
    if is_root("a_socket_tells_when_it_connected_and_what_it_moved") {
        in_a_child("told::stat_of_sockets", "");
    }
}

#[test]
#[ignore = "run by the test below"]
fn ends_of_connections() {
    alone(ends_of_connections_alone);
}

fn ends_of_connections_alone() {
    let observer = observer();
    let cluster = observer.cluster("ends");
    let mut rows = Rows::v4(&observer);
    let mut sequence = 0;
    let mut near_of = |end: &dyn Fn(Row)| {
        let mut row = rows.row(cluster);
        sequence += 1;
        row.pass_to_service(b"x", Duration::ZERO);
        end(row);
        let conn = ConnId::of_sequence(sequence).with_role(Role::Client);
        until(|| observer.closes().find(|it| it.conn_id == conn))
    };
    let half = |mut first: &TcpStream, mut second: &TcpStream| {
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
    };
    let local = near_of(&|row| half(&row.near, &row.client));
    assert_eq!(
        CloseKind::of(local.kind),
        Some(CloseKind::LocalFin),
        "{local:?}"
    );
    let remote = near_of(&|row| half(&row.client, &row.near));
    assert_eq!(
        CloseKind::of(remote.kind),
        Some(CloseKind::RemoteFin),
        "{remote:?}"
    );
    let reset = near_of(&|row| {
        SockRef::from(&row.client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(row.client);
    });
    assert_eq!(
        CloseKind::of(reset.kind),
        Some(CloseKind::Abort),
        "{reset:?}"
    );
    let unread = near_of(&|mut row| {
        row.client.write_all(b"never read").unwrap();
        until(|| (row.near.peek(&mut [0]).ok()? > 0).then_some(()));
        drop(row.near);
    });
    assert_eq!(
        CloseKind::of(unread.kind),
        Some(CloseKind::Abort),
        "{unread:?}"
    );

    // Nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let conn = ConnId::of_sequence(1 << 40);
    observer.tag(
        socket.as_fd(),
        Tag {
            conn,
            cluster,
            leg: Leg::Upstream,
            role: Role::Service,
            flags: Ident::NO_RESIDENCE,
        },
    );
    socket.connect(&address.into()).unwrap_err();
    drop(OwnedFd::from(socket));
    let refused = until(|| {
        observer
            .closes()
            .find(|it| ConnId::of_record(it.conn_id) == conn)
    });
    assert_eq!(
        CloseKind::of(refused.kind),
        Some(CloseKind::NeverConnected),
        "{refused:?}"
    );
}

#[test]
fn each_way_to_end_has_its_kind() {
    if is_root("each_way_to_end_has_its_kind") {
        in_a_child("told::ends_of_connections", "");
    }
}

#[test]
#[ignore = "run by the test below"]
fn unread_ring() {
    alone(unread_ring_alone);
}

fn unread_ring_alone() {
    let observer = observer();
    let cluster = observer.cluster("churn");
    let mut rows = Rows::v4(&observer);
    const CONNECTIONS: u64 = 17_000;
    for _ in 0..CONNECTIONS {
        drop(rows.row(cluster));
    }
    // The kernel closes what lingers in its own time.
    let closed = || {
        let reading = observer.read();
        let own = reading.clusters().find(|it| it.name == "churn").unwrap();
        own.legs().map(|(_, cnt)| cnt.closes).sum::<u64>()
    };
    let begun = Instant::now();
    while closed() != 2 * CONNECTIONS {
        std::thread::sleep(Duration::from_millis(5));
        let unmade = observer.read().own(Own::StatFailed);
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{} closes, {unmade} sockets without statistics, {:?}",
            closed(),
            observer.tag_failures()
        );
    }
    let read = observer.closes().count() as u64;
    let lost = observer.read().own(Own::ClosesLost);
    println!("{read} records read, {lost} lost");
    assert!(lost > 0, "more than the ring holds");
    assert_eq!(read + lost, 2 * CONNECTIONS);
    drop(rows.row(cluster));
    assert_eq!(closes(&observer, 2).len(), 2, "it goes on");
}

#[test]
fn records_that_find_no_room_are_counted_and_nothing_stalls() {
    if is_root("records_that_find_no_room_are_counted_and_nothing_stalls") {
        in_a_child("told::unread_ring", "");
    }
}

#[test]
#[ignore = "run by the test below"]
fn all_at_once() {
    alone(all_at_once_alone);
}

fn all_at_once_alone() {
    const THREADS: u64 = 4;
    const RELAYS: u64 = 150;
    let observer = observer();
    let busy = AtomicBool::new(true);
    let closed = AtomicU64::new(0);
    std::thread::scope(|threads| {
        let relays: Vec<_> = (0..THREADS)
            .map(|number| {
                let observer = observer.clone();
                threads.spawn(move || {
                    let cluster = observer.cluster(&format!("thread {number}"));
                    let mut rows = Rows::v4(&observer);
                    for _ in 0..RELAYS {
                        let mut row = rows.row(cluster);
                        let slot = rows.join(&row, cluster, Default::default()).unwrap();
                        row.pass_to_service(&[1; 700], Duration::ZERO);
                        row.pass_to_client(&[2; 1_300], Duration::ZERO);
                        drop((slot, row));
                    }
                })
            })
            .collect();
        // A scrape, a drain, clusters that come and go.
        threads.spawn(|| {
            while busy.load(Ordering::Relaxed) {
                let reading = observer.read();
                let legs = reading.clusters().map(|it| it.legs().count());
                std::hint::black_box(legs.sum::<usize>());
                observer.sweep();
            }
        });
        threads.spawn(|| {
            while busy.load(Ordering::Relaxed) {
                let drained = observer.closes().count() as u64;
                closed.fetch_add(drained, Ordering::Relaxed);
            }
        });
        threads.spawn(|| {
            for number in (0_u64..).take_while(|_| busy.load(Ordering::Relaxed)) {
                let name = format!("passing {}", number % 3);
                observer.cluster(&name);
                observer.forget_cluster(&name);
            }
        });
        let done: Vec<_> = relays.into_iter().map(|it| it.join()).collect();
        busy.store(false, Ordering::Relaxed);
        assert!(done.iter().all(Result::is_ok));
    });
    until(|| {
        let drained = observer.closes().count() as u64;
        let sum = closed.fetch_add(drained, Ordering::Relaxed) + drained;
        (sum == 2 * THREADS * RELAYS).then_some(())
    });
    let reading = observer.read();
    for number in 0..THREADS {
        let name = format!("thread {number}");
        let own = reading.clusters().find(|it| it.name == name).unwrap();
        let bytes: u64 = own.legs().map(|(_, cnt)| cnt.rx_bytes).sum();
        assert_eq!(bytes, RELAYS * 2_000, "{name}");
        for kind in [Kind::ToServiceEmpty, Kind::ToClientEmpty] {
            assert_eq!(own.histogram(kind).unwrap().count(), RELAYS, "{name}");
        }
    }
    let lost: u64 = reading.unsampled().iter().map(|(_, count)| count).sum();
    assert_eq!(lost, 0, "{:?}", reading.unsampled());
    assert_eq!(observer.tag_failures(), []);
}

#[test]
fn threads_relay_scrape_and_drain_at_once_and_every_byte_is_counted() {
    if is_root("threads_relay_scrape_and_drain_at_once_and_every_byte_is_counted") {
        in_a_child("told::all_at_once", "");
    }
}

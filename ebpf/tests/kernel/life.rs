//! The life of connections, as the programs tell it: on loopback, in a cgroup of its own.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use culvert_abi::{Close, CloseKind, Ident, Kind, Leg, NO_SLOT, Own, Role, Stat, UNROUTED};
use rustix::net::sockopt;

use crate::rig::{self, CLUSTER, Observer, Tier};

/// A tagged connection: the end that dialled is connection 1, role 1; the other 2, role 0.
struct Link {
    dialled: TcpStream,
    accepted: TcpStream,
}

const DIALLED: u64 = 1 << 1 | Role::Service as u64;
const ACCEPTED: u64 = 2 << 1 | Role::Client as u64;

impl Link {
    fn new(observer: &mut Observer, at: SocketAddr) -> Self {
        let listener = rig::tagged_listener(observer, at, Leg::Client);
        let to = listener.local_addr().unwrap();
        let ident = rig::ident(1, Leg::Upstream, Role::Service);
        let dialled = rig::tagged_connect(observer, to, ident).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        observer.tag(&accepted, rig::ident(2, Leg::Client, Role::Client));
        Self { dialled, accepted }
    }

    /// 1,000 bytes there, 30 back.
    fn exchange(&mut self) {
        self.dialled.write_all(&[7; 1_000]).unwrap();
        self.accepted.read_exact(&mut [0; 1_000]).unwrap();
        self.accepted.write_all(&[8; 30]).unwrap();
        self.dialled.read_exact(&mut [0; 30]).unwrap();
    }
}

#[test]
fn a_child_inherits_the_tag_of_its_listener() {
    rig::alone("a_child_inherits_the_tag_of_its_listener", |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        for at in rig::loopbacks() {
            let listener = rig::tagged_listener(&mut observer, at, Leg::Carrier);
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"early").unwrap();
            let (child, _) = listener.accept().unwrap();
            let ident = observer.ident(&child).unwrap();
            assert_eq!(ident.leg, Leg::Carrier as u8);
            assert_eq!(ident.flags, Ident::TEMPLATE);
            let stat = rig::until("the first bytes", || {
                observer.stat(&child).filter(|stat| stat.rx_end == 5)
            });
            assert_eq!(stat.flags, Stat::BASE | Stat::EST);
            assert_eq!(stat.t_conn, 0, "it was not dialled here");
            assert!(0 < stat.t_est && stat.t_est <= stat.t_first_rx, "{stat:?}");
            assert_eq!(observer.stat(&listener), None, "a listener has no figures");
            assert_eq!(observer.stat(&client), None, "nobody tagged the client");
        }
    });
}

#[test]
fn events_come_in_their_order_and_a_fin_has_a_first_side() {
    rig::alone(
        "events_come_in_their_order_and_a_fin_has_a_first_side",
        |place| {
            let mut observer = Observer::start(place, Tier::Skb);
            for at in rig::loopbacks() {
                let mut link = Link::new(&mut observer, at);
                link.exchange();
                let Link {
                    mut dialled,
                    mut accepted,
                } = link;
                dialled.shutdown(Shutdown::Write).unwrap();
                assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
                drop(accepted);
                assert_eq!(dialled.read(&mut [0]).unwrap(), 0);
                drop(dialled);

                let local = observer.close_of(DIALLED);
                assert_eq!(CloseKind::of(local.kind), Some(CloseKind::LocalFin));
                let times = [
                    local.t_conn,
                    local.t_est,
                    local.t_first_tx,
                    local.t_first_rx,
                    local.t_close,
                ];
                assert!(local.t_conn > 0 && times.is_sorted(), "{times:?}");
                assert!(local.rtt_n > 0 && local.rtt_min_us > 0, "{local:?}");
                assert!(local.rtt_sum_us >= u64::from(local.rtt_min_us));
                assert_eq!((local.tx_bytes, local.rx_bytes), (1_000, 30));
                assert_eq!((local.cluster, local.leg), (CLUSTER, Leg::Upstream as u8));
                assert_eq!(local.version, culvert_abi::VERSION);
                assert_eq!(local.unacked, 0);

                let remote = observer.close_of(ACCEPTED);
                assert_eq!(CloseKind::of(remote.kind), Some(CloseKind::RemoteFin));
                assert_eq!(remote.t_conn, 0);
                assert_eq!((remote.tx_bytes, remote.rx_bytes), (30, 1_000));
            }
            let samples = |kind: Kind| observer.histogram(CLUSTER, kind as u32).0;
            assert!(samples(Kind::RttClient) >= 2);
            assert_eq!(samples(Kind::RttCarrier) + samples(Kind::RttData), 0);
            assert_eq!(observer.counters(CLUSTER, Leg::Upstream).closes, 2);
        },
    );
}

#[test]
fn a_tier_without_packets_tells_the_same_life() {
    rig::alone("a_tier_without_packets_tells_the_same_life", |place| {
        let mut observer = Observer::start(place, Tier::SockOps);
        let mut link = Link::new(&mut observer, rig::loopbacks()[0]);
        link.exchange();
        link.dialled.shutdown(Shutdown::Write).unwrap();
        assert_eq!(link.accepted.read(&mut [0]).unwrap(), 0);
        drop(link.accepted);
        assert_eq!(link.dialled.read(&mut [0]).unwrap(), 0);
        drop(link.dialled);
        let (local, remote) = (observer.close_of(DIALLED), observer.close_of(ACCEPTED));
        assert_eq!(CloseKind::of(local.kind), Some(CloseKind::LocalFin));
        assert_eq!(CloseKind::of(remote.kind), Some(CloseKind::RemoteFin));
        assert!(local.rtt_n > 0 && local.t_conn > 0 && local.t_conn <= local.t_est);
        // The kernel's count, without the FIN that is in it; what was sent is not known.
        assert_eq!((local.rx_bytes, remote.rx_bytes), (30, 1_000));
        assert_eq!((local.tx_bytes, remote.tx_bytes), (0, 0));
        let counters = observer.counters(CLUSTER, Leg::Upstream);
        assert_eq!(
            (counters.rx_bytes, counters.tx_bytes, counters.closes),
            (0, 0, 1)
        );
    });
}

#[test]
fn a_reset_is_an_abort_on_both_sides() {
    rig::alone("a_reset_is_an_abort_on_both_sides", |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        for at in rig::loopbacks() {
            let mut link = Link::new(&mut observer, at);
            link.exchange();
            sockopt::set_socket_linger(&link.dialled, Some(Duration::ZERO)).unwrap();
            drop(link.dialled);
            let refused = link.accepted.read(&mut [0]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
            for (conn_id, tx, rx) in [(DIALLED, 1_000, 30), (ACCEPTED, 30, 1_000)] {
                let close = observer.close_of(conn_id);
                assert_eq!(CloseKind::of(close.kind), Some(CloseKind::Abort));
                assert_eq!((close.tx_bytes, close.rx_bytes), (tx, rx));
                assert_eq!(close.old_state, 1, "it was established");
            }
        }
    });
}

#[test]
fn a_refused_connect_never_connected() {
    rig::alone("a_refused_connect_never_connected", |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        for at in rig::loopbacks() {
            let nobody = TcpListener::bind(at).unwrap().local_addr().unwrap();
            let ident = rig::ident(1, Leg::Upstream, Role::Service);
            let refused = rig::tagged_connect(&mut observer, nobody, ident).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            let close = observer.close_of(DIALLED);
            assert_eq!(CloseKind::of(close.kind), Some(CloseKind::NeverConnected));
            assert!(close.t_conn > 0 && close.t_est == 0, "{close:?}");
            assert!(close.t_conn <= close.t_close);
        }
    });
}

#[test]
fn a_connect_into_silence_times_out_and_never_connected() {
    rig::alone(
        "a_connect_into_silence_times_out_and_never_connected",
        |place| {
            let mut observer = Observer::start(place, Tier::Skb);
            let silent = TcpListener::bind(rig::loopbacks()[0])
                .unwrap()
                .local_addr()
                .unwrap();
            let mut loss = rig::Loss::new();
            loss.lose(1_000, 0);
            let ident = rig::ident(1, Leg::Upstream, Role::Service);
            let socket = rig::tagged_socket(&mut observer, silent, ident);
            sockopt::set_tcp_user_timeout(&socket, 1_500).unwrap();
            let waited = rustix::net::connect(&socket, &silent).unwrap_err();
            assert_eq!(waited, rustix::io::Errno::TIMEDOUT);
            let close = observer.close_of(DIALLED);
            assert_eq!(CloseKind::of(close.kind), Some(CloseKind::NeverConnected));
            assert!(close.rto >= 1 && close.retrans >= 1, "{close:?}");
            assert_eq!(close.retrans, close.total_retrans);
            let counters = observer.counters(CLUSTER, Leg::Upstream);
            assert_eq!(counters.rto_events, u64::from(close.rto));
            assert_eq!(
                counters.retrans_rto, counters.retrans,
                "every one by the clock"
            );
        },
    );
}

#[test]
fn a_peer_that_falls_silent_is_an_abort_with_bytes_unacknowledged() {
    rig::alone(
        "a_peer_that_falls_silent_is_an_abort_with_bytes_unacknowledged",
        |place| {
            let mut observer = Observer::start(place, Tier::Skb);
            let mut link = Link::new(&mut observer, rig::loopbacks()[0]);
            link.exchange();
            let mut loss = rig::Loss::new();
            loss.lose(1_000, 0);
            sockopt::set_tcp_user_timeout(&link.dialled, 300).unwrap();
            link.dialled.write_all(&[9; 500]).unwrap();
            let waited = link.dialled.read(&mut [0]).unwrap_err();
            assert_eq!(waited.kind(), ErrorKind::TimedOut);
            let close = observer.close_of(DIALLED);
            assert_eq!(CloseKind::of(close.kind), Some(CloseKind::Abort));
            assert_eq!(close.unacked, 500);
            assert_eq!(close.tx_bytes, 1_500);
            assert_eq!(close.retrans, close.total_retrans);
        },
    );
}

#[test]
fn a_connection_that_nobody_accepted_is_still_told() {
    rig::alone("a_connection_that_nobody_accepted_is_still_told", |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        let listener = rig::tagged_listener(&mut observer, rig::loopbacks()[0], Leg::Client);
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(&[1; 40]).unwrap();
        rig::until("the bytes", || {
            (observer.counters(UNROUTED, Leg::Client).rx_skbs == 1).then_some(())
        });
        drop(listener);
        let close = observer.close_of(0);
        assert_eq!(CloseKind::of(close.kind), Some(CloseKind::Abort));
        assert_eq!((close.cluster, close.leg), (UNROUTED, Leg::Client as u8));
        assert_eq!(close.rx_bytes, 40);
        assert!(client.read(&mut [0]).is_err(), "it was reset");
    });
}

#[test]
fn an_untagged_connection_leaves_no_trace() {
    rig::alone("an_untagged_connection_leaves_no_trace", |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        let listener = TcpListener::bind(rig::loopbacks()[0]).unwrap();
        let mut plain = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        plain.write_all(&[1; 100]).unwrap();
        other.read_exact(&mut [0; 100]).unwrap();
        // A tag after the handshake finds no figures, and makes none.
        observer.tag(
            &other,
            Ident {
                pair_slot: NO_SLOT,
                ..Ident::default()
            },
        );
        other.write_all(&[1; 100]).unwrap();
        plain.read_exact(&mut [0; 100]).unwrap();
        assert_eq!(observer.stat(&other), None);
        drop((plain, other));
        // A connection that is told ends after it: its record is the only one.
        drop(Link::new(&mut observer, rig::loopbacks()[0]));
        observer.close_of(DIALLED);
        observer.close_of(ACCEPTED);
        assert!(observer.no_more_closes());
        assert_eq!(observer.own(Own::Unparsed) + observer.own(Own::NoBase), 0);
    });
}

#[test]
fn a_full_ring_loses_records_says_how_many_and_holds_nobody_up() {
    let test = "a_full_ring_loses_records_says_how_many_and_holds_nobody_up";
    rig::alone(test, |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        let nobody = TcpListener::bind(rig::loopbacks()[0])
            .unwrap()
            .local_addr()
            .unwrap();
        // A record and its head; the ring never fills its last byte.
        let room = u64::from(rig::RING_BYTES - 1) / (Close::BYTES as u64 + 8);
        let sleeper = observer.sleeper();
        for count in 1..=room + 20 {
            // A quarter of the ring wakes nobody.
            assert!(
                count > room / 4 || !sleeper.is_finished(),
                "woken by {count}"
            );
            let ident = rig::ident(count, Leg::Upstream, Role::Service);
            rig::tagged_connect(&mut observer, nobody, ident).unwrap_err();
        }
        sleeper.join().unwrap();
        assert_eq!(observer.own(Own::ClosesLost), 20);
        assert_eq!(observer.counters(CLUSTER, Leg::Upstream).closes, room + 20);
        for count in 1..=room {
            observer.close_of(count << 1 | Role::Service as u64);
        }
        assert!(observer.no_more_closes());
    });
}

//! Pairs that meet: every byte, every end.

use std::io::ErrorKind;

use culvert_net::introduction::{Credential, Link, Outer};
use culvert_proto::pair::{RendezvousId, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};
use tokio::net::TcpStream;

use crate::rig::{PairCa, Rig, http, soon};

const BULK_BYTES: usize = 8 << 20;

fn pattern(seed: usize) -> Vec<u8> {
    (0..BULK_BYTES)
        .map(|at| (at * 31 + at / 257 + seed) as u8)
        .collect()
}

/// Bulk both ways at once, then each side ends its half.
async fn exchange(bridge: Link<TcpStream>, broker: Link<TcpStream>) {
    let run = |link: Link<TcpStream>, own: usize, other: usize| async move {
        let (mut read, mut write) = split(link);
        let send = async {
            write.write_all(&pattern(own)).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let receive = read.read_to_end(&mut got);
        let (_, received) = tokio::join!(send, receive);
        received.unwrap();
        assert!(got == pattern(other), "the bytes of {other}");
    };
    let both = async { tokio::join!(run(bridge, 1, 2), run(broker, 2, 1)) };
    soon("8 MiB both ways", both).await;
}

#[tokio::test]
async fn a_pair_meets_and_its_bytes_are_spliced_on_both_engines() {
    for engine in ["epoll", "auto"] {
        let rig = Rig::tls(&["--io-engine", engine]);
        let (bridge, broker) = rig.pair(&PairCa::new()).await;
        assert!(matches!(bridge, Link::Plain(_)) && matches!(broker, Link::Plain(_)));
        exchange(bridge, broker).await;
        rig.until(r#"culvert_pair_closed_total{reason="finished"}"#, 1.0)
            .await;
        rig.until("culvert_pair_matches_total", 1.0).await;
        rig.until("culvert_engine_bytes_total", 2.0 * BULK_BYTES as f64)
            .await;
        let spliced = rig
            .metric("culvert_engine_spliced_bytes_total")
            .await
            .unwrap();
        assert!(spliced > BULK_BYTES as f64, "{engine}: {spliced}");
        assert_eq!(rig.metric("culvert_pair_live").await, Some(0.0));
    }
}

#[tokio::test]
async fn plain_and_kept_legs_carry_the_same_bytes() {
    for outer in [Outer::Plain, Outer::Tls { keep: true }] {
        let rig = Rig::outer(outer, &[]);
        let (bridge, broker) = rig.pair(&PairCa::new()).await;
        exchange(bridge, broker).await;
        rig.until(r#"culvert_pair_closed_total{reason="finished"}"#, 1.0)
            .await;
        rig.until("culvert_engine_bytes_total", 2.0 * BULK_BYTES as f64)
            .await;
    }
}

#[tokio::test]
async fn half_an_end_is_half_an_end_and_the_other_half_goes_on() {
    let rig = Rig::tls(&[]);
    let (mut bridge, mut broker) = rig.pair(&PairCa::new()).await;
    broker.write_all(b"question").await.unwrap();
    broker.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon("the half", bridge.read_to_end(&mut heard))
        .await
        .unwrap();
    assert_eq!(heard, b"question");
    for word in [&b"an "[..], b"answer"] {
        bridge.write_all(word).await.unwrap();
        let mut heard = vec![0; word.len()];
        soon("the other half", broker.read_exact(&mut heard))
            .await
            .unwrap();
        assert_eq!(heard, word);
    }
    bridge.shutdown().await.unwrap();
    assert_eq!(broker.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reset_travels_to_the_other_side_in_each_way() {
    for outer in [Outer::Tls { keep: false }, Outer::Tls { keep: true }] {
        for dies in [Role::Bridge, Role::Broker] {
            let rig = Rig::outer(outer, &[]);
            let (bridge, broker) = rig.pair(&PairCa::new()).await;
            let (dying, mut left) = match dies {
                Role::Bridge => (bridge, broker),
                Role::Broker => (broker, bridge),
            };
            match &dying {
                Link::Plain(stream) => stream.set_zero_linger().unwrap(),
                Link::Kept(stream) => stream.get_ref().0.get_ref().set_zero_linger().unwrap(),
            }
            drop(dying);
            let ended = soon("a reset", left.read(&mut [0])).await;
            assert_eq!(
                ended.unwrap_err().kind(),
                ErrorKind::ConnectionReset,
                "{dies:?}"
            );
        }
    }
}

/// Whichever side comes first waits; many of both meet one by one.
#[tokio::test]
async fn sides_of_many_pairs_find_their_own() {
    let rig = Rig::tls(&["--connections-per-minute=1000"]);
    let all: Vec<PairCa> = (0..12).map(|_| PairCa::new()).collect();
    for (number, ca) in all.iter().enumerate() {
        let first = if number % 2 == 0 {
            Role::Bridge
        } else {
            Role::Broker
        };
        let waiter = rig.waiter(1, first, ca.credential(first)).await;
        assert!(waiter.waits);
        let late = first.other();
        let late = rig
            .introduce(rig.dial().await, late, &ca.credential(late))
            .await;
        let (mut late, mut waiter) = (late.unwrap(), waiter.link().await);
        let own = [number as u8; 100];
        late.write_all(&own).await.unwrap();
        let mut heard = [0; 100];
        soon("the own bytes", waiter.read_exact(&mut heard))
            .await
            .unwrap();
        assert_eq!(heard, own);
    }
}

#[tokio::test]
async fn keys_meet_keys_and_open_joins_meet_open_joins() {
    let rig = Rig::tls(&["--open-join"]);
    let ca = PairCa::new();
    let waiter = rig
        .waiter(1, Role::Bridge, ca.credential(Role::Bridge))
        .await;
    let id = ca.credential(Role::Bridge).id();
    let squatter = rig.waiter(2, Role::Broker, Credential::open(id)).await;
    assert!(squatter.waits, "it knows the id and proves nothing");
    let key = rig
        .waiter(3, Role::Bridge, Credential::key([7; 32]).unwrap())
        .await;
    assert!(key.waits && !waiter.task.is_finished());
    let other = rig
        .waiter(4, Role::Broker, Credential::key([7; 32]).unwrap())
        .await;
    let (_key, _other) = (key.link().await, other.link().await);
    let open = rig
        .waiter(5, Role::Bridge, Credential::open(RendezvousId(id.0)))
        .await;
    let (_open, _squatter) = (open.link().await, squatter.link().await);
    let broker = rig
        .waiter(6, Role::Broker, ca.credential(Role::Broker))
        .await;
    let (_broker, _bridge) = (broker.link().await, waiter.link().await);
}

#[tokio::test]
async fn probes_and_metrics_are_served() {
    let rig = Rig::tls(&[]);
    assert!(http(rig.at.admin, "GET", "/healthz").await.ends_with("ok"));
    assert!(http(rig.at.admin, "GET", "/readyz").await.ends_with("ok"));
    rig.until("culvert_pair_waiting", 0.0).await;
    let _waiter = rig
        .waiter(1, Role::Bridge, PairCa::new().credential(Role::Bridge))
        .await;
    rig.until("culvert_pair_waiting", 1.0).await;
    assert!(
        http(rig.at.admin, "GET", "/admin/drain")
            .await
            .starts_with("HTTP/1.1 404")
    );
}

//! What one source may do to a relay, and what happens when it is full.

use culvert_net::introduction::{Credential, Link};
use culvert_proto::pair::{ReplyCode, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{PairCa, Rig, refusal, soon};

fn key(number: usize) -> Credential {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    Credential::key(seed).unwrap()
}

#[tokio::test]
async fn more_connections_a_minute_than_allowed_are_told_so_then_dropped() {
    let rig = Rig::tls(&["--connections-per-minute=10"]);
    for _ in 0..10 {
        drop(rig.dial_from(1).await);
    }
    let told = rig
        .introduce(rig.dial_from(1).await, Role::Bridge, &key(1))
        .await;
    let (code, retry_after_s) = refusal(told);
    assert_eq!(code, ReplyCode::RateLimit);
    assert!((6..=13).contains(&retry_after_s), "{retry_after_s}");
    for _ in 0..9 {
        drop(rig.dial_from(1).await);
    }
    let end = match rig.try_dial_from(1).await {
        Ok(mut dropped) => soon("a reset", dropped.read(&mut [0])).await,
        reset => reset.map(|_| 0),
    };
    assert!(end.is_err(), "{end:?}");
    // Another source is none the worse for it.
    let waiter = rig.waiter(2, Role::Bridge, key(1)).await;
    assert!(waiter.waits);
}

#[tokio::test]
async fn waiters_of_one_source_are_bounded_and_do_not_keep_out_another() {
    let rig = Rig::plain(&["--connections-per-minute=1000"]);
    let mut waiters = Vec::new();
    for number in 0..32 {
        waiters.push(rig.waiter(1, Role::Bridge, key(number)).await);
    }
    assert!(waiters.iter().all(|waiter| waiter.waits));
    let late = rig
        .introduce(rig.dial_from(1).await, Role::Bridge, &key(99))
        .await;
    assert_eq!(refusal(late), (ReplyCode::RateLimit, 15));
    // Whoever is joined at once needs no place to wait, also of that source.
    let broker = rig
        .introduce(rig.dial_from(1).await, Role::Broker, &key(0))
        .await;
    assert!(broker.is_ok());
    let ca = PairCa::new();
    let bridge = rig
        .waiter(2, Role::Bridge, ca.credential(Role::Bridge))
        .await;
    let broker = rig
        .waiter(3, Role::Broker, ca.credential(Role::Broker))
        .await;
    let _pair = (bridge.link().await, broker.link().await);
    rig.until(r#"culvert_pair_refused_total{reason="full"}"#, 1.0)
        .await;
}

#[tokio::test]
async fn a_full_relay_gives_the_place_of_a_greedy_source_to_another() {
    let flags = [
        "--connections-per-minute=1000",
        "--waiters-max=409",
        "--source-waiters-max=320",
    ];
    let rig = Rig::plain(&flags);
    let mut waiters = Vec::new();
    for number in 0..409 {
        let source = if number < 320 { 1 } else { 2 };
        waiters.push(rig.waiter(source, Role::Bridge, key(number)).await);
    }
    rig.until("culvert_pair_waiting", 409.0).await;
    let modest = rig.waiter(3, Role::Bridge, key(1_000)).await;
    assert!(modest.waits);
    // The youngest of the source that had most.
    let out = waiters.remove(319);
    assert_eq!(out.refused().await.0, ReplyCode::RateLimit);
    let broker = rig
        .introduce(rig.dial_from(4).await, Role::Broker, &key(1_000))
        .await;
    let _pair = (broker.unwrap(), modest.link().await);
}

/// A pair of two sources, which are let in at once.
async fn met(rig: &Rig, from: [u8; 2], number: usize) -> (Link<TcpStream>, Link<TcpStream>) {
    let bridge = rig.waiter(from[0], Role::Bridge, key(number)).await;
    let broker = rig.dial_from(from[1]).await;
    let broker = rig.introduce(broker, Role::Broker, &key(number)).await;
    (bridge.link().await, broker.unwrap())
}

#[tokio::test]
async fn pairs_beyond_the_limit_wait_and_go_on_when_one_ends() {
    let rig = Rig::plain(&["--connections-per-minute=1000", "--pairs-max=100"]);
    let mut pairs = Vec::new();
    for number in 0..100 {
        let from = 1 + number as u8;
        pairs.push(met(&rig, [from, 100 + from], number).await);
    }
    let mut late = Vec::new();
    for number in 1_000..1_003 {
        let from = 201 + 2 * (number - 1_000) as u8;
        let bridge = rig.waiter(from, Role::Bridge, key(number)).await;
        let broker = rig.waiter(from + 1, Role::Broker, key(number)).await;
        assert!(
            bridge.waits && broker.waits,
            "they wait, and are not refused"
        );
        late.push((bridge, broker));
    }
    rig.until("culvert_pair_live", 100.0).await;
    rig.until("culvert_pair_waiting", 6.0).await;
    rig.until("culvert_pair_held_back", 6.0).await;
    for (bridge, broker) in late {
        assert!(!bridge.task.is_finished() && !broker.task.is_finished());
        drop(pairs.pop());
        let (mut bridge, mut broker) = (bridge.link().await, broker.link().await);
        bridge.write_all(b"in order").await.unwrap();
        let mut heard = [0; 8];
        soon("bytes", broker.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, b"in order");
        pairs.insert(0, (bridge, broker));
    }
    rig.until("culvert_pair_waiting", 0.0).await;
}

/// One source whose sides meet each other as often as they can, against the pair of two others.
#[tokio::test]
async fn a_source_that_fills_its_share_waits_and_another_pair_forms_at_once() {
    let rig = Rig::plain(&["--connections-per-minute=1000", "--pairs-max=100"]);
    let mut pairs = Vec::new();
    for number in 0..50 {
        pairs.push(met(&rig, [1, 1], number).await);
    }
    let bridge = rig.waiter(1, Role::Bridge, key(50)).await;
    let broker = rig.waiter(1, Role::Broker, key(50)).await;
    assert!(
        bridge.waits && broker.waits,
        "half of the places are its own"
    );
    rig.until("culvert_pair_held_back", 2.0).await;
    // Others pass it by, also with a side of theirs that came later.
    let other = met(&rig, [2, 3], 100).await;
    rig.until("culvert_pair_live", 51.0).await;
    assert!(!bridge.task.is_finished() && !broker.task.is_finished());
    // Its turn comes when more places are free than it has pairs.
    drop((other, pairs.pop()));
    let (mut bridge, mut broker) = (bridge.link().await, broker.link().await);
    bridge.write_all(b"its turn").await.unwrap();
    let mut heard = [0; 8];
    soon("bytes", broker.read_exact(&mut heard)).await.unwrap();
    rig.until("culvert_pair_held_back", 0.0).await;
}

#[tokio::test]
async fn a_thousand_waiters_all_meet() {
    let flags = [
        "--connections-per-minute=1000",
        "--source-waiters-max=320",
        "--pairs-max=2000",
    ];
    let rig = Rig::plain(&flags);
    let mut waiters = Vec::new();
    for number in 0..1_000 {
        let source = 1 + (number / 300) as u8;
        waiters.push(rig.waiter(source, Role::Bridge, key(number)).await);
    }
    rig.until("culvert_pair_waiting", 1_000.0).await;
    let mut pairs = Vec::new();
    for (number, waiter) in waiters.into_iter().enumerate() {
        let source = 11 + (number / 300) as u8;
        let broker = rig
            .introduce(rig.dial_from(source).await, Role::Broker, &key(number))
            .await;
        pairs.push((waiter.link().await, broker.unwrap()));
    }
    rig.until("culvert_pair_live", 1_000.0).await;
    let (mut bridge, mut broker) = pairs.pop().unwrap();
    bridge.write_all(b"last").await.unwrap();
    let mut heard = [0; 4];
    soon("bytes", broker.read_exact(&mut heard)).await.unwrap();
}

//! The two roles of a pair through relays.

use std::time::{Duration, Instant};

use culvert_net::introduction::OuterServer;
use tokio::io::AsyncWriteExt as _;

use crate::flow::{Service, expect, whole_conversation};
use crate::pair::{BACK_MAX, Certs, Process, Role, connect, free, run};
use crate::relay::{Relay, outer_tls};
use crate::support::within;

fn role(name: &str, certs: &Certs, relays: &str, more: &[&str]) -> Role {
    let mut args = [name, "--relay", relays, "--health-addr", "127.0.0.1:0"]
        .map(str::to_owned)
        .to_vec();
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args.extend(certs.of(name));
    run(&args)
}

#[tokio::test]
async fn connections_run_through_a_relay_with_and_without_an_outer_tls() {
    for (outer, each) in [
        ("plain", false),
        ("plain", true),
        ("end", false),
        ("end", true),
        ("keep", false),
        ("keep", true),
    ] {
        let (certs, service) = (Certs::new(), Service::start().await);
        let tls = match outer {
            "plain" => OuterServer::Plain,
            _ => outer_tls(certs.path(), outer == "keep"),
        };
        let relay = Relay::start("127.0.0.1:0".parse().unwrap(), tls).await;
        let place = format!("localhost:{}", relay.addr.port());
        let ca = certs.path().join("relay-ca.crt");
        let trust: &[&str] = match outer {
            "plain" => &["--relay-plain"],
            _ => &["--outer-tls", outer, "--relay-ca", ca.to_str().unwrap()],
        };
        let (to, listen) = (service.addr.to_string(), free());
        let _bridge = role("bridge", &certs, &place, &[trust, &["--to", &to]].concat());
        let at = listen.to_string();
        let mut flags = [trust, &["--listen", &at]].concat();
        if each {
            flags.push("--flow-per-pair");
        }
        let _broker = role("broker", &certs, &place, &flags);
        let mut talks = Vec::new();
        for _ in 0..3 {
            let client = connect(listen).await;
            let served = service.accept().await;
            talks.push(tokio::spawn(whole_conversation(client, served)));
        }
        for talk in talks {
            within(talk)
                .await
                .unwrap_or_else(|why| panic!("{outer} {each}: {why}"));
        }
        let pairs = if each { 3 } else { 1 };
        assert_eq!(relay.pairs(), pairs, "{outer}");
        // A relay counts connections: the broker's are the pairs, the bridge's those and its spares.
        assert!(relay.connections() <= 2 * pairs + 2, "{outer} {each}");
    }
}

#[tokio::test]
async fn a_pair_stands_again_soon_after_its_relay_does() {
    let (certs, service) = (Certs::new(), Service::start().await);
    let (at, listen) = (free(), free());
    let (to, local) = (service.addr.to_string(), listen.to_string());
    let relay = Relay::start(at, OuterServer::Plain).await;
    let _bridge = role(
        "bridge",
        &certs,
        &at.to_string(),
        &["--relay-plain", "--to", &to],
    );
    let _broker = role(
        "broker",
        &certs,
        &at.to_string(),
        &["--relay-plain", "--listen", &local],
    );
    let mut client = connect(listen).await;
    let mut served = service.accept().await;
    client.write_all(b"question").await.unwrap();
    expect(&mut served, b"question").await;
    relay.kill().await;
    crate::flow::broken(&mut client).await;
    crate::flow::broken(&mut served).await;
    // Long enough for both sides to wait as long as they ever do.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let began = Instant::now();
    let relay = Relay::start(at, OuterServer::Plain).await;
    within(async {
        while relay.pairs() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(began.elapsed() < BACK_MAX, "{:?}", began.elapsed());
    let (client, served) = (connect(listen).await, service.accept().await);
    whole_conversation(client, served).await;
}

#[tokio::test]
async fn a_bridge_keeps_spares_at_every_relay_and_any_one_is_enough() {
    let (certs, service) = (Certs::new(), Service::start().await);
    let (first, second, dead) = (free(), free(), free());
    let one = Relay::start(first, OuterServer::Plain).await;
    let two = Relay::start(second, OuterServer::Plain).await;
    let all = format!("{dead},{first},{second}");
    let (to, listen) = (service.addr.to_string(), free());
    let _bridge = role("bridge", &certs, &all, &["--relay-plain", "--to", &to]);
    within(async {
        while (one.waiting(), two.waiting()) != (2, 2) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let local = listen.to_string();
    let broker = ["--relay-plain", "--flow-per-pair", "--listen", &local];
    let _broker = role("broker", &certs, &all, &broker);
    let (client, served) = (connect(listen).await, service.accept().await);
    whole_conversation(client, served).await;
    one.kill().await;
    let (client, served) = (connect(listen).await, service.accept().await);
    whole_conversation(client, served).await;
    // What was used was replaced.
    within(async {
        while two.waiting() != 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(two.pairs() >= 1);
}

async fn waits(relay: &Relay, count: usize) {
    within(async {
        while relay.waiting() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Both ways to use a pair: one for all, one for each.
const USES: [&[&str]; 2] = [&[], &["--flow-per-pair"]];

#[tokio::test]
async fn bridges_that_are_met_and_do_not_answer_cost_a_client_no_connection() {
    for each in USES {
        let (certs, service) = (Certs::new(), Service::start().await);
        let relay = Relay::start("127.0.0.1:0".parse().unwrap(), OuterServer::Plain).await;
        let (place, to) = (relay.addr.to_string(), service.addr.to_string());
        let mut args = ["bridge", "--relay", &place, "--to", &to]
            .map(str::to_owned)
            .to_vec();
        args.extend(["--relay-plain", "--health-addr", "127.0.0.1:0"].map(str::to_owned));
        args.extend(certs.of("bridge"));
        let frozen = Process::start(&args);
        waits(&relay, 2).await;
        // Its kernel goes on to answer, so nobody can see that it is of no use.
        frozen.signal(rustix::process::Signal::STOP);
        let _alive = role("bridge", &certs, &place, &["--relay-plain", "--to", &to]);
        waits(&relay, 4).await;
        let listen = free();
        let local = listen.to_string();
        let flags = [&["--relay-plain", "--listen", &local], each].concat();
        let _broker = role("broker", &certs, &place, &flags);
        let began = Instant::now();
        let (client, served) = (connect(listen).await, service.accept().await);
        // Both connections of the frozen one were met first.
        assert!(relay.pairs() >= 3, "{each:?}");
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "{each:?}: {:?}",
            began.elapsed()
        );
        whole_conversation(client, served).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_uses_up_no_pair() {
    let (certs, service) = (Certs::new(), Service::start().await);
    let relay = Relay::start("127.0.0.1:0".parse().unwrap(), OuterServer::Plain).await;
    let (place, listen) = (relay.addr.to_string(), free());
    let local = listen.to_string();
    let flags = ["--relay-plain", "--listen", &local, "--flow-per-pair"];
    let _broker = role("broker", &certs, &place, &flags);
    let mut ended = connect(listen).await;
    ended.write_all(b"never mind").await.unwrap();
    let broken = connect(listen).await;
    let mut stays = connect(listen).await;
    waits(&relay, 3).await;
    drop(ended);
    crate::flow::reset(broken);
    waits(&relay, 1).await;
    let to = service.addr.to_string();
    let _bridge = role("bridge", &certs, &place, &["--relay-plain", "--to", &to]);
    let mut served = service.accept().await;
    stays.write_all(b"question").await.unwrap();
    expect(&mut served, b"question").await;
    assert_eq!(relay.pairs(), 1);
}

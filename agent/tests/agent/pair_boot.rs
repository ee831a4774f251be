//! First certificates: a store that is followed, a pairing code that is used once, and those who
//! stand between.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use culvert_net::introduction::OuterServer;
use culvert_net::tls::pair::{PairTls, Side};
use culvert_pair::{FileStore, Key, PairJoin, PairingCode, Registration, Store as _, self_signed};
use culvert_proto::pair::ALPN_BOOT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::flow::{Service, whole_conversation};
use crate::pair::{BACK_MAX, Process, Role, connect, free, run};
use crate::relay::Relay;
use crate::support::within;

fn now_s() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// Registers a pair with `code` in the store in `dir`.
async fn register(
    dir: &Path,
    relay: SocketAddr,
    code: &PairingCode,
    reissue: bool,
) -> Registration {
    let code = PairingCode::from_bytes(*code.expose());
    let relays = [relay.to_string()];
    let made = Registration::new("shop", &relays, code, false, reissue, now_s()).unwrap();
    FileStore::new(dir.to_owned())
        .save(&made, None)
        .await
        .unwrap();
    made
}

fn join(relay: SocketAddr, code: &PairingCode) -> String {
    let join = PairJoin {
        name: "shop".to_owned(),
        relays: vec![relay.to_string()],
        info_hash: None,
        code: PairingCode::from_bytes(*code.expose()),
        expires_unix_s: 0,
    };
    join.encode().unwrap().to_string()
}

fn bridge_args(store: &Path, to: &str) -> Vec<String> {
    let store = format!("file:{}", store.display());
    owned(&[
        "bridge",
        "--relay-plain",
        "--to",
        to,
        "--store",
        &store,
        "--health-addr",
        "127.0.0.1:0",
    ])
}

fn broker_args(join: &str, state: &str, listen: SocketAddr) -> Vec<String> {
    let listen = listen.to_string();
    owned(&[
        "broker",
        "--relay-plain",
        "--join",
        join,
        "--state",
        state,
        "--listen",
        &listen,
        "--health-addr",
        "127.0.0.1:0",
    ])
}

#[tokio::test]
async fn a_running_bridge_serves_a_new_registration_and_the_broker_keeps_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (store, state) = (dir.path().join("store"), dir.path().join("state"));
    let service = Service::start().await;
    let relay = Relay::start(free(), OuterServer::Plain).await;
    let (code, listen) = (PairingCode::random(), free());
    let word = join(relay.addr, &code);
    let _bridge = run(&bridge_args(&store, &service.addr.to_string()));
    let kept = format!("file:{}", state.display());
    let broker = run(&broker_args(&word, &kept, listen));
    // Both wait for somebody who registers them.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    register(&store, relay.addr, &code, false).await;
    let (client, served) = (connect(listen).await, service.accept().await);
    assert!(began.elapsed() < BACK_MAX, "{:?}", began.elapsed());
    whole_conversation(client, served).await;
    broker.stop().await;
    // It comes back with what it kept; the code is used.
    let broker = run(&broker_args(&word, &kept, listen));
    let (client, served) = (connect(listen).await, service.accept().await);
    whole_conversation(client, served).await;
    broker.stop().await;
    let second = Process::start(&broker_args(&word, "memory", listen));
    let refused = timeout(Duration::from_secs(6), service.accept_any());
    let _client = connect(listen).await;
    assert!(
        refused.await.is_err(),
        "a second broker got in with a used code"
    );
    drop(second);
}

#[tokio::test]
async fn a_broker_in_memory_is_certified_anew_at_each_start_with_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let (store, state) = (dir.path().join("store"), dir.path().join("state"));
    let service = Service::start().await;
    let relay = Relay::start(free(), OuterServer::Plain).await;
    // As `culvert pair fingerprint` leaves it.
    let keys = FileStore::new(state.clone());
    let made = culvert_pair::BrokerState::generate().unwrap();
    keys.save_broker(&made, None).await.unwrap();
    let registered = {
        let relays = [relay.addr.to_string()];
        let made = Registration::new("shop", &relays, made.code(), true, true, now_s());
        made.unwrap()
    };
    FileStore::new(store.clone())
        .save(&registered, None)
        .await
        .unwrap();
    let _bridge = run(&bridge_args(&store, &service.addr.to_string()));
    let kept = format!("memory:file:{}", state.display());
    for _ in 0..2 {
        let listen = free();
        let (at, place) = (listen.to_string(), relay.addr.to_string());
        let args = owned(&[
            "broker",
            "--relay-plain",
            "--relay",
            &place,
            "--state",
            &kept,
            "--listen",
            &at,
            "--health-addr",
            "127.0.0.1:0",
        ]);
        let broker = run(&args);
        let (client, served) = (connect(listen).await, service.accept().await);
        whole_conversation(client, served).await;
        broker.stop().await;
        let (seen, _) = keys.load_broker().await.unwrap().unwrap();
        assert!(seen.identity().is_none(), "no certificate is written down");
    }
}

/// A bridge that is called directly, with one registration.
struct Direct {
    dir: tempfile::TempDir,
    service: Service,
    bridge: Process,
    /// Where it listens.
    at: SocketAddr,
    code: PairingCode,
}

impl Direct {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start().await;
        let (at, code) = (free(), PairingCode::random());
        register(&dir.path().join("store"), at, &code, false).await;
        let mut args = bridge_args(&dir.path().join("store"), &service.addr.to_string());
        args.retain(|arg| arg != "--relay-plain");
        args.extend(owned(&[
            "--mode",
            "direct",
            "--listen-pair",
            &at.to_string(),
        ]));
        let mut bridge = Process::start(&args);
        bridge.line_with("the pair is served").await;
        Self {
            dir,
            service,
            bridge,
            at,
            code,
        }
    }

    /// A broker with `code` that dials `at`.
    fn broker(&self, at: SocketAddr, code: &PairingCode, listen: SocketAddr) -> Vec<String> {
        let state = format!("file:{}", self.dir.path().join("state").display());
        let mut args = broker_args(&join(at, code), &state, listen);
        args.retain(|arg| arg != "--relay-plain");
        args.extend(owned(&["--mode", "direct", "--dial", &at.to_string()]));
        args
    }

    /// The broker still gets its certificate: nobody used the code up.
    async fn still_works(&self) {
        let listen = free();
        let broker: Role = run(&self.broker(self.at, &self.code, listen));
        let (client, served) = (connect(listen).await, self.service.accept().await);
        whole_conversation(client, served).await;
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_wrong_code_gets_nothing_and_uses_nothing_up() {
    let mut site = Direct::start().await;
    let mut broker = Process::start(&site.broker(site.at, &PairingCode::random(), free()));
    let line = broker.line_with("msg=\"no certificate\"").await;
    assert!(line.contains("pairing code"), "{line}");
    let line = site.bridge.line_with("a broker got no certificate").await;
    assert!(line.contains("does not prove the pairing code"), "{line}");
    drop(broker);
    site.still_works().await;
}

#[tokio::test]
async fn a_bridge_that_dials_its_broker_gives_it_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let service = Service::start().await;
    let (meet, listen) = (free(), free());
    let code = PairingCode::random();
    let mut bridge = bridge_args(&store, &service.addr.to_string());
    bridge.retain(|arg| arg != "--relay-plain");
    bridge.extend(owned(&["--mode", "reverse", "--dial", &meet.to_string()]));
    let mut broker = broker_args(&join(meet, &code), "memory", listen);
    broker.retain(|arg| arg != "--relay-plain");
    broker.extend(owned(&[
        "--mode",
        "reverse",
        "--listen-pair",
        &meet.to_string(),
    ]));
    let _roles = (run(&bridge), run(&broker));
    register(&store, meet, &code, false).await;
    let (client, served) = (connect(listen).await, service.accept().await);
    whole_conversation(client, served).await;
}

#[tokio::test]
async fn a_byte_changed_on_the_way_gives_no_certificate() {
    // In the hello, in the handshake, in the proof, in the request.
    for at_byte in [40, 700, 2100] {
        let site = Direct::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let between = listener.local_addr().unwrap();
        let (to, changed) = (site.at, Arc::new(AtomicUsize::new(0)));
        let seen = changed.clone();
        tokio::spawn(async move {
            while let Ok((broker, _)) = listener.accept().await {
                let bridge = TcpStream::connect(to).await.unwrap();
                tokio::spawn(change(broker, bridge, at_byte, seen.clone()));
            }
        });
        let mut broker = Process::start(&site.broker(between, &site.code, free()));
        broker.line_with("msg=\"no certificate\"").await;
        assert!(
            changed.load(Ordering::SeqCst) > 0,
            "byte {at_byte} never came"
        );
        drop(broker);
        site.still_works().await;
    }
}

/// Copies, and changes the byte `at` of what the broker says.
async fn change(broker: TcpStream, bridge: TcpStream, at: usize, changed: Arc<AtomicUsize>) {
    let (mut from, mut back) = broker.into_split();
    let (mut answers, mut to) = bridge.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
    let (mut buffer, mut passed) = (vec![0; 4096], 0);
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        if (passed..passed + bytes).contains(&at) {
            buffer[at - passed] ^= 1;
            changed.fetch_add(1, Ordering::SeqCst);
        }
        passed += bytes;
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}

/// More than the bridge says before the certificate (its key share for X25519MLKEM768 is half of it),
/// and less than it says with it.
const BEFORE_THE_CHAIN: u64 = 2_700;

#[tokio::test]
async fn a_certificate_that_is_lost_on_the_way_is_given_again_to_the_same_broker() {
    let mut site = Direct::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let between = listener.local_addr().unwrap();
    let (to, losing) = (site.at, Arc::new(AtomicUsize::new(1)));
    let loses = losing.clone();
    tokio::spawn(async move {
        while let Ok((mut broker, _)) = listener.accept().await {
            let mut bridge = TcpStream::connect(to).await.unwrap();
            let loses = loses.load(Ordering::SeqCst) > 0;
            tokio::spawn(async move {
                if !loses {
                    return drop(copy_bidirectional(&mut broker, &mut bridge).await);
                }
                let (mut said, mut to_broker) = broker.split();
                let (answers, mut to_bridge) = bridge.split();
                let mut answers = answers.take(BEFORE_THE_CHAIN);
                tokio::select! {
                    _ = tokio::io::copy(&mut said, &mut to_bridge) => {}
                    // Then both break.
                    _ = tokio::io::copy(&mut answers, &mut to_broker) => {}
                }
            });
        }
    });
    let listen = free();
    let mut args = site.broker(between, &site.code, listen);
    let mut broker = Process::start(&args);
    site.bridge.line_with("did not say that it is kept").await;
    broker.line_with("msg=\"no certificate\"").await;
    // It dies there and then, and comes back with the key that it had.
    broker.kill().await;
    // Who has the code alone gets nothing: it was used.
    let state = args.iter().position(|arg| arg == "--state").unwrap() + 1;
    let kept = std::mem::replace(&mut args[state], "memory".to_owned());
    let mut stranger = Process::start(&args);
    losing.store(0, Ordering::SeqCst);
    stranger.line_with("msg=\"no certificate\"").await;
    site.bridge
        .line_with("the pairing code has been used")
        .await;
    stranger.kill().await;
    args[state] = kept;
    let _broker = run(&args);
    let (client, served) = (connect(listen).await, site.service.accept().await);
    whole_conversation(client, served).await;
    site.bridge.line_with("the pairing code is used").await;
    let store = FileStore::new(site.dir.path().join("store"));
    let kept = store.list().await.unwrap().kept;
    assert!(kept[0].registration.code(now_s()).is_none(), "it is over");
}

#[tokio::test]
async fn whoever_ends_the_tls_in_the_middle_is_found_out_by_both() {
    let mut site = Direct::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let between = listener.local_addr().unwrap();
    let to = site.at;
    let tls = |side| {
        let key = Key::generate().unwrap();
        let shown = self_signed(&key, now_s()).unwrap();
        PairTls::boot(side, shown, key.pkcs8_der(), ALPN_BOOT).unwrap()
    };
    let (to_broker, to_bridge) = (tls(Side::Bridge), tls(Side::Broker));
    tokio::spawn(async move {
        while let Ok((broker, _)) = listener.accept().await {
            let bridge = TcpStream::connect(to).await.unwrap();
            let Ok(mut broker) = to_broker.handshake(broker).await else {
                continue;
            };
            let Ok(mut bridge) = to_bridge.handshake(bridge).await else {
                continue;
            };
            let _ = copy_bidirectional(&mut broker, &mut bridge).await;
        }
    });
    let mut broker = Process::start(&site.broker(between, &site.code, free()));
    let line = broker.line_with("msg=\"no certificate\"").await;
    assert!(
        line.contains("somebody stands between") || line.contains("gave no certificate"),
        "{line}"
    );
    let line = site.bridge.line_with("a broker got no certificate").await;
    assert!(
        line.contains("somebody stands between") || line.contains("left before"),
        "{line}"
    );
    drop(broker);
    site.still_works().await;
}

#[tokio::test]
async fn a_pair_that_is_removed_is_waited_for_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path().join("store"));
    let service = Service::start().await;
    let relay = Relay::start(free(), OuterServer::Plain).await;
    let made = register(store.dir(), relay.addr, &PairingCode::random(), false).await;
    let _bridge = run(&bridge_args(store.dir(), &service.addr.to_string()));
    let at = &relay;
    let waits = |count: usize| {
        within(async move {
            // Two spares for the pair, one for its first certificate.
            while at.waiting() != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    waits(3).await;
    let kept = store.load(made.id()).await.unwrap().unwrap();
    store.remove(made.id(), &kept.revision).await.unwrap();
    waits(0).await;
}

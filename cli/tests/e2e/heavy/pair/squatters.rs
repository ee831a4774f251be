//! Squatters: they know the info hash and speak the protocol, and keep nobody from meeting.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_net::crypto::random_bytes;
use culvert_net::introduction::{Credential, IntroduceError, Outer, OuterClient, introduce};
use culvert_net::tls::pair::PairIdentity;
use culvert_net::tls::{ClientTlsOptions, Roots};
use culvert_perf::testbed::{HUB_FOR_CLIENT, NamespaceRuntime, Testbed, memory_kib, wait_for};
use culvert_proto::pair::{
    HELLO_BYTES, Preface, ProofKind, REPLY_BYTES, RelayHello, RendezvousId, Reply, ReplyCode, Role,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::hub::ready;
use crate::pair::echo::{self, ask, descriptors};
use crate::pair::{Files, Paired, RELAY, bed, wait_ready};

/// 25 connections from each of 400 addresses: no limit of a source is in their way.
const SOURCES: u64 = 400;
const OF_SOURCE: u64 = 25;
/// Of those, open joins; more of them than may wait. Of the others one half is silent after the
/// hello, the other shows proofs that do not hold.
const OPEN: u64 = 11;
const TRIALS: usize = 100;
/// From one trial to the next: 100 connections a minute are one address's share, after a hundred.
const EVERY: Duration = Duration::from_millis(400);
/// The promise for 99 of 100.
const PAIRED_MAX: Duration = Duration::from_secs(1);
/// What 10,000 strangers may cost the relay, all of them together.
const GROWTH_KIB_MAX: u64 = 128 << 10;
/// Handshakes of squatters at once.
const AT_ONCE: usize = 32;

/// What became of them.
#[derive(Debug, Default)]
struct Tally {
    waited: AtomicU64,
    silent: AtomicU64,
    full: AtomicU64,
    bad_proof: AtomicU64,
    unmade: AtomicU64,
}

/// What squatters know.
struct Known {
    id: RendezvousId,
    ca: Vec<u8>,
    leaf: Vec<u8>,
    outer: OuterClient,
    hands: Semaphore,
    tally: Tally,
}

/// Squatters in the client's network. Dropped, all of them end.
struct Crowd {
    runtime: NamespaceRuntime,
    known: Arc<Known>,
}

#[derive(Clone, Copy)]
enum Manner {
    Open,
    Silent,
    FalseProof,
    /// Proves a key of its own, which nobody else has.
    OwnKey,
}

/// An address of its own network; the relay's host knows the way back.
fn source(number: u64) -> IpAddr {
    let number = u32::try_from(number).expect("a few hundred");
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 78, 0, 1).to_bits() + number).into()
}

impl Crowd {
    fn new(bed: &Testbed, files: &Files) -> Result<Crowd> {
        let net = "10.78.0.0/16";
        let local = ["route", "add", "local", net, "dev", "lo"];
        bed.client.output("ip", &local)?;
        let back = ["route", "add", net, "via", "10.77.1.2"];
        bed.hub.output("ip", &back)?;
        let of = |name: &str| files.pair.join(name);
        let identity = PairIdentity::load(&of("broker.crt"), &of("broker.key"), &of("ca.crt"))?;
        let roots = Roots::File(bed.path("relay-ca.pem"));
        let options = ClientTlsOptions {
            roots,
            ..ClientTlsOptions::default()
        };
        let known = Known {
            id: RendezvousId(identity.info_hash()),
            ca: identity.ca_der().to_vec(),
            leaf: identity.leaf_der().to_vec(),
            outer: OuterClient::load(Outer::Tls { keep: false }, options)?,
            hands: Semaphore::new(AT_ONCE),
            tally: Tally::default(),
        };
        Ok(Crowd {
            runtime: bed.client.runtime()?,
            known: Arc::new(known),
        })
    }

    fn come(&self, from: IpAddr, manner: Manner) {
        let known = self.known.clone();
        drop(self.runtime.spawn(async move {
            if known.squat(from, manner).await.is_err() {
                known.tally.unmade.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    fn told(&self, of: impl Fn(&Tally) -> &AtomicU64) -> u64 {
        of(&self.known.tally).load(Ordering::Relaxed)
    }

    /// Waits until the crowd has heard this much.
    fn wait_told(&self, what: &str, wanted: u64, of: impl Fn(&Tally) -> u64) -> Result<()> {
        wait_for(what, Duration::from_secs(120), || {
            (of(&self.known.tally) >= wanted).then_some(())
        })
        .with_context(|| format!("{:?}", self.known.tally))
    }
}

impl Known {
    async fn squat(&self, from: IpAddr, manner: Manner) -> Result<()> {
        let hand = self.hands.acquire().await?;
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let tcp = socket.connect((HUB_FOR_CLIENT, RELAY).into()).await?;
        match manner {
            Manner::Open => {
                self.wait(tcp, &Credential::open(self.id), || drop(hand))
                    .await
            }
            Manner::OwnKey => {
                let key = Credential::key(random_bytes())?;
                self.wait(tcp, &key, || drop(hand)).await
            }
            Manner::Silent | Manner::FalseProof => {
                let name = HUB_FOR_CLIENT.to_string();
                let tls = self.outer.tls().context("the outer leg is TLS")?;
                let mut stream = tls.connect(&name, tcp).await?;
                let mut hello = [0; HELLO_BYTES];
                stream.read_exact(&mut hello).await?;
                RelayHello::decode(&hello)?;
                if matches!(manner, Manner::Silent) {
                    drop(hand);
                    self.tally.silent.fetch_add(1, Ordering::Relaxed);
                    // Until it is thrown out.
                    let _ = stream.read(&mut [0; 64]).await;
                    return Ok(());
                }
                stream.write_all(&self.false_preface().encode()).await?;
                let mut reply = [0; REPLY_BYTES];
                stream.read_exact(&mut reply).await?;
                drop(hand);
                if Reply::decode(&reply)?.code == ReplyCode::BadProof {
                    self.tally.bad_proof.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        }
    }

    async fn wait(
        &self,
        tcp: TcpStream,
        credential: &Credential,
        free: impl FnOnce() + Send,
    ) -> Result<()> {
        let waiting = || {
            self.tally.waited.fetch_add(1, Ordering::Relaxed);
            free();
        };
        let name = HUB_FOR_CLIENT.to_string();
        let introduced = introduce(tcp, &self.outer, &name, Role::Broker, credential, waiting);
        match introduced.await {
            Err(IntroduceError::Refused {
                code: ReplyCode::RateLimit,
                ..
            }) => {
                self.tally.full.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(why) => Err(why.into()),
            Ok(_) => anyhow::bail!("a squatter met somebody"),
        }
    }

    /// All that goes over the wire of a real broker's preface, and a signature that is none.
    fn false_preface(&self) -> Preface {
        let mut signature = vec![0x30, 68, 2, 32];
        signature.extend([1; 32]);
        signature.extend([2, 32]);
        signature.extend([1; 32]);
        Preface {
            role: Role::Broker,
            proof: ProofKind::Certificate,
            id: self.id,
            nonce: random_bytes(),
            x: self.ca.clone(),
            leaf: self.leaf.clone(),
            signature,
        }
    }
}

/// Times from a client's dial at the broker to the first byte back, each over a pair of its own.
fn trials(rig: &Paired, count: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for trial in 0..count {
        let start = Instant::now();
        ask(&rig.bed.client, Duration::from_secs(20)).with_context(|| format!("trial {trial}"))?;
        times.push(start.elapsed());
        std::thread::sleep(EVERY.saturating_sub(start.elapsed()));
    }
    times.sort();
    Ok(times)
}

/// Pairs that form while `others` come, evenly; their times, and the most memory of the relay, KiB.
fn beside(rig: &Paired, crowd: &Crowd, others: u64) -> Result<(Vec<Duration>, u64)> {
    let start = Instant::now();
    let span = EVERY * u32::try_from(TRIALS).expect("a hundred") * 9 / 10;
    std::thread::scope(|scope| {
        let coming = scope.spawn(move || {
            for number in 0..others {
                let manner = match number % 2 {
                    0 => Manner::Silent,
                    _ => Manner::FalseProof,
                };
                crowd.come(source(number / 2 % SOURCES), manner);
                let due = span.mul_f64(number as f64 / others as f64);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        });
        let times = trials(rig, TRIALS)?;
        coming.join().expect("no panic");
        Ok((times, memory_kib(rig.relay.pid(), "VmHWM")?))
    })
}

/// Waits until the relay has the bridge's two waiters and no descriptor of anybody else.
fn wait_gone(rig: &Paired, before: usize) -> Result<()> {
    let mut left = (0.0, 0.0, 0);
    wait_for(
        "everything of theirs to go",
        Duration::from_secs(30),
        || {
            left = (
                rig.relay_metric("culvert_pair_waiting").ok()?,
                rig.relay_metric("culvert_pair_introducing").ok()?,
                descriptors(&rig.relay).ok()?,
            );
            (left.0 == 2.0 && left.1 == 0.0 && left.2 <= before + 4).then_some(())
        },
    )
    .with_context(|| format!("waiting, introducing, descriptors {left:?}; {before} before"))?;
    println!("gone: {before} descriptors before, {} after", left.2);
    Ok(())
}

fn at(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent).div_ceil(100) - 1]
}

#[test]
fn ten_thousand_squatters_keep_no_pair_from_forming() -> Result<()> {
    if !ready("ten_thousand_squatters_keep_no_pair_from_forming", &[]) {
        return Ok(());
    }
    let bed = bed()?;
    let to = echo::start(&bed.site)?;
    let rig = Paired::start(bed, to, [&["--open-join"], &[], &["--flow-per-pair"]])?;
    let quiet = trials(&rig, 10)?;
    let before = (rig.relay.resident_kib()?, descriptors(&rig.relay)?);
    let crowd = Crowd::new(&rig.bed, &rig.files)?;
    let start = Instant::now();
    for number in 0..OPEN * SOURCES {
        crowd.come(source(number % SOURCES), Manner::Open);
    }
    let here = |tally: &Tally| {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        of(&tally.waited) + of(&tally.full) + of(&tally.unmade)
    };
    crowd.wait_told("open joins", OPEN * SOURCES, here)?;
    println!("{} open joins in {:?}", OPEN * SOURCES, start.elapsed());
    let others = (OF_SOURCE - OPEN) * SOURCES;
    let (times, peak) = beside(&rig, &crowd, others)?;
    crowd.wait_told("the silent and the false", others, |tally| {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        of(&tally.silent) + of(&tally.bad_proof) + of(&tally.unmade)
    })?;
    println!("squatters: {:?}", crowd.known.tally);
    println!(
        "from dial to first byte, p50 and p99: quiet {:?} {:?}, beside them {:?} {:?}, the slowest {:?}",
        at(&quiet, 50),
        at(&quiet, 99),
        at(&times, 50),
        at(&times, 99),
        at(&times, 100)
    );
    println!(
        "the relay: {} KiB, at most {peak} KiB beside them",
        before.0
    );
    assert!(peak.saturating_sub(before.0) < GROWTH_KIB_MAX, "{peak} KiB");
    assert!(at(&times, 99) < PAIRED_MAX, "{times:?}");
    assert_eq!(crowd.told(|tally| &tally.unmade), 0);
    assert!(crowd.told(|tally| &tally.full) >= OPEN * SOURCES - 4096);
    assert!(crowd.told(|tally| &tally.bad_proof) >= others / 3);

    drop(crowd);
    wait_gone(&rig, before.1)
}

#[test]
fn one_source_that_waits_with_many_does_not_shut_out_another() -> Result<()> {
    if !ready(
        "one_source_that_waits_with_many_does_not_shut_out_another",
        &[],
    ) {
        return Ok(());
    }
    const ROOM: u64 = 409;
    const OF_ONE: u64 = 32;
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let to = echo::start(&bed.site)?;
    let relay = files.relay(&bed, "relay", &["--waiters-max", "409"])?;
    let admin: SocketAddr = (Ipv4Addr::LOCALHOST, 9901).into();
    let waiting = || crate::routed::metric(&bed.hub, admin, "culvert_pair_waiting");
    let crowd = Crowd::new(&bed, &files)?;
    let all = |tally: &Tally| {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        of(&tally.waited) + of(&tally.full) + of(&tally.unmade)
    };
    // One address has its share and no more.
    for _ in 0..40 {
        crowd.come(source(0), Manner::OwnKey);
    }
    crowd.wait_told("one source", 40, all)?;
    let (waited, full) = (crowd.told(|it| &it.waited), crowd.told(|it| &it.full));
    ensure!((waited, full) == (OF_ONE, 8), "{:?}", crowd.known.tally);
    // Thirteen fill the room, with proofs that hold.
    for number in 0..12 * OF_ONE {
        crowd.come(source(1 + number % 12), Manner::OwnKey);
    }
    let full_room = || waiting().ok().filter(|waiting| *waiting == ROOM as f64);
    wait_for("a full room", Duration::from_secs(60), full_room)?;

    let start = Instant::now();
    let mut bridge = files.bridge(&bed, to, &[])?;
    wait_ready(&mut bridge, &bed.site)?;
    let mut broker = files.broker(&bed, &[])?;
    wait_ready(&mut broker, &bed.client)?;
    ask(&bed.client, Duration::from_secs(20))?;
    println!(
        "a pair beside a full room, from nothing in {:?}",
        start.elapsed()
    );
    ensure!(start.elapsed() < Duration::from_secs(5));
    ensure!(waiting()? <= ROOM as f64);
    ensure!(crowd.told(|it| &it.unmade) == 0, "{:?}", crowd.known.tally);
    drop((broker, bridge, relay));
    Ok(())
}

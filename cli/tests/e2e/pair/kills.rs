//! kill -9 of relay, bridge and broker at every stage: nobody is told a clean end, what comes
//! after works, and nothing is left in those that live on.

mod boot;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use culvert_perf::testbed::{SITE, wait_for};

use super::echo::{PAIR_GONE, descriptors};
use super::{BROKER, Paired, bed, wait_ready};
use crate::flood::{end_of, serve};
use crate::hub::ready;
use crate::watched::Watched;

const SERVICE: u16 = 5_000;
/// Its relay is away, or its service, which every stage starts anew.
const BRIDGE_SAYS: &[&str] = &[
    "cannot wait for the other side here",
    "a connection was not served",
];
const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Relay,
    Bridge,
    Broker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// One side waits for the other.
    Waiting,
    /// A pair with a connection on which nothing is said.
    Idle,
    /// In the middle of a flood to the client.
    Bulk,
    /// The client's FIN is through, the flood goes on.
    HalfClosed,
}

const STAGES: [Stage; 4] = [Stage::Waiting, Stage::Idle, Stage::Bulk, Stage::HalfClosed];

fn service() -> SocketAddr {
    (SITE, SERVICE).into()
}

/// The three, how they are started again, and how often that was.
struct Rig {
    pair: Paired,
    for_broker: &'static [&'static str],
    lives: usize,
}

impl Rig {
    fn start(for_broker: &'static [&'static str]) -> Result<Rig> {
        let mut pair = Paired::start(bed()?, service(), [&[], &[], for_broker])?;
        pair.bridge.expect(BRIDGE_SAYS);
        pair.broker.expect(PAIR_GONE);
        Ok(Rig {
            pair,
            for_broker,
            lives: 0,
        })
    }

    fn of(&mut self, victim: Victim) -> &mut Watched {
        match victim {
            Victim::Relay => &mut self.pair.relay,
            Victim::Bridge => &mut self.pair.bridge,
            Victim::Broker => &mut self.pair.broker,
        }
    }

    fn again(&mut self, victim: Victim) -> Result<()> {
        self.lives += 1;
        let Paired { files, bed, .. } = &self.pair;
        match victim {
            Victim::Relay => {
                let name = format!("relay-{}", self.lives);
                self.pair.relay = files.relay(bed, &name, &[])?;
            }
            Victim::Bridge => {
                self.pair.bridge = files.bridge(bed, service(), &[])?;
                self.pair.bridge.expect(BRIDGE_SAYS);
                wait_ready(&mut self.pair.bridge, &self.pair.bed.site)?;
            }
            Victim::Broker => {
                self.pair.broker = files.broker(bed, self.for_broker)?;
                self.pair.broker.expect(PAIR_GONE);
            }
        }
        Ok(())
    }

    /// A flow that works from end to end, after however many that do not.
    fn works(&self) -> Result<()> {
        let listener = self.pair.bed.site.run(|| TcpListener::bind(service()))?;
        let serving = std::thread::spawn(move || -> Result<()> {
            // Clients of an earlier stage may still come.
            for stream in listener.incoming() {
                let (mut stream, mut all) = (stream?, Vec::new());
                let _ = stream.read_to_end(&mut all);
                if all == b"once more" {
                    return Ok(stream.write_all(&all)?);
                }
            }
            Ok(())
        });
        let answer = wait_for("a flow", Duration::from_secs(30), || {
            self.pair.bed.client.run(|| {
                let mut stream = TcpStream::connect(BROKER).ok()?;
                stream.set_read_timeout(Some(SOON)).ok()?;
                stream.write_all(b"once more").ok()?;
                stream.shutdown(std::net::Shutdown::Write).ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                (!answer.is_empty()).then_some(answer)
            })
        })?;
        ensure!(answer == "once more", "{answer}");
        serving.join().expect("the service does not panic")
    }

    /// Waits until the relay has this many waiters and pairs.
    fn wait_counts(&self, what: &str, waiting: f64, pairs: f64) -> Result<()> {
        let mut seen = (-1.0, -1.0);
        let waited = wait_for(what, Duration::from_secs(30), || {
            let count = |of| self.pair.relay_metric(of).unwrap_or(-1.0);
            seen = (count("culvert_pair_waiting"), count("culvert_pair_live"));
            (seen == (waiting, pairs)).then_some(())
        });
        waited.map_err(|why| why.context(format!("waiting and pairs were {seen:?}")))
    }

    /// Everybody has exactly what a rig at rest has.
    fn wait_rest(&self) -> Result<()> {
        let pairs = if self.for_broker.is_empty() { 1.0 } else { 0.0 };
        self.wait_counts("rest", 2.0, pairs)
    }

    fn descriptors(&self) -> Result<[usize; 3]> {
        let Paired {
            relay,
            bridge,
            broker,
            ..
        } = &self.pair;
        Ok([
            descriptors(relay)?,
            descriptors(bridge)?,
            descriptors(broker)?,
        ])
    }

    fn killed_waiting(&mut self, victim: Victim) -> Result<()> {
        // The broker waits for a bridge, with a client that waits for it; or the bridge alone.
        let absent = match victim {
            Victim::Bridge => Victim::Broker,
            _ => Victim::Bridge,
        };
        self.of(absent).terminate()?;
        self.of(absent).wait_end(SOON)?;
        let mut client = None;
        if absent == Victim::Bridge {
            let mut stream = self.pair.bed.client.run(|| TcpStream::connect(BROKER))?;
            stream.write_all(b"hello")?;
            client = Some(stream);
            self.wait_counts("the broker to wait", 1.0, 0.0)?;
        } else {
            self.wait_counts("the bridge to wait", 2.0, 0.0)?;
        }
        self.of(victim).kill_9()?;
        if victim == Victim::Broker {
            let mut client = client.take().expect("made for a broker that waits");
            let ended = end_of(&mut client);
            ensure!(ended.is_err(), "the client of a waiting broker: {ended:?}");
        }
        if victim != Victim::Relay {
            self.wait_counts("the dead waiter to be gone", 0.0, 0.0)?;
        }
        self.again(victim)?;
        self.again(absent)?;
        if let Some(mut client) = client {
            // Its turn comes, and its service is not there.
            let ended = end_of(&mut client).map_err(|why| why.kind());
            ensure!(ended == Err(ErrorKind::ConnectionReset), "{ended:?}");
        }
        Ok(())
    }

    fn killed_at(&mut self, stage: Stage, victim: Victim) -> Result<()> {
        if stage == Stage::Waiting {
            return self.killed_waiting(victim);
        }
        let bed = &self.pair.bed;
        let listener = bed.site.run(|| TcpListener::bind(service()))?;
        let (tell, told) = mpsc::channel();
        let floods = stage != Stage::Idle;
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a listener accepts");
            serve(stream, floods, &tell);
        });
        let mut stream = bed.client.run(|| TcpStream::connect(BROKER))?;
        stream.write_all(b"hello")?;
        wait_for("the flow", SOON, || {
            let flows = bed.site.output("ss", &["-Htn", "state", "established"]);
            flows.ok().filter(|flows| flows.contains(":5000"))
        })?;
        if floods {
            let mut piece = vec![0; 4 << 20];
            stream.read_exact(&mut piece)?;
        }
        if stage == Stage::HalfClosed {
            stream.shutdown(std::net::Shutdown::Write)?;
            let ended = told.recv_timeout(SOON)?;
            ensure!(ended.is_ok(), "FIN comes through: {ended:?}");
        }
        self.of(victim).kill_9()?;
        let start = Instant::now();
        let ended = end_of(&mut stream);
        let seen = ended.as_ref().err().map(std::io::Error::kind);
        println!(
            "{stage:?}, {victim:?} dies: the client hears {seen:?} after {:?}",
            start.elapsed()
        );
        ensure!(
            seen == Some(ErrorKind::ConnectionReset),
            "{stage:?}, {victim:?}: {ended:?}"
        );
        if stage != Stage::HalfClosed {
            let ended = told.recv_timeout(SOON)?;
            ensure!(
                ended.is_err(),
                "{stage:?}, {victim:?}: a clean end for the service"
            );
        }
        drop(stream);
        serving.join().expect("the service does not panic");
        self.again(victim)
    }
}

fn killed_at_every_stage(victim: Victim, for_broker: &'static [&'static str]) -> Result<()> {
    let mut rig = Rig::start(for_broker)?;
    rig.works()?;
    rig.wait_rest()?;
    let before = rig.descriptors()?;
    for stage in STAGES {
        let ended = rig.killed_at(stage, victim).and_then(|()| rig.works());
        // A panic, so that the logs of all three are shown.
        assert!(ended.is_ok(), "{stage:?}, {victim:?}: {ended:?}");
    }
    rig.wait_rest()?;
    let mut after = before;
    wait_for("descriptors as before", SOON, || {
        after = rig.descriptors().ok()?;
        let grown = before.iter().zip(&after).any(|(b, a)| *a > b + 2);
        (!grown).then_some(())
    })
    .map_err(|why| why.context(format!("descriptors {before:?} -> {after:?}")))?;
    println!("descriptors of relay, bridge and broker: {before:?} -> {after:?}");
    Ok(())
}

#[test]
fn the_relay_is_killed_at_every_stage() -> Result<()> {
    if !ready("the_relay_is_killed_at_every_stage", &["ss"]) {
        return Ok(());
    }
    killed_at_every_stage(Victim::Relay, &[])
}

#[test]
fn the_bridge_is_killed_at_every_stage() -> Result<()> {
    if !ready("the_bridge_is_killed_at_every_stage", &["ss"]) {
        return Ok(());
    }
    killed_at_every_stage(Victim::Bridge, &[])
}

#[test]
fn the_broker_is_killed_at_every_stage() -> Result<()> {
    if !ready("the_broker_is_killed_at_every_stage", &["ss"]) {
        return Ok(());
    }
    killed_at_every_stage(Victim::Broker, &[])
}

#[test]
fn each_is_killed_while_a_connection_has_its_own_pair() -> Result<()> {
    if !ready(
        "each_is_killed_while_a_connection_has_its_own_pair",
        &["ss"],
    ) {
        return Ok(());
    }
    for victim in [Victim::Relay, Victim::Bridge, Victim::Broker] {
        killed_at_every_stage(victim, &["--flow-per-pair"])?;
    }
    Ok(())
}

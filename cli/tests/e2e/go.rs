//! hashicorp/yamux itself, in both roles: a connector as those in the field are built (over
//! gorilla/websocket, behind a real data plane), and a client against our side of streams.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_mux::Budget;
use culvert_net::carrier::{CarrierConfig, End, Stream, carrier};
use culvert_perf::testbed::{HUB_FOR_SITE, Layout, Process, Spawn, Testbed, wait_for};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{self, Answer, Live, metric};
use crate::hub::{
    DEV_TOKEN, PUBLIC, START_MAX, dataplane, internal, ready, wait_served, write_clusters,
};
use crate::load::Load;
use crate::upstream::pattern;
use crate::watched::Watched;

const SOON: Duration = Duration::from_secs(10);
/// A body larger than any window the connector opens with.
const BODY_BYTES: u32 = 8 << 20;

/// Builds the peer from the distribution's packages; nothing is fetched.
fn build(bed: &Testbed) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/peer-go/main.go");
    let program = bed.path("peer");
    let built = Command::new("go")
        .args(["build", "-o"])
        .args([&program, &source])
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOFLAGS", "-buildvcs=false")
        .env(
            "GOCACHE",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache"),
        )
        .output()
        .context("running go")?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "go build: {said}");
    Ok(program)
}

struct GoRig {
    peer: Process,
    _dataplane: Watched,
    bed: Testbed,
}

impl GoRig {
    /// A data plane, and a connector of these flags that has its session.
    fn start(flags: &[&str]) -> Result<GoRig> {
        let bed = Testbed::new(Layout::default())?;
        let program = build(&bed)?;
        let clusters = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
        let dataplane = dataplane(&bed, "dataplane", &["--clusters", &clusters])?;
        let url = format!("ws://{HUB_FOR_SITE}:{PUBLIC}/agent?cluster_id=dev&cluster_name=Dev");
        let peer = Spawn::new(program)
            .args(["connect"])
            .args(flags)
            .args([url.as_str(), DEV_TOKEN])
            .start(&bed, &bed.site, "peer")?;
        let rig = GoRig {
            peer,
            _dataplane: dataplane,
            bed,
        };
        wait_for("its session", START_MAX, || {
            (rig.sessions().ok()? == 1.0).then_some(())
        })?;
        Ok(rig)
    }

    fn sessions(&self) -> Result<f64> {
        let metrics = self.get("/metrics")?.text();
        Ok(metric(&metrics, "agents_connected"))
    }

    fn get(&self, target: &str) -> Result<Answer> {
        client::get(&self.bed.client, internal(), target)
    }

    fn post(&self, target: &str, body: &[u8]) -> Result<Answer> {
        client::ask(&self.bed.client, internal(), "POST", target, &[], body)
    }

    /// hashicorp/yamux complains on its log when a peer breaks its rules.
    fn complained(&self) -> Vec<String> {
        let log = self.peer.log();
        let bad = |line: &&str| line.contains("[ERR]") || line.contains("[WARN]");
        log.lines().filter(bad).map(str::to_owned).collect()
    }
}

fn sum(data: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{} ", data.len());
    for byte in culvert_net::crypto::sha256(data) {
        let _ = write!(text, "{byte:02x}");
    }
    text + " <nil>"
}

#[test]
fn a_go_connector_serves_bodies_events_and_a_hundred_at_once() -> Result<()> {
    let name = "a_go_connector_serves_bodies_events_and_a_hundred_at_once";
    if !ready(name, &["go"]) {
        return Ok(());
    }
    // Ten times a second in the place of every 30 s: some hundred pings in this test.
    let rig = GoRig::start(&["-keepalive", "100ms"])?;
    let data = pattern(BODY_BYTES);
    assert_eq!(rig.post("/tunnel/dev/sum", &data)?.text(), sum(&data));
    let answer = rig.get(&format!("/tunnel/dev/pattern/{BODY_BYTES}"))?;
    assert!(answer.whole && answer.body == data, "{}", answer.body.len());
    let answer = rig.post("/tunnel/dev/echo", &data[..1 << 20])?;
    assert!(answer.whole && answer.body == data[..1 << 20]);

    let mut events = Live::get(&rig.bed.client, internal(), "/tunnel/dev/events")?;
    events.read_text("data: 0\n\n", SOON)?;
    let early = String::from_utf8_lossy(&events.received).into_owned();
    assert!(!early.contains("data: 4"), "not event by event: {early}");
    events.read_text("data: 4\n\n", SOON)?;
    events.read_text("\r\n0\r\n\r\n", SOON)?;

    // The client's half-close comes out of the service's stream as EOF; it answers only then.
    let head = "GET /tunnel/dev/raw HTTP/1.1\r\nHost: hub.test\r\nConnection: Upgrade\r\n\
                Upgrade: raw\r\n\r\n";
    let mut raw = Live::open(&rig.bed.client, internal(), head.as_bytes())?;
    raw.read_text("\r\n\r\n", SOON)?;
    assert!(raw.received.starts_with(b"HTTP/1.1 101 "));
    raw.received.clear();
    raw.send(&data[..1 << 20])?;
    raw.half_close()?;
    assert_eq!(raw.read_end(SOON)?, client::End::Clean);
    assert_eq!(
        String::from_utf8_lossy(&raw.received),
        sum(&data[..1 << 20])
    );

    let start = Instant::now();
    std::thread::scope(|scope| {
        let hold = || rig.get("/tunnel/dev/hold/1000");
        let held: Vec<_> = (0..100).map(|_| scope.spawn(hold)).collect();
        for one in held {
            let answer = one.join().expect("no panic")?;
            assert_eq!((answer.status, answer.text().as_str()), (200, "held"));
        }
        anyhow::Ok(())
    })?;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "100 of 1 s each, one after the other: {:?}",
        start.elapsed()
    );
    let load = Load::start(&rig.bed.client, internal(), "dev", 100, Duration::ZERO)?;
    load.wait_answered(5_000, Duration::from_secs(60))?;
    let tally = load.finish();
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    assert_eq!(rig.complained(), Vec::<String>::new());
    assert_eq!(rig.sessions()?, 1.0, "the one session lived through it");
    Ok(())
}

#[test]
fn a_go_connector_drains_by_go_away() -> Result<()> {
    if !ready("a_go_connector_drains_by_go_away", &["go"]) {
        return Ok(());
    }
    let mut rig = GoRig::start(&[])?;
    wait_served(&rig.bed, "dev", SOON)?;
    let client = &rig.bed.client;
    let mut held = Live::get(client, internal(), "/tunnel/dev/hold/2000")?;
    let mut events = Live::get(client, internal(), "/tunnel/dev/events")?;
    events.read_text("data: 0\n\n", SOON)?;
    rig.peer.terminate()?;
    rig.peer.wait_log("draining", SOON)?;
    // No new stream is opened towards it; what is under way ends well.
    wait_for("new requests to be refused", Duration::from_secs(1), || {
        (rig.get("/tunnel/dev/id/x").ok()?.status == 503).then_some(())
    })?;
    events.read_text("data: 4\n\n", SOON)?;
    held.read_text("held", SOON)?;
    let status = rig.peer.wait_end(SOON)?;
    assert!(status.success(), "{}", rig.peer.log());
    assert!(rig.peer.log().contains("drained"), "{}", rig.peer.log());
    assert_eq!(rig.complained(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_go_connector_resets_what_it_cannot_take_and_goes_on() -> Result<()> {
    let name = "a_go_connector_resets_what_it_cannot_take_and_goes_on";
    if !ready(name, &["go"]) {
        return Ok(());
    }
    let mut rig = GoRig::start(&["-backlog", "8", "-paused"])?;
    let answers = std::thread::scope(|scope| {
        let ask = || rig.get("/tunnel/dev/id/x");
        let asked: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
        // Eight wait in its backlog; the others were reset, and are answered without it.
        wait_for("twelve refusals", SOON, || {
            let ended = asked.iter().filter(|one| one.is_finished()).count();
            (ended == 12).then_some(())
        })?;
        let pid = rig.peer.pid().to_string();
        rig.bed.site.output("kill", &["-USR1", &pid])?;
        let join = |one: std::thread::ScopedJoinHandle<'_, _>| one.join().expect("no panic");
        asked.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.status == 200);
    assert_eq!((served.len(), refused.len()), (8, 12));
    for answer in refused {
        assert!((502..=503).contains(&answer.status), "{answer:?}");
        assert!(answer.header("culvert-error").is_some(), "{answer:?}");
    }
    rig.peer.wait_log("serving", SOON)?;
    wait_served(&rig.bed, "dev", SOON)?;
    assert_eq!(rig.sessions()?, 1.0, "the session is the same");
    Ok(())
}

#[test]
fn a_go_client_opens_300_streams_and_moves_bytes_on_100() -> Result<()> {
    let name = "a_go_client_opens_300_streams_and_moves_bytes_on_100";
    if !ready(name, &["go"]) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    let program = build(&bed)?;
    let runtime = bed.hub.runtime()?;
    let listener = runtime.run(async {
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        tokio::net::TcpListener::bind(any).await
    })?;
    let address = listener.local_addr()?.to_string();
    let served = runtime.spawn(async move {
        let (tcp, _) = listener.accept().await?;
        let config = CarrierConfig::radar(End::Agent);
        let (carrier, driver) = carrier(tcp, config, Arc::new(Budget::new(1 << 30)));
        let driver = tokio::spawn(driver);
        let mut streams = Vec::new();
        while let Some(incoming) = carrier.accept().await {
            streams.push(tokio::spawn(answer(incoming.stream)));
        }
        let mut moved = 0;
        for stream in streams {
            moved += stream.await??;
        }
        anyhow::Ok((moved, driver.await?))
    });
    let mut peer = Spawn::new(program)
        .args(["open", address.as_str()])
        .start(&bed, &bed.hub, "peer")?;
    let status = peer.wait_end(Duration::from_secs(60))?;
    let log = peer.log();
    assert!(status.success() && log.contains("peer done"), "{log}");
    // Credit crosses the end of a stream; everything else would be a complaint.
    let crossed = "frame for missing stream: Vsn:0 Type:1 Flags:0 ";
    let bad = |line: &&str| line.contains("[ERR]") || line.contains("[WARN]");
    let all_crossed = log.lines().filter(bad).all(|line| line.contains(crossed));
    assert!(all_crossed, "{log}");
    let (moved, end) = runtime.run(served)??;
    assert_eq!(moved, 100 << 20, "{end:?}");
    Ok(())
}

/// `e`: sends back what comes. `d`: sends a mebibyte, half-closes, reads a mebibyte. Anything else
/// was opened to be silent. The bytes read.
async fn answer(mut stream: Stream) -> Result<usize> {
    let mut verb = [0];
    if stream.read(&mut verb).await? == 0 {
        return Ok(0);
    }
    let wanted = pattern(1 << 20);
    let mut got = vec![0; wanted.len()];
    if verb == *b"d" {
        stream.write_all(&wanted).await?;
        stream.shutdown().await?;
        stream.read_exact(&mut got).await?;
    } else {
        let mut at = 0;
        while at < got.len() {
            let count = stream.read(&mut got[at..]).await?;
            ensure!(count > 0, "an end after {at} bytes");
            stream.write_all(&got[at..at + count]).await?;
            at += count;
        }
    }
    ensure!(got == wanted, "other bytes came");
    ensure!(stream.read(&mut verb).await? == 0, "no end");
    stream.shutdown().await?;
    Ok(got.len())
}

//! 9,000 idle pairs, with hub and agent as a user without any privilege: the limits of pipes and
//! descriptors that hold there, and the memory of a pair.

use culvert_perf::testbed::{Spawn, Testbed};

use super::*;
use crate::hub::{DEV_TOKEN, START_MAX, binary};
use crate::routed::write_routes;
use crate::watched::Watched;

const PAIRS: u64 = 9_000;
const NOBODY: &str = "65534";

/// One of our programs without capabilities, as nobody.
fn unprivileged(program: &str) -> Result<Spawn> {
    let program = binary(program)?.to_string_lossy().into_owned();
    Ok(Spawn::new("setpriv").args([
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
        &program,
    ]))
}

/// Hub and agent as nobody, with one forward.
fn start(bed: Testbed) -> Result<Routed> {
    let clusters = write_routes(&bed, &[tcp("raw", PORT)])?;
    for path in [bed.directory().to_owned(), PathBuf::from(&clusters)] {
        let path = path.to_string_lossy().into_owned();
        bed.hub.output("chown", &[NOBODY, &path])?;
    }
    let spawn = unprivileged("culvert-dataplane")?
        .args(["--addr", "0.0.0.0:8443", "--internal-addr", "0.0.0.0:8080"])
        .args(["--clusters", &clusters, PLAINTEXT]);
    let mut dataplane = Watched::start(spawn, &bed, &bed.hub, "dataplane")?;
    dataplane.wait_port(&bed.client, at_hub(PORT), START_MAX)?;
    let state = bed.path("state").to_string_lossy().into_owned();
    let spawn = unprivileged("culvert-agent")?
        .env("TOKEN", DEV_TOKEN)
        .args([
            "--server",
            "ws://10.77.2.1:8443/agent",
            "--state-dir",
            &state,
        ])
        .args(["--allow-insecure-server", "--plain-target"])
        .args(["--target-kind", "http", "--target", "10.77.2.2:1"])
        .args(["--health-addr", "127.0.0.1:8081"])
        .args(["--service", &format!("raw={SITE}:{SERVICE}"), PLAINTEXT]);
    let mut agent = Watched::start(spawn, &bed, &bed.site, "agent")?;
    agent.wait_log("\"connected\"", START_MAX)?;
    Ok(Routed {
        agent,
        dataplane,
        bed,
    })
}

#[test]
fn nine_thousand_idle_pairs_as_nobody() -> Result<()> {
    if !ready("nine_thousand_idle_pairs_as_nobody", &["setpriv"]) {
        return Ok(());
    }
    let pairs = amount("CULVERT_IDLE_PAIRS", PAIRS)?;
    let rig = start(bed()?)?;
    let listener = rig
        .bed
        .site
        .run(|| std::net::TcpListener::bind(service()))?;
    std::thread::spawn(move || {
        // Held open; each says one byte, so that a pair is known to stand.
        let mut held = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            if stream.write_all(b"!").is_ok() {
                held.push(stream);
            }
        }
    });
    let open = |count: u64| -> Result<Vec<TcpStream>> {
        rig.bed.client.run(|| {
            let one = |number| {
                let mut stream = TcpStream::connect(at_hub(PORT))?;
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                let mut said = [0];
                let read = stream.read_exact(&mut said);
                read.with_context(|| format!("pair {number}"))?;
                Ok(stream)
            };
            (0..count).map(one).collect()
        })
    };
    let first = open(pairs / 3)?;
    let before = (rig.dataplane.resident_kib()?, rig.agent.resident_kib()?);
    let start = Instant::now();
    let rest = open(pairs - pairs / 3)?;
    let took = start.elapsed();
    let after = (rig.dataplane.resident_kib()?, rig.agent.resident_kib()?);
    let more = (pairs - pairs / 3) as f64;
    let each = |before: u64, after: u64| (after as f64 - before as f64) / more;
    let (hub, agent) = (each(before.0, after.0), each(before.1, after.1));
    println!("{pairs} idle pairs as nobody, the last {more} in {took:?}");
    println!("resident for one more pair: hub {hub:.2} KiB, agent {agent:.2} KiB");
    assert_eq!(rig.metric("culvert_engine_pairs")?, pairs as f64);
    // Development build: the figure that counts is perf's.
    assert!(hub < 8.0 && agent < 8.0);
    let pipes = (descriptors(&rig.dataplane)?.1, descriptors(&rig.agent)?.1);
    println!("pipes held by the idle: hub {}, agent {}", pipes.0, pipes.1);
    assert!(pipes.0 <= 16 && pipes.1 <= 16);
    for stream in first.iter().chain(&rest) {
        // The service never ends a connection by itself.
        rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    }
    drop((first, rest));
    wait_idle(&rig)
}

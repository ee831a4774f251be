//! 1,000 downloads whose readers stop: the others still answer and memory has a bound.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::client::{self, metric};
use crate::hub::{Rig, internal, ready};
use culvert_perf::testbed::wait_for;

const STALLED: usize = 1000;
/// 256 KiB of window floor for each stream, and the processes themselves.
const RESIDENT_KIB_MAX: u64 = 420 << 10;

#[test]
fn a_thousand_stalled_downloads_leave_the_others_alone() -> Result<()> {
    if !ready("a_thousand_stalled_downloads_leave_the_others_alone", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let quiet = answer_times(&rig)?;
    let mut readers = Vec::new();
    for _ in 0..STALLED {
        readers.push(rig.bed.client.run(|| -> Result<TcpStream> {
            let mut stream = TcpStream::connect(internal())?;
            stream.write_all(b"GET /tunnel/dev/endless HTTP/1.1\r\nHost: hub.test\r\n\r\n")?;
            Ok(stream)
        })?);
    }
    let mut seen = (0, 0.0);
    wait_for("every download to begin", Duration::from_secs(60), || {
        let metrics = rig.get("/metrics").ok()?.text();
        let open = metric(&metrics, "tunnel_active_connections{cluster=\"dev\"}");
        let heads = rig.upstream.heads();
        let begun = heads
            .iter()
            .filter(|head| head.contains("/endless"))
            .count();
        seen = (begun, open);
        (begun == STALLED && open >= 1000.0).then_some(())
    })
    .with_context(|| format!("at the service, open in the hub: {seen:?}"))?;
    wait_for("memory to settle", Duration::from_secs(20), || {
        let before = rig.dataplane.resident_kib().ok()?;
        std::thread::sleep(Duration::from_millis(500));
        let after = rig.dataplane.resident_kib().ok()?;
        (after < before + before / 100).then_some(())
    })?;
    let busy = answer_times(&rig)?;
    let hub = rig.dataplane.resident_kib()?;
    let agent = rig.agent.resident_kib()?;
    println!("{STALLED} stalled: data plane {hub} KiB, agent {agent} KiB");
    println!("p50/p99 of small requests: quiet {quiet:?}, beside the stalled {busy:?}");
    assert!(hub < RESIDENT_KIB_MAX, "data plane holds {hub} KiB");
    assert!(agent < RESIDENT_KIB_MAX, "agent holds {agent} KiB");
    assert!(busy.1 < Duration::from_secs(2), "p99 {busy:?}");

    drop(readers);
    wait_for("streams to be given up", Duration::from_secs(15), || {
        let metrics = rig.get("/metrics").ok()?.text();
        let open = metric(&metrics, "tunnel_active_connections{cluster=\"dev\"}");
        (open < 10.0).then_some(())
    })
}

fn answer_times(rig: &Rig) -> Result<(Duration, Duration)> {
    let mut times = Vec::new();
    for number in 0..200 {
        let start = Instant::now();
        let answer = client::get(
            &rig.bed.client,
            internal(),
            &format!("/tunnel/dev/id/{number}"),
        )
        .context("a small request")?;
        anyhow::ensure!(answer.body == number.to_string().as_bytes(), "{answer:?}");
        times.push(start.elapsed());
    }
    times.sort();
    Ok((times[100], times[198]))
}

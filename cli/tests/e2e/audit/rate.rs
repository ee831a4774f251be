//! What a durable record costs a write, at 2,000 a second: the same load with the audit
//! off and on. Run it with release binaries on a quiet machine for the figure.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_perf::testbed::{Namespace, wait_for};
use tokio::time::Instant;

use super::writes::{Sender, write};
use super::{events, switch_on};
use crate::control::Fleet;
use crate::hub::{internal, ready};

const CONNECTIONS: u32 = 100;
const EACH: u32 = 100;
/// Between two writes of a connection: 2,000 a second over all of them.
const INTERVAL: Duration = Duration::from_millis(50);

#[test]
#[ignore = "soak"]
fn soak_two_thousand_audited_writes_a_second() -> Result<()> {
    if !ready("soak_two_thousand_audited_writes_a_second", &[]) {
        return Ok(());
    }
    let fleet = Fleet::start()?;
    let [plain, audited] = [false, true].map(|on| {
        if on {
            switch_on(&fleet.control)?;
        }
        let run = u32::from(on);
        // One round to warm it up.
        round(&fleet.bed.client, internal(), 10 + run, EACH / 10)?;
        round(&fleet.bed.client, internal(), run, EACH)
    });
    let (plain, audited) = (plain?, audited?);
    let at = |delays: &[Duration], share: usize| delays[delays.len() * share / 1_000 - 1];
    for (name, delays) in [("audit off", &plain), ("audit on", &audited)] {
        let shares = [500, 900, 990, 999].map(|share| at(delays, share));
        println!("{name}: p50 p90 p99 p99.9 = {shares:?}");
    }
    let added = |share| at(&audited, share).saturating_sub(at(&plain, share));
    println!(
        "added by a durable record at 2,000 writes/s: p50 {:?}, p99 {:?}",
        added(500),
        added(990)
    );
    let wanted = (CONNECTIONS * (EACH + EACH / 10)) as usize;
    wait_for("all rows in the log", Duration::from_secs(60), || {
        let seen = events(&fleet.control).ok()?;
        let whole = seen.values().filter(|rows| rows.len() == 2).count();
        (whole == wanted).then_some(())
    })
}

/// Delays of all writes from the moment that each was due, sorted.
fn round(from: &Namespace, to: SocketAddr, run: u32, each: u32) -> Result<Vec<Duration>> {
    let runtime = from.runtime()?;
    runtime.run(async move {
        let start = Instant::now() + Duration::from_millis(100);
        let tasks = (0..CONNECTIONS).map(|number| {
            let first = start + INTERVAL * number / CONNECTIONS;
            tokio::spawn(connection(to, run, number, each, first))
        });
        let tasks: Vec<_> = tasks.collect();
        let mut delays = Vec::new();
        for task in tasks {
            delays.extend(task.await??);
        }
        delays.sort_unstable();
        Ok(delays)
    })
}

async fn connection(
    to: SocketAddr,
    run: u32,
    connection: u32,
    each: u32,
    first: Instant,
) -> Result<Vec<Duration>> {
    let mut sender: Option<Sender> = None;
    let mut delays = Vec::new();
    for number in 0..each {
        let due = first + INTERVAL * number;
        tokio::time::sleep_until(due).await;
        let id = format!("0190163d-8694-7{run:03x}-8000-{connection:04x}{number:08x}");
        let status = write(&mut sender, to, &id).await?;
        ensure!(status == 200, "{status}");
        delays.push(due.elapsed());
    }
    Ok(delays)
}

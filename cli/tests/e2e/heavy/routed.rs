//! `tcp` routes under load: every byte, slow readers, many idle pairs, churn, kills.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{Process, SITE, wait_for};

use crate::hub::ready;
use crate::pattern::{self, Amount};
use crate::routed::{PLAINTEXT, Routed, at_hub, bed, tcp, wait_listening};

mod churn;
mod denied;
mod idle;
mod integrity;
mod kills;
mod slow;

/// The port of the forward, and of the service.
const PORT: u16 = 15_000;
const SERVICE: u16 = 5_000;

/// An amount that `cargo xtask soak` raises.
pub fn amount(variable: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(otherwise),
    }
}

/// Where the service listens.
fn service() -> SocketAddr {
    (SITE, SERVICE).into()
}

/// A hub and an agent with one forward; `both` are flags of both.
fn rig(both: &[&str]) -> Result<Routed> {
    let service = format!("raw={SITE}:{SERVICE}");
    let agent = [&["--service", service.as_str()], both].concat();
    let rig = Routed::start(bed()?, &[tcp("raw", PORT)], both, &agent)?;
    wait_listening(&rig.bed, PORT)?;
    Ok(rig)
}

/// Open descriptors of a process, and those of them that are pipes.
fn descriptors(process: &Process) -> Result<(usize, usize)> {
    let directory = PathBuf::from(format!("/proc/{}/fd", process.pid()));
    let links = std::fs::read_dir(directory)?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect::<Vec<_>>();
    let pipes = links
        .iter()
        .filter(|link| link.to_string_lossy().starts_with("pipe:"));
    Ok((links.len(), pipes.count()))
}

/// Waits until no pair is left.
fn wait_idle(rig: &Routed) -> Result<()> {
    wait_for("the pairs to end", Duration::from_secs(30), || {
        let pairs = rig.metric("culvert_engine_pairs").ok()?;
        (pairs == 0.0).then_some(())
    })
}

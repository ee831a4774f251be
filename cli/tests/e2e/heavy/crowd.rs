//! 10,000 connections that say nothing: bounded, and legitimate agents still get in.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_perf::testbed::{HUB_FOR_CLIENT, Layout, Testbed};

use crate::client;
use crate::hub::{
    Agent, DEV_TOKEN, PUBLIC, dataplane, internal, ready, wait_served, write_clusters,
};
use crate::upstream::Upstream;

const SILENT: usize = 10_000;
/// What a stranger's silent connection may cost, all of them together.
const GROWTH_KIB_MAX: u64 = 160 << 10;

#[test]
fn ten_thousand_silent_connections_keep_nobody_out() -> Result<()> {
    if !ready("ten_thousand_silent_connections_keep_nobody_out", &[]) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    let upstream = Upstream::start(&bed.site)?;
    let clusters = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
    let dataplane = dataplane(&bed, "dataplane", &["--clusters", &clusters])?;
    let before = dataplane.resident_kib()?;
    let start = Instant::now();
    let mut strangers = Vec::with_capacity(SILENT);
    bed.client.run(|| -> Result<()> {
        for number in 0..SILENT {
            // The address of the hub is spread over ports by the kernel; no byte is ever sent.
            let address = (HUB_FOR_CLIENT, PUBLIC).into();
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))
                .with_context(|| format!("stranger {number}"))?;
            strangers.push(stream);
        }
        Ok(())
    })?;
    println!("{SILENT} silent connections made in {:?}", start.elapsed());
    let _agent = Agent::plain(&bed.site, "agent", DEV_TOKEN, upstream.address).start(&bed)?;
    let up = wait_served(&bed, "dev", Duration::from_secs(10))?;
    let grown = dataplane.resident_kib()?.saturating_sub(before);
    println!("an agent came in beside them and served after {up:?}; the hub grew by {grown} KiB");
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB");

    // Said nothing for the deadline of a first byte and of a head: closed by the hub.
    for (number, stream) in strangers.iter_mut().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(12)))?;
        match stream.read(&mut [0; 512]) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("stranger {number} is still connected: {error}"),
        }
    }
    println!("all of them closed {:?} after the first", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(30));
    assert_eq!(
        client::get(&bed.client, internal(), "/tunnel/dev/id/after")?.text(),
        "after"
    );
    Ok(())
}

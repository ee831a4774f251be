//! etcdctl (gRPC over h2c) through a `tcp` route.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result};
use culvert_perf::testbed::{Namespace, SITE};

use super::{PLAINTEXT, Routed, at_hub, bed, run, tcp, wait_listening};
use crate::hub::ready;

const PORT: u16 = 12_379;

/// etcdctl at `at`: puts and gets under a watch; how many events the watch saw.
pub fn puts_gets_and_watches(from: &Namespace, at: SocketAddr) -> Result<usize> {
    let endpoint = format!("--endpoints=http://{at}");
    let api = "ETCDCTL_API=3";
    let etcdctl = |arguments: &[&str]| {
        let mut all = vec![api, "etcdctl", endpoint.as_str()];
        all.extend_from_slice(arguments);
        run(from, "env", &all)
    };
    let mut watch = from
        .command("env")
        .args([api, "etcdctl", &endpoint, "watch", "city"])
        .stdout(Stdio::piped())
        .spawn()?;
    let events = BufReader::new(watch.stdout.take().context("its output")?);
    // The watch is there when its first event comes; puts repeat until then.
    let (tell, told) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in events.lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::new();
    for number in 0..100 {
        let value = format!("value {number}");
        etcdctl(&["put", "city", &value])?;
        assert!(etcdctl(&["get", "city"])?.contains(&value));
        seen.extend(told.try_iter());
        if seen.iter().filter(|line| *line == "PUT").count() >= 10 {
            break;
        }
    }
    watch.kill()?;
    watch.wait()?;
    let _ = reader.join();
    let puts = seen.iter().filter(|line| *line == "PUT").count();
    assert!(puts >= 10, "{seen:?}");
    Ok(puts)
}

#[test]
fn etcdctl_puts_gets_and_watches() -> Result<()> {
    if !ready("etcdctl_puts_gets_and_watches", &["etcd", "etcdctl"]) {
        return Ok(());
    }
    let bed = bed()?;
    let _etcd = crate::etcd::start(&bed)?;
    let service = format!("etcd={SITE}:2379");
    let rig = Routed::start(
        bed,
        &[tcp("etcd", PORT)],
        &[PLAINTEXT],
        &["--service", &service, PLAINTEXT],
    )?;
    wait_listening(&rig.bed, PORT)?;
    let puts = puts_gets_and_watches(&rig.bed.client, at_hub(PORT))?;
    println!("{puts} events of a watch over the route");
    Ok(())
}

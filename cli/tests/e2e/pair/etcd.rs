//! etcdctl through a pair: gRPC, and a watch that stays open.

use anyhow::Result;
use culvert_perf::testbed::SITE;

use super::{BROKER, Paired, bed, wait_ready};
use crate::hub::{START_MAX, ready};
use crate::routed::etcd::puts_gets_and_watches;

#[test]
fn etcdctl_puts_gets_and_watches() -> Result<()> {
    if !ready("etcdctl_puts_gets_and_watches", &["etcd", "etcdctl"]) {
        return Ok(());
    }
    let bed = bed()?;
    let _etcd = crate::etcd::start(&bed)?;
    let mut rig = Paired::start(bed, (SITE, 2379).into(), [&[], &[], &[]])?;
    let puts = puts_gets_and_watches(&rig.bed.client, BROKER)?;
    println!("{puts} events of a watch over the pair");
    rig.broker.terminate()?;
    rig.broker.wait_end(START_MAX)?;
    rig.broker = rig.files.broker(&rig.bed, &["--flow-per-pair"])?;
    wait_ready(&mut rig.broker, &rig.bed.client)?;
    let puts = puts_gets_and_watches(&rig.bed.client, BROKER)?;
    println!("{puts} events of a watch over its own pair");
    Ok(())
}

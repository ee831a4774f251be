//! ssh through a pair: the server speaks first.

use anyhow::Result;
use culvert_perf::testbed::SITE;

use super::{BROKER, Paired, bed};
use crate::hub::ready;
use crate::routed::ssh::{sshd, there_and_back};

#[test]
fn ssh_where_the_server_speaks_first() -> Result<()> {
    if !ready(
        "ssh_where_the_server_speaks_first",
        &["ssh", "ssh-keygen", "/usr/sbin/sshd"],
    ) {
        return Ok(());
    }
    for broker in [&[][..], &["--flow-per-pair"]] {
        let bed = bed()?;
        let (_sshd, key) = sshd(&bed)?;
        let rig = Paired::start(bed, (SITE, 22).into(), [&[], &[], broker])?;
        let took = there_and_back(&rig.bed.client, BROKER, &key)?;
        println!("{broker:?}: 8 MiB both ways in {took:?}");
    }
    Ok(())
}

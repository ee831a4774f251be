//! PostgreSQL with TLS off: the pair is the protection.

use anyhow::Result;
use culvert_perf::testbed::SITE;

use super::{BROKER, Paired, bed};
use crate::hub::ready;
use crate::routed::postgres::{Postgres, query_and_load};

const PROGRAMS: &[&str] = &["psql", "pgbench", "setpriv"];

/// psql and pgbench through a pair; what the relay counted.
fn through(broker: &[&str]) -> Result<Paired> {
    let bed = bed()?;
    let _postgres = Postgres::start(&bed)?;
    let rig = Paired::start(bed, (SITE, 5432).into(), [&[], &[], broker])?;
    println!("{}", query_and_load(&rig.bed.client, BROKER, "disable")?);
    Ok(rig)
}

#[test]
fn psql_and_pgbench_over_the_one_pair() -> Result<()> {
    if !ready("psql_and_pgbench_over_the_one_pair", PROGRAMS) {
        return Ok(());
    }
    let rig = through(&[])?;
    let matched = rig.relay_metric("culvert_pair_matches_total")?;
    println!("{matched} pairs were matched");
    assert_eq!(matched, 1.0);
    Ok(())
}

#[test]
fn psql_and_pgbench_with_a_pair_for_each_connection() -> Result<()> {
    if !ready("psql_and_pgbench_with_a_pair_for_each_connection", PROGRAMS) {
        return Ok(());
    }
    let rig = through(&["--flow-per-pair"])?;
    let matched = rig.relay_metric("culvert_pair_matches_total")?;
    println!("{matched} pairs were matched");
    // Two of psql, one that fills the tables, sixteen under load.
    assert!(matched >= 19.0, "{matched}");
    Ok(())
}

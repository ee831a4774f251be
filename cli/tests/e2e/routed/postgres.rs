//! PostgreSQL: psql and pgbench through a `tcp` route, with and without TLS of their own.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use culvert_perf::testbed::{Namespace, Process, SITE, Spawn, Testbed};

use super::{PLAINTEXT, Routed, at_hub, bed, run, tcp, wait_listening};
use crate::hub::{START_MAX, ready};
use crate::mtls::Authority;

/// The administrator, in the system and in the database.
pub const USER: &str = "postgres";
const PORT: u16 = 15_432;

/// A server on the private site, with its files in a directory of its own.
pub struct Postgres {
    _process: Process,
    _files: tempfile::TempDir,
}

impl Postgres {
    pub fn start(bed: &Testbed) -> Result<Postgres> {
        let files = tempfile::Builder::new().prefix("culvert-pg-").tempdir()?;
        let home = files.path().to_string_lossy().into_owned();
        let authority = Authority::new()?;
        let (cert, key) = authority.issue(&["pg".to_owned()], false, &files.path().join("pg"))?;
        run(&bed.site, "chown", &["-R", USER, &home])?;
        let data = format!("{home}/data");
        let initdb = tool("initdb")?;
        let init = ["-D", &data, "-A", "trust", "-U", USER, "--no-sync"];
        run(&bed.site, "setpriv", &as_user(&initdb, &init))?;
        std::fs::write(
            files.path().join("data/pg_hba.conf"),
            "host all all 0.0.0.0/0 trust\n",
        )?;
        let listen = format!("listen_addresses={SITE},127.0.0.1");
        let (cert, key) = (
            format!("ssl_cert_file={cert}"),
            format!("ssl_key_file={key}"),
        );
        let settings = [
            &listen,
            "unix_socket_directories=",
            "fsync=off",
            "ssl=on",
            &cert,
            &key,
        ];
        let mut arguments = vec!["-D", data.as_str()];
        arguments.extend(settings.into_iter().flat_map(|setting| ["-c", setting]));
        let server = tool("postgres")?;
        let mut process = Spawn::new("setpriv")
            .args(as_user(&server, &arguments))
            .start(bed, &bed.site, "postgres")?;
        process.wait_port(&bed.site, (SITE, 5432).into(), START_MAX)?;
        Ok(Postgres {
            _process: process,
            _files: files,
        })
    }
}

/// A program of the newest installed version.
fn tool(name: &str) -> Result<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")?;
    let paths = versions.filter_map(|version| Some(version.ok()?.path().join("bin").join(name)));
    let newest: Option<PathBuf> = paths.filter(|path| path.exists()).max();
    let newest = newest.with_context(|| format!("{name} of PostgreSQL"))?;
    Ok(newest.to_string_lossy().into_owned())
}

fn as_user<'a>(program: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
    let switch = ["--reuid", USER, "--regid", USER, "--init-groups", program];
    switch.iter().chain(arguments).copied().collect()
}

/// psql and pgbench at `at`, with or without TLS of their own; what pgbench reported.
pub fn query_and_load(from: &Namespace, at: SocketAddr, sslmode: &str) -> Result<String> {
    let (host, port) = (at.ip(), at.port());
    let conninfo = format!("host={host} port={port} user={USER} dbname={USER} sslmode={sslmode}");
    let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let sealed = if sslmode == "disable" { "f" } else { "t" };
    let answer = run(from, "psql", &[&conninfo, "-Atc", query])?;
    assert_eq!(answer.trim(), sealed, "sslmode={sslmode}");
    // 8 MB up and down in one value each, compared by the server and here.
    let big = "select md5(repeat('culvert', 1200000)), repeat('culvert', 1200000)";
    let answer = run(from, "psql", &[&conninfo, "-Atc", big])?;
    let (_, text) = answer.trim_end().split_once('|').context("two columns")?;
    assert!(text.len() == 8_400_000 && text.as_bytes().chunks(7).all(|it| it == b"culvert"));
    run(from, "pgbench", &["-i", "-q", "-s", "1", &conninfo])?;
    let load = ["-c", "16", "-j", "2", "-t", "40", &conninfo];
    let report = run(from, "pgbench", &load)?;
    for said in [
        "number of transactions actually processed: 640/640",
        "number of failed transactions: 0",
    ] {
        assert!(report.contains(said), "{report}");
    }
    Ok(format!("sslmode={sslmode}: {}", report.replace('\n', "; ")))
}

/// The rig and what pgbench reported, without TLS and with it.
fn psql_and_pgbench(hub: &[&str], agent: &[&str]) -> Result<(Routed, Vec<String>)> {
    let bed = bed()?;
    let service = format!("pg={SITE}:5432");
    let mut services = vec!["--service", service.as_str()];
    services.extend_from_slice(agent);
    let _postgres = Postgres::start(&bed)?;
    let rig = Routed::start(bed, &[tcp("pg", PORT)], hub, &services)?;
    wait_listening(&rig.bed, PORT)?;
    let each = ["disable", "require"];
    let reports = each.map(|sslmode| query_and_load(&rig.bed.client, at_hub(PORT), sslmode));
    let reports = reports.into_iter().collect::<Result<_>>()?;
    Ok((rig, reports))
}

#[test]
fn psql_and_pgbench_over_spliced_channels() -> Result<()> {
    if !ready(
        "psql_and_pgbench_over_spliced_channels",
        &["psql", "pgbench", "setpriv"],
    ) {
        return Ok(());
    }
    let (rig, reports) = psql_and_pgbench(&[PLAINTEXT], &[PLAINTEXT])?;
    println!("{}", reports.join("\n"));
    let spliced = rig.metric("culvert_flows_total{datapath=\"splice\"")?;
    println!("{spliced} flows on spliced channels");
    assert!(spliced >= 16.0);
    Ok(())
}

#[test]
fn psql_and_pgbench_over_the_carrier() -> Result<()> {
    if !ready(
        "psql_and_pgbench_over_the_carrier",
        &["psql", "pgbench", "setpriv"],
    ) {
        return Ok(());
    }
    // A hub without TLS has no form 1: the flows stay on streams of the carrier.
    let (rig, reports) = psql_and_pgbench(&[], &[])?;
    println!("{}", reports.join("\n"));
    assert_eq!(rig.metric("culvert_flows_total{datapath=\"splice\"")?, 0.0);
    assert!(rig.metric("culvert_flows_total{datapath=\"stream\"")? >= 16.0);
    Ok(())
}

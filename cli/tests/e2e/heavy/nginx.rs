//! nginx as the service: big bodies byte for byte, many small requests none lost or mixed up.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_perf::testbed::{Layout, Namespace, Process, SITE, Spawn, Testbed};

use crate::hub::{Agent, DEV_TOKEN, START_MAX, dataplane, internal, ready, write_clusters};
use crate::load::Load;
use crate::watched::Watched;

/// Size of the big bodies.
const BIG_BYTES: u64 = 1 << 30;

struct Served {
    agent: Watched,
    dataplane: Watched,
    _nginx: Process,
    bed: Testbed,
}

fn serve() -> Result<Served> {
    let bed = Testbed::new(Layout::default())?;
    let root = bed.path("www");
    std::fs::create_dir(&root)?;
    let config = bed.path("nginx.conf");
    let base = bed.directory().display();
    std::fs::write(
        &config,
        format!(
            "daemon off; user root; worker_processes 1; pid {base}/nginx.pid;
             events {{ worker_connections 4096; }}
             http {{
               access_log off; client_max_body_size 0; sendfile on; keepalive_requests 1000000;
               client_body_temp_path {base}/body; proxy_temp_path {base}/t1;
               fastcgi_temp_path {base}/t2; uwsgi_temp_path {base}/t3; scgi_temp_path {base}/t4;
               server {{
                 listen {SITE}:8000; root {base}/www;
                 location ~ ^/id/(?<id>.+)$ {{ return 200 $id; }}
                 location /up/ {{ dav_methods PUT; create_full_put_path on; }}
               }} }}"
        ),
    )?;
    let mut nginx = Spawn::new("nginx")
        .args(["-e", "stderr", "-c", &config.to_string_lossy()])
        .start(&bed, &bed.site, "nginx")?;
    nginx.wait_port(&bed.site, (SITE, 8000).into(), START_MAX)?;
    let clusters = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
    let dataplane = dataplane(&bed, "dataplane", &["--clusters", &clusters])?;
    let agent = Agent::plain(&bed.site, "agent", DEV_TOKEN, (SITE, 8000).into()).start(&bed)?;
    Ok(Served {
        agent,
        dataplane,
        _nginx: nginx,
        bed,
    })
}

/// A file of random bytes, and its SHA-256.
fn random_file(at: &Namespace, path: &Path) -> Result<String> {
    at.output(
        "openssl",
        &[
            "rand",
            "-out",
            &path.to_string_lossy(),
            &BIG_BYTES.to_string(),
        ],
    )?;
    sha256(at, &path.to_string_lossy())
}

fn sha256(at: &Namespace, path: &str) -> Result<String> {
    let line = at.output("sha256sum", &[path])?;
    Ok(line.split(' ').next().context("a digest")?.to_owned())
}

#[test]
fn a_gibibyte_down_and_a_gibibyte_up_are_equal() -> Result<()> {
    let programs = ["nginx", "curl", "openssl", "sha256sum"];
    if !ready("a_gibibyte_down_and_a_gibibyte_up_are_equal", &programs) {
        return Ok(());
    }
    let served = serve()?;
    let client = &served.bed.client;
    let file = served.bed.path("www/big");
    let digest = random_file(client, &file)?;

    let url = format!("http://{}/tunnel/dev", internal());
    let start = Instant::now();
    let down = client.output("sh", &["-c", &format!("curl -sSf {url}/big | sha256sum")])?;
    println!("download: {:?} for 1 GiB", start.elapsed());
    assert!(
        down.starts_with(&digest),
        "download: {down} is not {digest}"
    );

    let start = Instant::now();
    client.output(
        "curl",
        &[
            "-sSf",
            "-T",
            &file.to_string_lossy(),
            &format!("{url}/up/big"),
        ],
    )?;
    println!("upload: {:?} for 1 GiB", start.elapsed());
    let up = sha256(client, &served.bed.path("www/up/big").to_string_lossy())?;
    assert_eq!(up, digest, "upload");
    for (name, process) in [("data plane", &served.dataplane), ("agent", &served.agent)] {
        println!("{name}: resident {} KiB", process.resident_kib()?);
        assert!(
            process.resident_kib()? < 200 << 10,
            "{name} collects bodies"
        );
    }
    Ok(())
}

#[test]
fn ten_thousand_small_requests_on_64_connections() -> Result<()> {
    if !ready("ten_thousand_small_requests_on_64_connections", &["nginx"]) {
        return Ok(());
    }
    let served = serve()?;
    let start = Instant::now();
    let load = Load::start(&served.bed.client, internal(), "dev", 64, Duration::ZERO)?;
    load.wait_answered(10_000, Duration::from_secs(60))?;
    let tally = load.finish();
    println!(
        "{} requests in {:?}, longest {:?}",
        tally.answered,
        start.elapsed(),
        tally.longest_gap
    );
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    assert!(tally.answered >= 10_000);
    Ok(())
}

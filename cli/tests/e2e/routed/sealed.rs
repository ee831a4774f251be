//! nginx with TLS of its own behind a `sealed` route: curl sees nginx's certificate, and the hub
//! holds neither its key nor a byte of plaintext.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use culvert_perf::testbed::{HUB_FOR_CLIENT, HUB_FOR_SITE, SITE, Spawn, Testbed};

use super::{Routed, agent, run, sealed, sealed_at, write_routes};
use crate::hub::{PUBLIC, START_MAX, dataplane, ready};
use crate::mtls::Authority;

/// Stands in the answers of the service, and nowhere else.
const CANARY: &str = "only the two ends may read this: 6f1d0c33";
const BIG_BYTES: u64 = 64 << 20;

/// nginx with TLS on the private site; its key's secret bytes.
fn nginx(
    bed: &Testbed,
    authority: &Authority,
) -> Result<(culvert_perf::testbed::Process, Vec<u8>)> {
    let names = ["web.example.com".to_owned()];
    let (cert, key) = authority.issue(&names, false, &bed.path("web"))?;
    let files = bed.path("www");
    std::fs::create_dir_all(&files)?;
    std::fs::write(files.join("canary"), CANARY.repeat(1_000))?;
    File::create(files.join("big"))?.set_len(BIG_BYTES)?;
    let config = format!(
        "daemon off; worker_processes 1; pid {}; error_log stderr;\n\
         user root; events {{}}\n\
         http {{ access_log off; server {{ listen {SITE}:443 ssl; root {};\n\
         ssl_certificate {cert}; ssl_certificate_key {key}; }} }}\n",
        bed.path("nginx.pid").display(),
        files.display(),
    );
    std::fs::write(bed.path("nginx.conf"), config)?;
    let mut process = Spawn::new("nginx")
        .args(["-c", &bed.path("nginx.conf").to_string_lossy()])
        .start(bed, &bed.site, "nginx")?;
    process.wait_port(&bed.site, (SITE, 443).into(), START_MAX)?;
    let key = openssl_secret(bed, &key)?;
    Ok((process, key))
}

/// The secret number of an EC key, as openssl prints it.
fn openssl_secret(bed: &Testbed, key: &str) -> Result<Vec<u8>> {
    let text = run(
        &bed.site,
        "openssl",
        &["pkey", "-in", key, "-noout", "-text"],
    )?;
    let after = text.split("priv:").nth(1).context("a private part")?;
    let digits = after.split("pub:").next().context("a public part")?;
    let bytes = digits.split([':', '\n', ' ']).filter(|it| it.len() == 2);
    let secret: Vec<u8> = bytes
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    // A leading zero is printed for a high bit.
    let start = secret.len().checked_sub(32).context("32 bytes")?;
    Ok(secret[start..].to_vec())
}

/// Shows `visit` the writable memory of a process, region by region, until it says stop.
pub fn each_region(pid: u32, mut visit: impl FnMut(&[u8]) -> bool) -> Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut buffer = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').context("a range")?;
        let (start, end) = range.split_once('-').context("a range")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        buffer.resize(usize::try_from(end - start)?, 0);
        if memory.read_exact_at(&mut buffer, start).is_ok() && visit(&buffer) {
            break;
        }
    }
    Ok(())
}

/// Whether `needle`, forwards or backwards, stands in the writable memory of a process.
fn memory_holds(pid: u32, needle: &[u8]) -> Result<bool> {
    let backwards: Vec<u8> = needle.iter().rev().copied().collect();
    let mut found = false;
    each_region(pid, |buffer| {
        let holds = |needle: &[u8]| {
            let first = needle[0];
            let mut starts = buffer.windows(needle.len());
            starts.any(|window| window[0] == first && window == needle)
        };
        found = holds(needle) || holds(&backwards);
        found
    })?;
    Ok(found)
}

#[test]
fn nginx_with_tls_by_curl_and_the_hub_knows_nothing() -> Result<()> {
    if !ready(
        "nginx_with_tls_by_curl_and_the_hub_knows_nothing",
        &["nginx", "curl", "openssl"],
    ) {
        return Ok(());
    }
    let bed = super::bed()?;
    let (web, hub_ca) = (Authority::new()?, Authority::new()?);
    let (nginx, secret) = nginx(&bed, &web)?;
    let web_ca = web.write(&bed.path("web-ca.pem"))?;
    let ca = hub_ca.write(&bed.path("hub-ca.pem"))?;
    let names = [HUB_FOR_SITE, HUB_FOR_CLIENT].map(|address| address.to_string());
    let (cert, key) = hub_ca.issue(&names, false, &bed.path("hub"))?;
    let routes = [
        sealed("web", "web.example.com"),
        sealed_at("web", "*.wild.example.com", 9_443),
    ];
    let clusters = write_routes(&bed, &routes)?;
    let tls = [
        "--clusters",
        &clusters,
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let hub = dataplane(
        &bed,
        "dataplane",
        &[&tls[..], &["--internal-plain"]].concat(),
    )?;
    let service = format!("web={SITE}:443");
    let mut agent = agent(
        &bed.site,
        &["--sealed-service", &service, "--server-ca-cert", &ca],
    );
    agent.server = format!("wss://{HUB_FOR_SITE}:{PUBLIC}/agent");
    let agent = agent.start(&bed)?;
    let rig = Routed {
        agent,
        dataplane: hub,
        bed,
    };

    let resolve = format!("web.example.com:{PUBLIC}:{HUB_FOR_CLIENT}");
    let url = |file: &str| format!("https://web.example.com:{PUBLIC}/{file}");
    let curl = |file: &str| {
        let call = [
            "-sS",
            "--fail",
            "--http1.1",
            "--resolve",
            &resolve,
            "--cacert",
            &web_ca,
        ];
        run(
            &rig.bed.client,
            "curl",
            &[&call[..], &[&url(file)]].concat(),
        )
    };
    for _ in 0..20 {
        assert_eq!(curl("canary")?, CANARY.repeat(1_000));
    }
    let big = [
        "-sS",
        "--fail",
        "--resolve",
        &resolve,
        "--cacert",
        &web_ca,
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
    ];
    let got = run(
        &rig.bed.client,
        "curl",
        &[&big[..], &[&url("big")]].concat(),
    )?;
    assert_eq!(got, BIG_BYTES.to_string());
    let spliced = rig.metric("culvert_engine_spliced_bytes_total")?;
    println!("{spliced} bytes were spliced at the hub");
    assert!(spliced > 0.5 * BIG_BYTES as f64);

    // The control of the search: the service holds both.
    let workers = run(&rig.bed.site, "pgrep", &["-P", &nginx.pid().to_string()])?;
    let worker: u32 = workers.trim().parse()?;
    assert!(memory_holds(worker, &secret)?, "the search finds the key");
    let hub = rig.dataplane.pid();
    assert!(!memory_holds(hub, &secret)?, "the hub holds the key");
    assert!(
        !memory_holds(hub, CANARY.as_bytes())?,
        "the hub holds plaintext"
    );
    let agent = rig.agent.pid();
    assert!(!memory_holds(agent, &secret)? && !memory_holds(agent, CANARY.as_bytes())?);

    // Any other name on this port is the hub's own TLS, and it serves its probe.
    let own = format!("https://{HUB_FOR_CLIENT}:{PUBLIC}/healthz");
    assert_eq!(
        run(&rig.bed.client, "curl", &["-sS", "--cacert", &ca, &own])?.trim(),
        "ok"
    );
    Ok(())
}

//! nginx by curl through a pair, plain HTTP: small pages, and a file larger than every window.

use std::fs::File;

use anyhow::Result;
use culvert_perf::testbed::{Process, SITE, Spawn, Testbed};

use super::{BROKER, Paired, bed};
use crate::hub::{START_MAX, ready};
use crate::routed::run;

const BIG_BYTES: u64 = 64 << 20;
const PAGE: &str = "a page behind the pair\n";

fn nginx(bed: &Testbed) -> Result<Process> {
    let files = bed.path("www");
    std::fs::create_dir_all(&files)?;
    std::fs::write(files.join("page"), PAGE)?;
    File::create(files.join("big"))?.set_len(BIG_BYTES)?;
    let config = format!(
        "daemon off; worker_processes 1; pid {}; error_log stderr; user root; events {{}}\n\
         http {{ access_log off; server {{ listen {SITE}:80; root {}; }} }}\n",
        bed.path("nginx.pid").display(),
        files.display(),
    );
    std::fs::write(bed.path("nginx.conf"), config)?;
    let mut process = Spawn::new("nginx")
        .args(["-c", &bed.path("nginx.conf").to_string_lossy()])
        .start(bed, &bed.site, "nginx")?;
    process.wait_port(&bed.site, (SITE, 80).into(), START_MAX)?;
    Ok(process)
}

#[test]
fn nginx_by_curl() -> Result<()> {
    if !ready("nginx_by_curl", &["nginx", "curl"]) {
        return Ok(());
    }
    for broker in [&[][..], &["--flow-per-pair"]] {
        let bed = bed()?;
        let _nginx = nginx(&bed)?;
        let rig = Paired::start(bed, (SITE, 80).into(), [&[], &[], broker])?;
        let curl = |arguments: &[&str], file: &str| {
            let url = format!("http://{BROKER}/{file}");
            let all = [&["-sS", "--fail"], arguments, &[url.as_str()]].concat();
            run(&rig.bed.client, "curl", &all)
        };
        for _ in 0..10 {
            assert_eq!(curl(&[], "page")?, PAGE);
        }
        let size = ["-o", "/dev/null", "-w", "%{size_download}"];
        assert_eq!(curl(&size, "big")?, BIG_BYTES.to_string());
        let spliced = rig.spliced_of(BIG_BYTES)?;
        println!("{broker:?}: {spliced} bytes were spliced at the relay");
        assert!(spliced > 0.5 * BIG_BYTES as f64, "{spliced}");
    }
    Ok(())
}

//! ssh through a `tcp` route: the server speaks first.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_perf::testbed::{Namespace, SITE, Spawn, Testbed};

use super::{PLAINTEXT, Routed, at_hub, bed, run, tcp, wait_listening};
use crate::hub::{START_MAX, ready};

const PORT: u16 = 12_222;

/// A server with keys and configuration of its own; the path of the client's key.
pub fn sshd(bed: &Testbed) -> Result<(culvert_perf::testbed::Process, String)> {
    let path = |name: &str| bed.path(name).to_string_lossy().into_owned();
    for key in ["host", "user"] {
        let arguments = ["-q", "-t", "ed25519", "-N", "", "-f", &path(key)];
        run(&bed.site, "ssh-keygen", &arguments)?;
    }
    std::fs::create_dir_all("/run/sshd")?;
    let config = format!(
        "Port 22\nListenAddress {SITE}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
         UsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n",
        path("host"),
        path("user.pub"),
    );
    std::fs::write(bed.path("sshd.conf"), config)?;
    let mut process = Spawn::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f", &path("sshd.conf")])
        .start(bed, &bed.site, "sshd")?;
    process.wait_port(&bed.site, (SITE, 22).into(), START_MAX)?;
    Ok((process, path("user")))
}

/// 8 MiB through `cat` at `at` and back, while the other end of the pipe is still written.
pub fn there_and_back(from: &Namespace, at: SocketAddr, key: &str) -> Result<Duration> {
    let sent: Vec<u8> = (0..8_u32 << 20)
        .map(|at| (at ^ (at >> 11)).to_le_bytes()[0])
        .collect();
    let start = Instant::now();
    let mut ssh = from
        .command("ssh")
        .args(["-F", "none", "-p", &at.port().to_string(), "-i", key])
        .args(["-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
        .args([&format!("root@{}", at.ip()), "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = ssh.stdin.take().context("its input")?;
    let copy = sent.clone();
    let writer = std::thread::spawn(move || input.write_all(&copy));
    let output = ssh.wait_with_output()?;
    writer.join().expect("the writer does not panic")?;
    assert!(output.status.success(), "{}", output.status);
    assert!(output.stdout == sent, "{} bytes came", output.stdout.len());
    let took = start.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    Ok(took)
}

#[test]
fn ssh_where_the_server_speaks_first() -> Result<()> {
    if !ready(
        "ssh_where_the_server_speaks_first",
        &["ssh", "ssh-keygen", "/usr/sbin/sshd"],
    ) {
        return Ok(());
    }
    for plaintext in [true, false] {
        let bed = bed()?;
        let (_sshd, key) = sshd(&bed)?;
        let service = format!("ssh={SITE}:22");
        let (hub, agent): (&[&str], &[&str]) = match plaintext {
            true => (&[PLAINTEXT], &["--service", &service, PLAINTEXT]),
            false => (&[], &["--service", &service]),
        };
        let rig = Routed::start(bed, &[tcp("ssh", PORT)], hub, agent)?;
        wait_listening(&rig.bed, PORT)?;
        let took = there_and_back(&rig.bed.client, at_hub(PORT), &key)?;
        println!("plaintext channels {plaintext}: 8 MiB both ways in {took:?}");
    }
    Ok(())
}

//! OpenSSH's remote forwarding: a server of our own with throw-away keys.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{ENTRY_PORT, Host, Lab, Running, START_MAX, tunnel};
use crate::testbed::{Spawn, wait_for};

const PORT: u16 = 9130;
/// Hardware has it, and all of the encrypted class can use it.
const CIPHER: &str = "aes128-gcm@openssh.com";

pub(super) fn start(lab: &Lab) -> Result<Running> {
    for name in ["ssh_host", "ssh_user"] {
        make_key(lab, name)?;
    }
    std::fs::copy(lab.path("ssh_user.pub"), lab.path("ssh_authorized"))?;
    // The directory that sshd's unprivileged child is locked into.
    std::fs::create_dir_all("/run/sshd").context("making /run/sshd")?;
    let config = lab.path("sshd_config");
    std::fs::write(
        &config,
        format!(
            "Port {PORT}
ListenAddress 0.0.0.0
HostKey {host}
PidFile none
AuthorizedKeysFile {authorized}
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
GatewayPorts clientspecified
Ciphers {CIPHER}
Compression no
UseDNS no
",
            host = lab.text("ssh_host"),
            authorized = lab.text("ssh_authorized"),
        ),
    )?;
    let server = Spawn::new("/usr/sbin/sshd").args(["-D", "-e", "-f", &config.to_string_lossy()]);
    tunnel::start(lab, server, || {
        let hub = lab.address(Host::Hub, Host::Site);
        wait_for("sshd", START_MAX, || {
            lab.at(Host::Site).probe((hub, PORT).into()).then_some(())
        })?;
        let forward = format!("0.0.0.0:{ENTRY_PORT}:{}", lab.service(Host::Site));
        Ok(Spawn::new("ssh")
            .args(["-N", "-T", "-F", "/dev/null", "-R", &forward, "-c", CIPHER])
            .args(["-p", &PORT.to_string(), "-i", &lab.text("ssh_user")])
            .args(["-o", "Compression=no", "-o", "ExitOnForwardFailure=yes"])
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "BatchMode=yes", &format!("root@{hub}")]))
    })
}

fn make_key(lab: &Lab, name: &str) -> Result<()> {
    if lab.path(name).exists() {
        return Ok(());
    }
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f", &lab.text(name)])
        .output()
        .context("running ssh-keygen")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ssh-keygen: {said}");
    Ok(())
}

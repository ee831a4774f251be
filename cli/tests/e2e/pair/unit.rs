//! The unit that `culvert pair install --join` prints, run as systemd runs it: the word comes as a
//! credential, and nothing else is said.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{HUB_FOR_CLIENT, HUB_FOR_SITE, Spawn};

use super::echo::{self, ask};
use super::{Files, RELAY, bed, wait_ready};
use crate::hub::{START_MAX, binary, ready};
use crate::watched::Watched;

/// Where units look for programs, and where this one's state is.
const BINARIES: &str = "/usr/local/bin";
const STATE: &str = "/var/lib/culvert-broker";

/// The value of a line of the unit.
fn value<'a>(unit: &'a str, key: &str) -> Result<&'a str> {
    let line = unit.lines().find_map(|line| line.strip_prefix(key));
    line.with_context(|| format!("{key} in {unit}"))
}

#[test]
fn the_unit_with_a_word_starts_a_broker_that_gets_its_certificate() -> Result<()> {
    let name = "the_unit_with_a_word_starts_a_broker_that_gets_its_certificate";
    if !ready(name, &["sh"]) {
        return Ok(());
    }
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let to: SocketAddr = echo::start(&bed.site)?;
    let _relay = files.relay(&bed, "relay", &[])?;
    let culvert = binary("culvert")?.to_string_lossy().into_owned();
    let store = format!("file:{}", bed.path("store").display());
    let relay = format!("{HUB_FOR_SITE}:{RELAY}");
    let init = ["pair", "init", "--name", "unit", "--relay", &relay];
    let word = bed
        .site
        .output(&culvert, &[&init[..], &["--store", &store]].concat())?;
    let bridge = Spawn::new(binary("culvert-agent")?)
        .args(["bridge", "--to", &to.to_string(), "--relay", &relay])
        .args(["--relay-ca", &files.relay_ca, "--store", &store]);
    let mut bridge = Watched::start(bridge, &bed, &bed.site, "bridge")?;
    wait_ready(&mut bridge, &bed.site)?;

    let relay = format!("{HUB_FOR_CLIENT}:{RELAY}");
    let install = ["pair", "install", "--role", "broker", "--join"];
    let script = bed
        .client
        .output(&culvert, &[&install[..], &["--relay", &relay]].concat())?;
    // What LoadCredential does: the file of the operator, readable for this program alone.
    let loaded = value(&script, "LoadCredential=")?;
    let (credential, file) = loaded.split_once(':').context("name and file")?;
    ensure!(script.contains(&format!("put the word cvr_... into {file}, mode 0600")));
    let credentials = bed.path("credentials");
    std::fs::create_dir(&credentials)?;
    let path = credentials.join(credential);
    std::fs::write(&path, word)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400))?;

    let programs = binary("culvert-agent")?;
    let programs = programs.parent().context("a directory")?.to_string_lossy();
    let command = value(&script, "ExecStart=")?
        .replace(BINARIES, &programs)
        .replace(STATE, &bed.path("state").to_string_lossy());
    let said = value(&script, "Environment=")?.replace("%d", &credentials.to_string_lossy());
    let line = format!(
        "umask 0077; export {said} SSL_CERT_FILE={}; exec {command}",
        files.relay_ca
    );
    let broker = Spawn::new("sh").args(["-c", &line]);
    let mut broker = Watched::start(broker, &bed, &bed.client, "broker")?;
    broker.wait_log("the bridge gave this broker its certificate", START_MAX)?;
    wait_ready(&mut broker, &bed.client)?;
    ask(&bed.client, START_MAX)?;
    Ok(())
}

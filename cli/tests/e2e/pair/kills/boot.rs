//! kill -9 in the middle of a bootstrap: the word is still good for the broker that came with it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use culvert_perf::testbed::{Spawn, Testbed, wait_for};

use super::{SOON, Victim};
use crate::hub::{binary, ready};
use crate::pair::echo::{self, PAIR_GONE, RELAY_GONE, ask, wait_answered};
use crate::pair::{Files, RELAY, bed, wait_ready};
use crate::routed::metric;
use crate::watched::Watched;

/// What the sides say of a bootstrap that broke off.
const BOOT_GONE: &[&str] = &["\"no certificate\"", "a broker got no certificate"];

/// One pair that begins with a word.
struct Word<'a> {
    bed: &'a Testbed,
    files: &'a Files,
    to: std::net::SocketAddr,
    name: String,
}

impl Word<'_> {
    fn path(&self, what: &str) -> PathBuf {
        self.bed.path(&format!("{what}-{}", self.name))
    }

    fn place(&self, what: &str) -> String {
        format!("file:{}", self.path(what).display())
    }

    fn make(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let culvert = binary("culvert")?.to_string_lossy().into_owned();
        let relay = format!("10.77.1.1:{RELAY}");
        let store = self.place("store");
        let made = [
            "pair", "init", "--name", &self.name, "--relay", &relay, "--store", &store,
        ];
        let word = self.bed.hub.output(&culvert, &made)?;
        std::fs::write(self.path("join"), word)?;
        std::fs::set_permissions(self.path("join"), PermissionsExt::from_mode(0o600))?;
        Ok(())
    }

    fn bridge(&self) -> Result<Watched> {
        let spawn = Spawn::new(binary("culvert-agent")?)
            .args(["bridge", "--to", &self.to.to_string()])
            .args(["--relay", &format!("10.77.2.1:{RELAY}")])
            .args(["--relay-ca", &self.files.relay_ca])
            .args(["--store", &self.place("store")]);
        let name = format!("bridge-{}", self.name);
        let mut bridge = Watched::start(spawn, self.bed, &self.bed.site, &name)?;
        bridge.expect(RELAY_GONE);
        bridge.expect(BOOT_GONE);
        wait_ready(&mut bridge, &self.bed.site)?;
        Ok(bridge)
    }

    fn broker(&self) -> Result<Watched> {
        let spawn = Spawn::new(binary("culvert-agent")?)
            .args(["broker", "--relay", &format!("10.77.1.1:{RELAY}")])
            .args(["--relay-ca", &self.files.relay_ca])
            .args(["--join-file", &self.path("join").to_string_lossy()])
            .args(["--state", &self.place("state")]);
        let name = format!("broker-{}", self.name);
        let mut broker = Watched::start(spawn, self.bed, &self.bed.client, &name)?;
        broker.expect(PAIR_GONE);
        broker.expect(BOOT_GONE);
        Ok(broker)
    }

    fn wait_count(&self, what: &str, of: &str, wanted: f64) -> Result<()> {
        let admin = ([127, 0, 0, 1], 9901).into();
        wait_for(what, SOON, || {
            (metric(&self.bed.hub, admin, of).ok()? == wanted).then_some(())
        })
    }
}

#[test]
fn each_is_killed_in_the_middle_of_a_bootstrap() -> Result<()> {
    if !ready("each_is_killed_in_the_middle_of_a_bootstrap", &[]) {
        return Ok(());
    }
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let to = echo::start(&bed.site)?;
    let mut relay = files.relay(&bed, "relay", &[])?;
    for victim in [Victim::Relay, Victim::Bridge, Victim::Broker] {
        let word = Word {
            bed: &bed,
            files: &files,
            to,
            name: format!("{victim:?}").to_lowercase(),
        };
        word.make()?;
        let mut bridge = word.bridge()?;
        word.wait_count("the bridge with its code", "culvert_pair_waiting", 3.0)?;
        // A bridge that stands still leaves the broker in the middle of its handshake.
        bridge.stop()?;
        let mut broker = word.broker()?;
        word.wait_count("the two to meet", "culvert_pair_live", 1.0)?;
        match victim {
            Victim::Relay => {
                relay.kill_9()?;
                relay = files.relay(&bed, "relay-again", &[])?;
                bridge.resume()?;
            }
            Victim::Bridge => {
                bridge.kill_9()?;
                bridge = word.bridge()?;
            }
            Victim::Broker => {
                broker.kill_9()?;
                bridge.resume()?;
                broker = word.broker()?;
            }
        }
        let start = Instant::now();
        wait_ready(&mut broker, &bed.client)?;
        wait_answered(&bed.client, SOON)?;
        println!(
            "{victim:?} dies in a bootstrap: served {:?} after it is back",
            start.elapsed()
        );
        // From what it kept.
        broker.kill_9()?;
        let state = Spawn::new(binary("culvert-agent")?)
            .args(["broker", "--relay", &format!("10.77.1.1:{RELAY}")])
            .args([
                "--relay-ca",
                &files.relay_ca,
                "--state",
                &word.place("state"),
            ]);
        let mut broker = Watched::start(state, &bed, &bed.client, "broker-kept")?;
        broker.expect(PAIR_GONE);
        wait_ready(&mut broker, &bed.client)?;
        ask(&bed.client, SOON)?;
        broker.kill_9()?;
        bridge.kill_9()?;
        word.wait_count("nobody left", "culvert_pair_waiting", 0.0)?;
        word.wait_count("no pair left", "culvert_pair_live", 0.0)?;
    }
    Ok(())
}

#[test]
fn a_broker_is_killed_at_any_moment_of_its_bootstrap() -> Result<()> {
    if !ready("a_broker_is_killed_at_any_moment_of_its_bootstrap", &[]) {
        return Ok(());
    }
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let to = echo::start(&bed.site)?;
    let _relay = files.relay(&bed, "relay", &[])?;
    for moment in 0..8 {
        let word = Word {
            bed: &bed,
            files: &files,
            to,
            name: format!("moment-{moment}"),
        };
        word.make()?;
        let mut bridge = word.bridge()?;
        word.wait_count("the bridge with its code", "culvert_pair_waiting", 3.0)?;
        let mut broker = word.broker()?;
        // From before it meets the bridge until after it has its pair.
        std::thread::sleep(Duration::from_millis(30 * moment));
        broker.kill_9()?;
        let mut broker = word.broker()?;
        let start = Instant::now();
        wait_ready(&mut broker, &bed.client)?;
        println!(
            "killed after {} ms: served {:?} after its start",
            30 * moment,
            start.elapsed()
        );
        wait_answered(&bed.client, SOON)?;
        ensure!(!broker.log().contains("panicked"));
        broker.kill_9()?;
        bridge.kill_9()?;
        word.wait_count("nobody left", "culvert_pair_waiting", 0.0)?;
    }
    Ok(())
}

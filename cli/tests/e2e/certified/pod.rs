//! An agent in a pod, whose disk ends with it: what it keeps lies in a Secret too (P-27.5). The
//! Kubernetes API is a stand-in.

#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "made for the stores of pairs"
)]
#[path = "../../../../lib/pair/tests/store/stub.rs"]
mod stub;

use std::sync::{MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use culvert_perf::testbed::{NamespaceRuntime, wait_for};

use super::Rig;
use crate::hub::{START_MAX, ready};
use crate::watched::{HUB_GONE, Watched};
use stub::{Mood, State, Stub};

const SECRET: &str = "culvert-agent-state";

struct Pods {
    stub: Stub,
    rig: Rig,
    join: String,
    _runtime: NamespaceRuntime,
}

impl Pods {
    fn start() -> Result<Pods> {
        let rig = Rig::start(&[])?;
        let join = rig.join("dev")?;
        let runtime = rig.bed.site.runtime()?;
        Ok(Pods {
            stub: runtime.run(Stub::start()),
            rig,
            join,
            _runtime: runtime,
        })
    }

    /// A pod with an empty directory, and the word that the first one was given.
    fn new_pod(&self, name: &str) -> Result<Watched> {
        let dir = self.rig.state_of("agent");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        let access = &self.stub.access;
        let further = [
            "--state-secret",
            "pairs",
            "--kube-api",
            &access.server,
            "--kube-ca-file",
            &access.ca_file.to_string_lossy(),
            "--kube-token-file",
            &access.token_file.to_string_lossy(),
        ];
        self.rig.agent_told(name, &self.join, &further)
    }

    fn connected(&self, name: &str) -> Result<Watched> {
        let mut agent = self.new_pod(name)?;
        agent.wait_until("its session", START_MAX, |_| {
            self.rig.is_ready().then_some(())
        })?;
        Ok(agent)
    }

    /// How many times the Secret was written.
    fn writes(&self) -> usize {
        let wrote = |it: &&String| it.starts_with("POST") || it.starts_with("PUT");
        self.api().asked.iter().filter(wrote).count()
    }

    fn api(&self) -> MutexGuard<'_, State> {
        let state = self.stub.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self, writes: usize) -> Result<()> {
        wait_for("the Secret to be written", START_MAX, || {
            (self.writes() == writes).then_some(())
        })
    }
}

#[test]
fn a_new_pod_finds_its_certificate_in_the_secret() -> Result<()> {
    if !ready("a_new_pod_finds_its_certificate_in_the_secret", &[]) {
        return Ok(());
    }
    let pods = Pods::start()?;
    let mut first = pods.connected("first")?;
    pods.rig.served()?;
    let (before, _) = pods.rig.certificate()?;
    pods.kept(1)?;
    let secret = pods.api().secrets[SECRET].clone();
    ensure!(secret["data"]["state.json"].is_string(), "{secret}");

    // What changes while the API refuses is there once it does not.
    first.expect(&["the state is not in its Secret"]);
    first.expect(HUB_GONE);
    pods.stub.set(Mood::Forbids);
    pods.rig.control.ok("POST", "/api/agent-cas", None)?;
    first.wait_log("the state is not in its Secret", START_MAX)?;
    assert_eq!(pods.rig.known_cas()?.len(), 2);
    let refused = pods.writes();
    pods.stub.set(Mood::Sound);
    wait_for("another write", START_MAX, || {
        (pods.writes() > refused).then_some(())
    })?;
    first.kill_9()?;

    // The word is used up, and not needed.
    let second = pods.connected("second")?;
    pods.rig.served()?;
    assert_eq!(pods.rig.certificate()?.0, before);
    assert_eq!(pods.rig.known_cas()?.len(), 2);
    let log = second.log();
    ensure!(!log.contains("enrolled:"), "{log}");
    drop(second);

    // Without the API a pod does not begin anew behind its own back.
    pods.stub.set(Mood::Forbids);
    let mut third = pods.new_pod("third")?;
    third.expect(&["the configuration is refused", "secrets is forbidden"]);
    let status = third.wait_end(START_MAX)?;
    let log = third.log();
    ensure!(status.code() == Some(2), "{status}: {log}");
    ensure!(log.contains("secrets is forbidden"), "{log}");
    Ok(())
}

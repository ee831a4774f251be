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
use crate::hub::{Agent, START_MAX, ready};
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
        // As a start leaves it that was cut short.
        std::fs::create_dir(&dir)?;
        std::fs::write(dir.join("agent-ca.pem"), "half of")?;
        let flags = self.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        self.rig.agent_told(name, &self.join, &flags)
    }

    fn flags(&self) -> [String; 8] {
        let access = &self.stub.access;
        [
            "--state-secret".to_owned(),
            "pairs".to_owned(),
            "--kube-api".to_owned(),
            access.server.clone(),
            "--kube-ca-file".to_owned(),
            access.ca_file.display().to_string(),
            "--kube-token-file".to_owned(),
            access.token_file.display().to_string(),
        ]
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

#[test]
fn a_rotated_token_is_in_the_secret_before_the_hub_hears_of_it() -> Result<()> {
    if !ready(
        "a_rotated_token_is_in_the_secret_before_the_hub_hears_of_it",
        &[],
    ) {
        return Ok(());
    }
    let pods = Pods::start()?;
    let (rig, flags) = (&pods.rig, pods.flags());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let token = rig.control.add("web")?;
    let pod = |name| {
        let agent = Agent::plain(&rig.bed.site, name, &token, rig.upstream.address);
        agent.with(&flags).start(&rig.bed)
    };
    let kept = |name| std::fs::read(rig.state_of(name).join("agent-token"));
    let mut first = pod("first")?;
    first.expect(HUB_GONE);
    first.expect(&["is not in its Secret"]);
    pods.kept(1)?;
    pods.stub.set(Mood::Forbids);
    let rotate = "/api/clusters/web/rotate-token?deliver=true";
    // Control hears of a session a little after it stands.
    wait_for("an agent to deliver to", START_MAX, || {
        let (status, _) = rig.control.call("POST", rotate, None).ok()?;
        (status == 200).then_some(())
    })?;
    first.wait_log("the hub is not told of it", START_MAX)?;
    ensure!(!first.log().contains("new token kept"), "{}", first.log());
    let refused = pods.writes();
    pods.stub.set(Mood::Sound);
    wait_for("another write", START_MAX, || {
        (pods.writes() > refused).then_some(())
    })?;
    let rotated = kept("first")?;
    first.kill_9()?;
    // With the token of old in its environment, and nothing on its disk.
    let _second = pod("second")?;
    assert_eq!(kept("second")?, rotated);
    Ok(())
}

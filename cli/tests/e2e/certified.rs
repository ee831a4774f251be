//! Agents that show certificates (contract P-14, P-27): enrolment by join string, renewal over the
//! session, rotation of the CA, and everybody who is not let in.

mod pod;
mod refused;
mod rotate;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_enrol::{AgentCertificate, read_certificates};
use culvert_perf::testbed::{HUB_FOR_CLIENT, HUB_FOR_SITE, Layout, Spawn, Testbed, wait_for};

use crate::client;
use crate::control::Control;
use crate::hub::{Agent, PUBLIC, START_MAX, binary, dataplane, internal, ready};
use crate::load::Load;
use crate::upstream::Upstream;
use crate::watched::{CONTROL_GONE, HUB_GONE, Watched};

/// The port for agents with certificates.
const CERTIFIED: u16 = 9444;
const CONTROL_API: &str = "127.0.0.1:8088";

/// Control, a data plane with a listener for certificates, a cluster `dev` and its service.
struct Rig {
    dataplane: Watched,
    control: Control,
    upstream: Upstream,
    bed: Testbed,
}

impl Rig {
    fn start(control_args: &[&str]) -> Result<Rig> {
        let bed = Testbed::new(Layout::default())?;
        let control = Rig::control(&bed, "control", control_args)?;
        control.ok(
            "POST",
            "/api/clusters",
            Some(serde_json::json!({"id": "dev", "target_kind": "http"})),
        )?;
        let dataplane = Rig::dataplane(&bed, "dataplane", &control.link)?;
        let upstream = Upstream::start(&bed.site)?;
        let rig = Rig {
            dataplane,
            control,
            upstream,
            bed,
        };
        rig.control.settled()?;
        Ok(rig)
    }

    fn control(bed: &Testbed, name: &str, arguments: &[&str]) -> Result<Control> {
        let sans = HUB_FOR_SITE.to_string();
        let base = ["--listen", CONTROL_API, "--agent-tunnel-sans", &sans];
        let all: Vec<String> = base
            .iter()
            .chain(arguments)
            .map(|it| (*it).to_owned())
            .collect();
        Control::told(bed, name, "state.sock", &bed.path("control.db"), &all)
    }

    fn dataplane(bed: &Testbed, name: &str, link: &str) -> Result<Watched> {
        let state = bed.path("dataplane-state");
        let mut process = dataplane(
            bed,
            name,
            &[
                "--control",
                link,
                "--state-dir",
                &state.to_string_lossy(),
                "--agent-mtls-addr",
                "0.0.0.0:9444",
                "--control-api",
                "http://127.0.0.1:8088",
            ],
        )?;
        // It asks before the link is up, and says so once.
        process.expect(&["certificates of the listener of agents stay as they are"]);
        process.wait_port(&bed.client, certified(), START_MAX)?;
        Ok(process)
    }

    /// What `culvert agent command` prints for an agent of `cluster` by certificate.
    fn join(&self, cluster: &str) -> Result<String> {
        let socket = self.bed.path("admin.sock");
        let hub = format!("wss://{HUB_FOR_SITE}:{CERTIFIED}/api/agents/connect");
        let register = format!("http://{HUB_FOR_SITE}:{PUBLIC}/api/agents/register");
        let program = binary("culvert")?;
        let said = self.bed.hub.output(
            &program.to_string_lossy(),
            &[
                "--api",
                &format!("unix:{}", socket.display()),
                "--output",
                "json",
                "agent",
                "command",
                cluster,
                "--mtls",
                "--hub",
                &hub,
                "--registration-url",
                &register,
            ],
        )?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let word = said["join"].as_str().context("a join string")?;
        Ok(word.to_owned())
    }

    /// An agent that knows nothing but a join string, or what it has on disk.
    fn agent(&self, name: &str, join: &str) -> Result<Watched> {
        self.agent_told(name, join, &[])
    }

    fn agent_told(&self, name: &str, join: &str, further: &[&str]) -> Result<Watched> {
        let state = self.state_of("agent");
        let spawn = Spawn::new(binary("culvert-agent")?)
            .env("CULVERT_JOIN", join)
            .args(["--target", &self.upstream.address.to_string()])
            .args(["--plain-target", "--target-kind", "http"])
            .args(["--allow-insecure-server", "--health-addr", "127.0.0.1:8081"])
            .args(["--state-dir", &state.to_string_lossy()])
            .args(further);
        Watched::start(spawn, &self.bed, &self.bed.site, name)
    }

    fn state_of(&self, name: &str) -> PathBuf {
        self.bed.path(&format!("{name}-state"))
    }

    /// As [`Rig::agent`], connected.
    fn connected(&self, name: &str, join: &str) -> Result<Watched> {
        let mut agent = self.agent(name, join)?;
        agent.wait_until("its session", START_MAX, |_| self.is_ready().then_some(()))?;
        Ok(agent)
    }

    fn is_ready(&self) -> bool {
        let probe = Agent::plain(&self.bed.site, "probe", "", self.upstream.address);
        probe.is_ready()
    }

    fn served(&self) -> Result<()> {
        wait_for("a request served", START_MAX, || {
            let answer = client::get(&self.bed.client, internal(), "/tunnel/dev/id/up").ok()?;
            (answer.status == 200 && answer.body == b"up").then_some(())
        })
    }

    /// The certificate that the agent keeps.
    fn certificate(&self) -> Result<(AgentCertificate, Vec<u8>)> {
        let text = std::fs::read_to_string(self.state_of("agent").join("agent-identity.pem"))?;
        let ders = read_certificates(&text).context("certificates")?;
        let der = ders.into_iter().next().context("a certificate")?;
        Ok((AgentCertificate::read(&der)?, der))
    }

    /// The CAs that the agent keeps.
    fn known_cas(&self) -> Result<Vec<Vec<u8>>> {
        let text = std::fs::read_to_string(self.state_of("agent").join("agent-ca.pem"))?;
        read_certificates(&text).context("CAs")
    }

    /// Waits until the agent keeps another certificate than that of this serial number.
    fn renewed(&self, serial: &str) -> Result<AgentCertificate> {
        wait_for("a new certificate", Duration::from_secs(60), || {
            let (read, _) = self.certificate().ok()?;
            (read.serial != serial).then_some(read)
        })
    }

    fn load(&self) -> Result<Load> {
        let pause = Duration::from_millis(5);
        Load::start(&self.bed.client, internal(), "dev", 4, pause)
    }
}

fn certified() -> SocketAddr {
    (HUB_FOR_CLIENT, CERTIFIED).into()
}

fn over(load: Load) -> Result<u64> {
    let tally = load.finish();
    println!("{} answered, {} failed", tally.answered, tally.failed);
    ensure!(tally.failed == 0, "{:#?}", tally.failures);
    Ok(tally.answered)
}

#[test]
fn an_agent_enrols_by_one_word_and_needs_it_no_more() -> Result<()> {
    if !ready("an_agent_enrols_by_one_word_and_needs_it_no_more", &[]) {
        return Ok(());
    }
    let mut rig = Rig::start(&[])?;
    let join = rig.join("dev")?;
    let mut agent = rig.connected("agent", &join)?;
    rig.served()?;
    let (read, _) = rig.certificate()?;
    assert_eq!(read.cluster.as_str(), "dev");
    // The word is stale now, and does no harm; without it the hub's address has to be said.
    agent.terminate()?;
    agent.wait_end(Duration::from_secs(10))?;
    let mut again = rig.connected("agent-again", &join)?;
    rig.served()?;
    assert_eq!(rig.certificate()?.0, read, "nothing was asked for anew");

    // Without control: both ends start from what they keep.
    rig.dataplane.expect(CONTROL_GONE);
    again.expect(HUB_GONE);
    rig.control.process.kill_9()?;
    rig.dataplane.terminate()?;
    rig.dataplane.wait_end(Duration::from_secs(45))?;
    let link = rig.control.link.clone();
    let _dataplane = Rig::dataplane(&rig.bed, "dataplane-again", &link)?;
    rig.served()?;
    Ok(())
}

#[test]
fn a_join_string_is_good_once_and_for_nobody_else() -> Result<()> {
    if !ready("a_join_string_is_good_once_and_for_nobody_else", &[]) {
        return Ok(());
    }
    let mut rig = Rig::start(&[])?;
    rig.control
        .process
        .expect(&["registration of an agent rejected"]);
    let join = rig.join("dev")?;
    let mut agent = rig.connected("agent", &join)?;
    agent.terminate()?;
    agent.wait_end(Duration::from_secs(10))?;
    std::fs::rename(rig.state_of("agent"), rig.state_of("kept"))?;
    let mut thief = rig.agent("thief", &join)?;
    thief.expect(&["rejected the registration", "culvert-agent cannot run"]);
    let status = thief.wait_end(START_MAX)?;
    assert!(!status.success());
    let log = thief.log();
    assert!(log.contains("make a new join string"), "{log}");
    Ok(())
}

#[test]
fn revoking_or_removing_a_cluster_ends_its_certificates() -> Result<()> {
    if !ready("revoking_or_removing_a_cluster_ends_its_certificates", &[]) {
        return Ok(());
    }
    let mut rig = Rig::start(&[])?;
    rig.dataplane.expect(&["agent refused"]);
    for (round, how) in ["revoke", "remove"].into_iter().enumerate() {
        let join = rig.join("dev")?;
        let mut agent = rig.connected(&format!("agent-{round}"), &join)?;
        agent.expect(HUB_GONE);
        rig.served()?;
        // Certificates know whole seconds, and behind a revocation they count from the next one.
        std::thread::sleep(Duration::from_millis(2_100));
        match how {
            "revoke" => drop(rig.control.revoke("dev")?),
            _ => {
                rig.control.ok("DELETE", "/api/clusters/dev", None)?;
                let body = serde_json::json!({"id": "dev", "target_kind": "http"});
                rig.control.ok("POST", "/api/clusters", Some(body))?;
            }
        }
        agent.wait_until("the end of the session", START_MAX, |_| {
            (!rig.is_ready()).then_some(())
        })?;
        // Who was revoked waits long before another try; a restart does not.
        agent.terminate()?;
        agent.wait_end(Duration::from_secs(10))?;
        let mut again = rig.agent(&format!("again-{round}"), &join)?;
        again.expect(HUB_GONE);
        again.wait_until("the refusal", START_MAX, |agent| {
            agent.log().contains("unauthenticated").then_some(())
        })?;
        assert!(!rig.is_ready(), "{how}: a dead certificate has a session");
        again.terminate()?;
        again.wait_end(Duration::from_secs(10))?;
        // What is made after it is good.
        std::fs::remove_dir_all(rig.state_of("agent"))?;
        let join = rig.join("dev")?;
        let mut fresh = rig.connected(&format!("fresh-{round}"), &join)?;
        rig.served()?;
        fresh.terminate()?;
        fresh.wait_end(Duration::from_secs(10))?;
        std::fs::remove_dir_all(rig.state_of("agent"))?;
    }
    Ok(())
}

//! The local run of contract A-68: hub, agent and curl on one machine, no control process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use culvert_perf::testbed::{Layout, Spawn, Testbed};

use crate::client;
use crate::hub::{START_MAX, binary, ready};
use crate::upstream::Upstream;
use crate::watched::Watched;

/// Where agents dial: one that comes before somebody listens complains.
const PUBLIC: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);
/// The agent serves a Kubernetes API outside of a cluster here.
const NO_TOKEN: &str = "requests go to the target without a bearer token";

#[test]
fn hub_agent_and_curl_on_one_machine() -> Result<()> {
    if !ready("hub_agent_and_curl_on_one_machine", &["curl"]) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    let host = &bed.hub;
    let _service = Upstream::local(host, 6443)?;
    let text = r#"[{"id":"dev","token":"dev-token-16-bytes","targetAddr":"127.0.0.1:6443"}]"#;
    let spawn = Spawn::new(binary("culvert-dataplane")?).env("CLUSTERS", text);
    let mut dataplane = Watched::start(spawn, &bed, host, "dataplane")?;
    dataplane.wait_port(host, PUBLIC, START_MAX)?;
    let spawn = Spawn::new(binary("culvert-agent")?)
        .args([
            "-server",
            "ws://localhost:8443/connect",
            "-token=dev-token-16-bytes",
        ])
        .args([
            "-target",
            "127.0.0.1:6443",
            "-plain-target",
            "-allow-insecure-server",
        ]);
    let mut agent = Watched::start(spawn, &bed, host, "agent")?;
    agent.expect(&[NO_TOKEN, "--token on the command line is visible"]);
    let curl = |url: &str| host.output("curl", &["-sS", "--fail", "--max-time", "5", url]);
    agent.wait_until("the first request served", START_MAX, |_| {
        let answer = curl("http://localhost:8080/tunnel/dev/id/first").ok()?;
        assert_eq!(answer, "first");
        Some(())
    })?;
    assert_eq!(curl("http://localhost:8080/readyz")?.trim(), "ok");
    assert_eq!(curl("http://localhost:8080/healthz")?.trim(), "ok");
    assert_eq!(curl("http://localhost:8081/readyz")?.trim(), "ok");
    assert!(curl("http://localhost:8080/metrics")?.contains("agents_connected 1"));
    assert!(curl("http://localhost:8081/metrics")?.contains("agent_connected 1"));

    let log = dataplane.log();
    assert!(log.contains("both ports speak plain HTTP"), "{log}");
    Ok(())
}

#[test]
fn an_address_that_the_agent_does_not_serve_is_refused_by_name() -> Result<()> {
    if !ready(
        "an_address_that_the_agent_does_not_serve_is_refused_by_name",
        &[],
    ) {
        return Ok(());
    }
    for (hub_says, agent_serves, status) in [
        ("127.0.0.1:6443", "127.0.0.1:6443", 200),
        ("127.0.0.1:1", "127.0.0.1:6443", 403),
    ] {
        let bed = Testbed::new(Layout::default())?;
        let _service = Upstream::local(&bed.hub, 6443)?;
        let text =
            format!(r#"[{{"id":"dev","token":"dev-token-16-bytes","targetAddr":"{hub_says}"}}]"#);
        let spawn = Spawn::new(binary("culvert-dataplane")?).env("CLUSTERS", text);
        let mut dataplane = Watched::start(spawn, &bed, &bed.hub, "dataplane")?;
        dataplane.wait_port(&bed.hub, PUBLIC, START_MAX)?;
        let spawn = Spawn::new(binary("culvert-agent")?)
            .env("TOKEN", "dev-token-16-bytes")
            .args([
                "-server",
                "ws://localhost:8443/connect",
                "-target",
                agent_serves,
            ])
            .args(["-plain-target", "-allow-insecure-server"]);
        let mut agent = Watched::start(spawn, &bed, &bed.hub, "agent")?;
        agent.expect(&[NO_TOKEN]);
        let target = ([127, 0, 0, 1], 8080).into();
        let answer = agent.wait_until("an answer of the agent", START_MAX, |_| {
            let answer = client::get(&bed.hub, target, "/tunnel/dev/id/x").ok()?;
            (answer.status != 503).then_some(answer)
        })?;
        assert_eq!(answer.status, status, "{answer:?}");
        if status == 403 {
            assert_eq!(answer.header("culvert-error"), Some("target_not_allowed"));
        }
    }
    Ok(())
}

//! Certificates are renewed and CAs replaced under traffic.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_enrol::issuer_is;
use culvert_perf::testbed::wait_for;
use serde_json::Value;

use super::{Rig, over};
use crate::client;
use crate::hub::{START_MAX, internal, ready};
use crate::watched::HUB_GONE;

/// The shortest life that can be asked for.
const SHORT: &[&str] = &["--agent-cert-life", "60s"];

#[test]
fn certificates_of_a_minute_are_renewed_under_traffic_without_a_lost_request() -> Result<()> {
    let test = "certificates_of_a_minute_are_renewed_under_traffic_without_a_lost_request";
    if !ready(test, &[]) {
        return Ok(());
    }
    let rig = Rig::start(SHORT)?;
    let join = rig.join("dev")?;
    let mut agent = rig.connected("agent", &join)?;
    rig.served()?;
    let (first, _) = rig.certificate()?;
    let load = rig.load()?;
    let second = rig.renewed(&first.serial)?;
    let third = rig.renewed(&second.serial)?;
    over(load)?;
    let left = third.validity.until_unix_s - second.validity.until_unix_s;
    assert!(
        (30..=60).contains(&left),
        "at two thirds of a minute: {left}"
    );
    let metrics = client::get(&rig.bed.site, "127.0.0.1:8081".parse()?, "/metrics")?.text();
    let gauge = "agent_certificate_expiry_timestamp_seconds";
    let line = metrics
        .lines()
        .find(|line| line.starts_with(gauge))
        .context(gauge)?;
    let until = third.validity.until_unix_s.to_string();
    assert!(line.contains(&until), "{line} is not {until}");
    // The first is dead by now; the next dial shows the newest.
    agent.terminate()?;
    agent.wait_end(Duration::from_secs(10))?;
    let _again = rig.connected("agent-again", &join)?;
    rig.served()
}

#[test]
fn a_ca_is_rotated_under_traffic_without_a_lost_request() -> Result<()> {
    if !ready("a_ca_is_rotated_under_traffic_without_a_lost_request", &[]) {
        return Ok(());
    }
    let mut rig = Rig::start(SHORT)?;
    let join = rig.join("dev")?;
    let mut agent = rig.connected("agent", &join)?;
    agent.expect(HUB_GONE);
    rig.served()?;
    let before = rig.known_cas()?;
    assert_eq!(before.len(), 1);
    let load = rig.load()?;

    let staged = rig.control.ok("POST", "/api/agent-cas", None)?;
    wait_for("the agent to know both CAs", START_MAX, || {
        (rig.known_cas().ok()?.len() == 2).then_some(())
    })?;
    let (status, _) = rig.control.call("POST", "/api/agent-cas", None)?;
    assert_eq!(status, 409, "one at a time");
    let promoted = rig.control.ok("POST", "/api/agent-cas/promote", None)?;
    assert_eq!(promoted["ca_id"], staged["ca_id"]);
    assert_eq!(promoted["state"], "signing");

    // The next renewal is by the new CA.
    let new = rig
        .known_cas()?
        .into_iter()
        .find(|ca| !before.contains(ca))
        .context("the new CA")?;
    wait_for(
        "a certificate of the new CA",
        Duration::from_secs(60),
        || issuer_is(&rig.certificate().ok()?.1, &new).then_some(()),
    )?;
    let cas = rig.control.ok("GET", "/api/agent-cas", None)?;
    let old = id_of(&cas, "trusted").context("the old CA")?;
    let signs = id_of(&cas, "signing").context("the new CA")?;
    let path = format!("/api/agent-cas/{signs}");
    let (status, _) = rig.control.call("DELETE", &path, None)?;
    assert_eq!(status, 409, "what signs is not retired");
    rig.control
        .ok("DELETE", &format!("/api/agent-cas/{old}"), None)?;
    wait_for("the agent to forget the old CA", START_MAX, || {
        (rig.known_cas().ok()? == [new.clone()]).then_some(())
    })?;
    wait_for(
        "the agent to come in by its new certificate",
        START_MAX,
        || {
            let connected = rig.dataplane.log().matches("agent connected").count();
            (connected == 2).then_some(())
        },
    )?;
    let answered = over(load)?;
    println!("a CA was replaced over {answered} requests");

    // From nothing but the new CA, on both ends.
    rig.dataplane.terminate()?;
    rig.dataplane.wait_end(Duration::from_secs(45))?;
    let link = rig.control.link.clone();
    let _dataplane = Rig::dataplane(&rig.bed, "dataplane-again", &link)?;
    rig.served()?;
    let path = "/api/audit?verb=ca_rotate&outcome=success";
    let rows = rig.control.ok("GET", path, None)?;
    assert_eq!(rows["items"].as_array().map(Vec::len), Some(4), "{rows}");
    Ok(())
}

#[test]
fn who_has_nothing_but_a_retired_ca_is_gone_within_seconds() -> Result<()> {
    if !ready(
        "who_has_nothing_but_a_retired_ca_is_gone_within_seconds",
        &[],
    ) {
        return Ok(());
    }
    let mut rig = Rig::start(&[])?;
    let join = rig.join("dev")?;
    let mut agent = rig.connected("agent", &join)?;
    agent.expect(HUB_GONE);
    agent.expect(&["refused our client certificate"]);
    rig.dataplane.expect(&["handshake"]);
    rig.served()?;
    for step in ["", "/promote"] {
        let path = format!("/api/agent-cas{step}");
        rig.control.ok("POST", &path, None)?;
    }
    // A stolen key is no reason to wait: its certificates have 90 days to go.
    let cas = rig.control.ok("GET", "/api/agent-cas", None)?;
    let old = id_of(&cas, "trusted").context("the old CA")?;
    let path = format!("/api/agent-cas/{old}");
    rig.control.ok("DELETE", &path, None)?;
    let retired = Instant::now();
    rig.dataplane
        .wait_log("agent session ended", Duration::from_secs(30))?;
    println!("gone {:?} after its CA", retired.elapsed());
    let answer = client::get(&rig.bed.client, internal(), "/tunnel/dev/id/up")?;
    assert_eq!(answer.status, 503, "it came in again");
    Ok(())
}

fn id_of(cas: &Value, state: &str) -> Option<String> {
    let mut all = cas["items"].as_array()?.iter();
    let found = all.find(|ca| ca["state"] == state)?;
    found["ca_id"].as_str().map(str::to_owned)
}

/// D-10: certificates of a minute for half an hour, a rotation of the CA every five minutes.
#[test]
#[ignore = "half an hour"]
fn soak_certificates_of_a_minute_for_half_an_hour() -> Result<()> {
    if !ready("soak_certificates_of_a_minute_for_half_an_hour", &[]) {
        return Ok(());
    }
    let rig = Rig::start(SHORT)?;
    let join = rig.join("dev")?;
    let _agent = rig.connected("agent", &join)?;
    rig.served()?;
    let load = rig.load()?;
    let start = Instant::now();
    let (mut held, mut renewals) = (rig.certificate()?.0, 0);
    while start.elapsed() < Duration::from_secs(30 * 60) {
        held = rig.renewed(&held.serial)?;
        renewals += 1;
        if renewals % 7 == 0 {
            rig.control.ok("POST", "/api/agent-cas", None)?;
            rig.control.ok("POST", "/api/agent-cas/promote", None)?;
            held = rig.renewed(&held.serial)?;
            let cas = rig.control.ok("GET", "/api/agent-cas", None)?;
            let old = id_of(&cas, "trusted").context("the old CA")?;
            rig.control
                .ok("DELETE", &format!("/api/agent-cas/{old}"), None)?;
        }
    }
    let answered = over(load)?;
    println!("{renewals} renewals over {answered} requests");
    Ok(())
}

//! The fleet at a glance, through control, the data plane and the agents (P-06, R-32).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_identity::Tier;
use serde_json::Value;

use super::hub::{PASSWORD, People, Signed};
use crate::hub::ready;

fn person(name: &str, group: &str) -> Result<String> {
    let mut signed = Signed::new(name).of(&[group]);
    signed.session.tier = Some(Tier::Read);
    signed.cookie(PASSWORD)
}

fn page(people: &People, path: &str, cookie: &str) -> Result<Value> {
    let answer = people.get(path, &[cookie])?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(serde_json::from_str(&answer.text())?)
}

/// Status and error of a cluster.
fn said<'a>(page: &'a Value, name: &str) -> Result<(&'a str, &'a str)> {
    let clusters = page["clusters"].as_array().context("clusters")?;
    let cluster = clusters.iter().find(|it| it["name"] == name);
    let cluster = cluster.with_context(|| format!("no {name} in {page}"))?;
    let text = |field: &str| cluster[field].as_str().unwrap_or_default();
    Ok((text("status"), text("error")))
}

#[test]
fn the_fleet_is_what_each_cluster_says_to_the_person_who_asks() -> Result<()> {
    if !ready(
        "the_fleet_is_what_each_cluster_says_to_the_person_who_asks",
        &[],
    ) {
        return Ok(());
    }
    let mut people = People::start()?;
    let ana = person("ana", "ops")?;
    let fleet = page(&people, "/api/fleet", &ana)?;
    assert_eq!(said(&fleet, "kube")?, ("healthy", ""), "{fleet}");
    assert_eq!(said(&fleet, "web")?, ("healthy", ""), "{fleet}");
    assert_eq!(fleet["rollup"]["byStatus"]["healthy"], 2);
    let versions: Vec<_> = fleet["clusters"]
        .as_array()
        .context("clusters")?
        .iter()
        .map(|it| it["version"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(versions[0], "v1.34.1", "what the Kubernetes API says");
    assert!(!versions[1].is_empty(), "what the agent says: {fleet}");
    // She was asked for as herself.
    let asked = people.kube.heads();
    let asked = asked.iter().find(|head| head.starts_with("GET /version "));
    let asked = asked.context("nobody asked for /version")?.to_lowercase();
    assert!(asked.contains("impersonate-user: ana\r\n"), "{asked}");

    // Who has no grant sees that there are clusters, and no more.
    let eve = person("eve", "strangers")?;
    let fleet = page(&people, "/api/fleet", &eve)?;
    assert_eq!(said(&fleet, "kube")?.0, "denied", "{fleet}");
    assert_eq!(said(&fleet, "web")?.0, "denied", "{fleet}");

    // One that does not answer costs the other nothing.
    people.kube_agent.stop()?;
    let bob = person("bob", "ops")?;
    let began = Instant::now();
    let fleet = page(&people, "/api/fleet/id/x", &bob)?;
    let took = began.elapsed();
    people.kube_agent.resume()?;
    assert_eq!(
        said(&fleet, "kube")?,
        ("unreachable", "no answer within 2 s")
    );
    assert_eq!(said(&fleet, "web")?, ("healthy", "the answer is not JSON"));
    assert!(took < Duration::from_secs(4), "{took:?}");
    Ok(())
}

//! Audited requests: what is recorded, by whom, and that nothing is lost or doubled when
//! processes die.

mod kills;
mod rate;
mod writes;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_perf::testbed::{Testbed, wait_for};
use serde_json::{Value, json};

use crate::client::{self, Answer, Live, metric};
use crate::control::{Control, Fleet};
use crate::hub::{dataplane, internal, ready};
use crate::store::Disk;
use crate::watched::{CONTROL_GONE, HUB_GONE, Watched};

/// What is said when a record cannot be kept.
const UNKEPT: &[&str] = &["until the audit spool takes records again"];

/// Has the requests of machines to `dev` audited.
fn switch_on(control: &Control) -> Result<()> {
    let on = json!({"audit_tunnel": true});
    control.ok("PATCH", "/api/clusters/dev", Some(on))?;
    control.settled()
}

/// Every row of the log, oldest first, by pages.
fn rows(control: &Control) -> Result<Vec<Value>> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/audit?limit=500{cursor}");
        let page = control.ok("GET", &path, None)?;
        rows.extend(page["items"].as_array().context("items")?.iter().cloned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    rows.reverse();
    Ok(rows)
}

/// Rows of audited requests, by their event.
fn events(control: &Control) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut events: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for row in rows(control)? {
        if let Some(id) = row["event_id"].as_str() {
            events.entry(id.to_owned()).or_default().push(row.clone());
        }
    }
    Ok(events)
}

/// Waits for the rows of a request: an attempt and its end.
fn of_request(control: &Control, id: &str) -> Result<[Value; 2]> {
    let path = format!("/api/audit?request_id={id}");
    wait_for("both rows of the request", Duration::from_secs(10), || {
        let page = control.ok("GET", &path, None).ok()?;
        let mut items = page["items"].as_array()?.clone();
        items.reverse();
        items.try_into().ok()
    })
}

fn ask(bed: &Testbed, method: &str, target: &str, id: &str) -> Result<Answer> {
    let line = format!("X-Request-Id: {id}");
    client::ask(&bed.client, internal(), method, target, &[&line], b"")
}

fn uuid(number: u32) -> String {
    format!("0190163d-8694-739b-aea5-{number:012x}")
}

#[test]
fn requests_of_machines_are_audited_where_the_cluster_says_so() -> Result<()> {
    if !ready(
        "requests_of_machines_are_audited_where_the_cluster_says_so",
        &[],
    ) {
        return Ok(());
    }
    let mut fleet = Fleet::start()?;
    assert_eq!(
        ask(&fleet.bed, "POST", "/tunnel/dev/id/x", &uuid(1))?.status,
        200
    );
    switch_on(&fleet.control)?;
    assert_eq!(
        ask(&fleet.bed, "POST", "/tunnel/dev/id/y?q=secret", &uuid(2))?.status,
        200
    );
    let [attempted, ended] = of_request(&fleet.control, &uuid(2))?;
    println!("{attempted}\n{ended}");
    assert_eq!(attempted["outcome"], "attempted");
    assert_eq!(attempted["verb"], "apply");
    assert_eq!(
        attempted["route"], "POST /tunnel/dev/id/y",
        "without its query"
    );
    assert_eq!(attempted["transport"], "tunnel");
    let actor = attempted["actor"]["sub"].as_str().context("an actor")?;
    assert!(actor.starts_with("machine:10.77."), "{actor}");
    assert_eq!(ended["outcome"], "success");
    assert_eq!(ended["event_id"], attempted["event_id"]);
    assert_eq!(ended["actor"], attempted["actor"]);
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&json!(200), &json!("finished"))
    );
    assert_eq!(ended["bytes_to_client"], 10, "y?q=secret");

    // A read is none, nor is another cluster's write, nor one from before.
    assert_eq!(
        ask(&fleet.bed, "GET", "/tunnel/dev/id/z", &uuid(3))?.status,
        200
    );
    assert_eq!(
        ask(&fleet.bed, "POST", "/tunnel/neighbour/id/z", &uuid(4))?.status,
        200
    );
    // What fails leaves its rows too.
    assert_eq!(
        ask(&fleet.bed, "DELETE", "/tunnel/dev/none", &uuid(5))?.status,
        404
    );
    let [attempted, ended] = of_request(&fleet.control, &uuid(5))?;
    assert_eq!(
        (&attempted["verb"], &ended["outcome"]),
        (&json!("delete"), &json!("failure"))
    );
    fleet.dev_agent.kill_9()?;
    wait_for(
        "the agent's end to be seen",
        Duration::from_secs(20),
        || {
            let answer = client::get(&fleet.bed.client, internal(), "/tunnel/dev/id/z").ok()?;
            (answer.status == 503).then_some(())
        },
    )?;
    assert_eq!(
        ask(&fleet.bed, "POST", "/tunnel/dev/id/z", &uuid(6))?.status,
        503
    );
    let [_, ended] = of_request(&fleet.control, &uuid(6))?;
    assert_eq!(
        (&ended["outcome"], &ended["reason"]),
        (&json!("failure"), &json!("agent_absent"))
    );
    let events = events(&fleet.control)?;
    assert_eq!(events.len(), 3, "{events:#?}");
    Ok(())
}

#[test]
fn an_attempt_is_durable_before_the_service_sees_it() -> Result<()> {
    if !ready("an_attempt_is_durable_before_the_service_sees_it", &[]) {
        return Ok(());
    }
    let mut fleet = Fleet::start()?;
    fleet.dataplane.expect(CONTROL_GONE);
    fleet.dev_agent.expect(HUB_GONE);
    fleet.neighbour_agent.expect(HUB_GONE);
    switch_on(&fleet.control)?;
    // What is to be found later can be in the spool alone.
    fleet.control.process.kill_9()?;
    let raw = format!(
        "POST /tunnel/dev/hold/60000 HTTP/1.1\r\nHost: hub.test\r\nX-Request-Id: {}\r\n\r\n",
        uuid(7)
    );
    let asked = Live::open(&fleet.bed.client, internal(), raw.as_bytes())?;
    wait_for("the service to see it", Duration::from_secs(10), || {
        let heads = fleet.dev.heads();
        heads
            .iter()
            .any(|head| head.contains("/hold/"))
            .then_some(())
    })?;
    fleet.dataplane.kill_9()?;
    drop(asked);
    fleet.control = Control::start(&fleet.bed, "control-2")?;
    fleet.dataplane = Fleet::dataplane(&fleet.bed, "dataplane-2", &fleet.control.link)?;
    let [attempted, ended] = of_request(&fleet.control, &uuid(7))?;
    assert_eq!(attempted["outcome"], "attempted");
    assert_eq!(
        (&ended["outcome"], &ended["reason"]),
        (&json!("failure"), &json!("unknown_end"))
    );
    assert_eq!(ended["actor"], attempted["actor"]);
    Ok(())
}

#[test]
fn exec_and_large_answers_are_recorded_from_begin_to_end() -> Result<()> {
    if !ready("exec_and_large_answers_are_recorded_from_begin_to_end", &[]) {
        return Ok(());
    }
    let fleet = Fleet::start()?;
    let kube = json!({"target_kind": "kube", "audit_tunnel": true});
    fleet.control.ok("PATCH", "/api/clusters/dev", Some(kube))?;
    fleet.control.settled()?;
    let pod = "/tunnel/dev/api/v1/namespaces/a/pods/p";
    let upgrade = |what: &str, id: &str| {
        let raw = format!(
            "POST {pod}/{what} HTTP/1.1\r\nHost: hub.test\r\nX-Request-Id: {id}\r\n\
             Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
        );
        Live::open(&fleet.bed.client, internal(), raw.as_bytes())
    };
    let mut exec = upgrade("exec", &uuid(1))?;
    exec.read_text("101 Switching", Duration::from_secs(10))?;
    exec.send(b"ping")?;
    exec.read_text("ping", Duration::from_secs(10))?;
    let [attempted, opened] = of_request(&fleet.control, &uuid(1))?;
    assert_eq!(attempted["resource"]["resource"], "pods/exec");
    assert_eq!(
        (&opened["verb"], &opened["outcome"]),
        (&json!("exec_open"), &json!("success"))
    );
    assert_eq!(opened["status"], 101);
    exec.half_close()?;
    drop(exec);
    let page = wait_for("the close", Duration::from_secs(10), || {
        let path = "/api/audit?verb=exec_close";
        let page = fleet.control.ok("GET", path, None).ok()?;
        (page["total"] == 1).then_some(page)
    })?;
    let closed = &page["items"][0];
    assert_eq!(closed["event_id"], attempted["event_id"]);
    assert_eq!(closed["bytes_to_service"], 4, "{closed}");
    assert_eq!(closed["bytes_to_client"], 4, "{closed}");

    // One that the service refuses.
    let mut attach = upgrade("attach", &uuid(2))?;
    attach.read_text("403 Forbidden", Duration::from_secs(10))?;
    let [_, ended] = of_request(&fleet.control, &uuid(2))?;
    assert_eq!(
        (&ended["verb"], &ended["outcome"]),
        (&json!("exec_open"), &json!("denied"))
    );

    let mut large = Live::get(&fleet.bed.client, internal(), "/tunnel/dev/endless")?;
    large.read_until(Duration::from_secs(30), |all| all.len() > 65 << 20)?;
    drop(large);
    let page = wait_for("both rows of the download", Duration::from_secs(20), || {
        let path = "/api/audit?verb=bulk_download";
        let page = fleet.control.ok("GET", path, None).ok()?;
        (page["total"] == 2).then_some(page)
    })?;
    let ended = &page["items"][0];
    assert_eq!(ended["outcome"], "success", "{ended}");
    assert!(
        ended["bytes_to_client"].as_u64() > Some(64 << 20),
        "{ended}"
    );
    Ok(())
}

/// The data plane of `fleet` anew, with its spool on `disk`.
fn spool_on(fleet: &mut Fleet, name: &str, disk: &str, when_full: &str) -> Result<Watched> {
    let state = fleet.bed.path("dataplane-state");
    let mut process = dataplane(
        &fleet.bed,
        name,
        &[
            "--control",
            &fleet.control.link,
            "--state-dir",
            &state.to_string_lossy(),
            "--audit-dir",
            disk,
            "--audit-spool-max",
            "32MiB",
            "--audit-when-full",
            when_full,
        ],
    )?;
    process.expect(UNKEPT);
    Ok(process)
}

#[test]
fn a_full_disk_refuses_audited_requests_or_warns_and_no_others_suffer() -> Result<()> {
    let name = "a_full_disk_refuses_audited_requests_or_warns_and_no_others_suffer";
    if !ready(name, &[]) {
        return Ok(());
    }
    let mut fleet = Fleet::start()?;
    fleet.dev_agent.expect(HUB_GONE);
    fleet.neighbour_agent.expect(HUB_GONE);
    switch_on(&fleet.control)?;
    let disk = Disk::mount(fleet.bed.path("spool"), "8m")?;
    let place = fleet.bed.path("spool").to_string_lossy().into_owned();
    for (round, when_full) in [(1, "refuse"), (2, "warn")] {
        fleet.dataplane.kill_9()?;
        fleet.dataplane = spool_on(&mut fleet, &format!("dataplane-{round}"), &place, when_full)?;
        crate::hub::wait_served(&fleet.bed, "dev", Duration::from_secs(30))?;
        disk.fill()?;
        let seen = fleet.dev.heads().len();
        let answer = ask(&fleet.bed, "POST", "/tunnel/dev/id/full", &uuid(round * 10))?;
        let reads = ask(
            &fleet.bed,
            "GET",
            "/tunnel/dev/id/read",
            &uuid(round * 10 + 1),
        )?;
        assert_eq!(reads.status, 200, "what is not audited goes on");
        let came = fleet.dev.heads().len() - seen;
        let metrics = client::get(&fleet.bed.client, internal(), "/metrics")?.text();
        if when_full == "refuse" {
            assert_eq!(answer.status, 503);
            assert_eq!(answer.header("culvert-error"), Some("audit_unavailable"));
            assert_eq!(came, 1, "the read alone");
            let count = metric(&metrics, "culvert_audit_refused_total{reason=\"disk\"}");
            assert!(count >= 1.0, "{count}");
        } else {
            assert_eq!((answer.status, came), (200, 2));
            let count = metric(&metrics, "culvert_audit_unrecorded_total{reason=\"disk\"}");
            assert!(count >= 1.0, "{count}");
        }
        disk.empty()?;
        let id = uuid(round * 10 + 2);
        assert_eq!(
            ask(&fleet.bed, "POST", "/tunnel/dev/id/again", &id)?.status,
            200
        );
        of_request(&fleet.control, &id)?;
    }
    Ok(())
}

#[test]
fn a_machine_that_is_turned_away_leaves_its_rows_and_a_flood_few() -> Result<()> {
    let name = "a_machine_that_is_turned_away_leaves_its_rows_and_a_flood_few";
    if !ready(name, &[]) {
        return Ok(());
    }
    let fleet = Fleet::start()?;
    let off = json!({
        "id": "closed", "audit_tunnel": true, "target_kind": "kube", "enabled": false,
    });
    fleet.control.ok("POST", "/api/clusters", Some(off))?;
    fleet.control.settled()?;
    let path = "/tunnel/closed/api/v1/namespaces/n/pods/p";
    let delete = |line: &str| {
        let lines = [line];
        client::ask(&fleet.bed.client, internal(), "DELETE", path, &lines, b"")
    };
    let answer = delete(&format!("X-Request-Id: {}", uuid(1)))?;
    assert_eq!(
        answer.header("culvert-error"),
        Some("disabled"),
        "{answer:?}"
    );
    let [attempted, ended] = of_request(&fleet.control, &uuid(1))?;
    assert_eq!(
        (&attempted["verb"], &attempted["transport"]),
        (&json!("delete"), &json!("tunnel"))
    );
    let actor = attempted["actor"]["sub"].as_str().unwrap_or_default();
    assert!(actor.starts_with("machine:"), "{actor}");
    assert_eq!(
        (&ended["outcome"], &ended["reason"], &ended["status"]),
        (&json!("denied"), &json!("disabled"), &json!(403))
    );
    // What only reads is not audited, refused or not; unknown clusters are nobody's.
    client::get(&fleet.bed.client, internal(), path)?;
    client::get(&fleet.bed.client, internal(), "/tunnel/none/x")?;
    assert_eq!(rows_of_requests(&fleet.control)?, 2);
    for _ in 0..1_500 {
        delete("X-Scanner: 1")?;
    }
    // Two minutes at most were touched.
    let count = rows_of_requests(&fleet.control)?;
    println!("1,500 refusals left {count} rows");
    assert!((2..=2 * 2 * 600).contains(&count), "{count} rows");
    let metrics = client::get(&fleet.bed.client, internal(), "/metrics")?.text();
    let lost = metric(
        &metrics,
        "culvert_audit_unrecorded_total{reason=\"denied_flood\"}",
    );
    assert!(lost >= 300.0, "{lost} were counted instead");
    Ok(())
}

/// How many rows of audited requests there are.
fn rows_of_requests(control: &Control) -> Result<usize> {
    Ok(events(control)?.values().map(Vec::len).sum())
}

//! What people do is audited always, and what they may not do, too.

use std::time::Duration;

use anyhow::{Context, Result};
use culvert_perf::testbed::wait_for;
use serde_json::{Value, json};

use super::hub::{OWN, PASSWORD, People, Signed};
use crate::hub::ready;

/// The rows of a request, oldest first, once there are two.
fn rows(people: &People, id: &str) -> Result<[Value; 2]> {
    let path = format!("/api/audit?request_id={id}");
    wait_for("both rows of the request", Duration::from_secs(10), || {
        let page = people.control.ok("GET", &path, None).ok()?;
        let mut items = page["items"].as_array()?.clone();
        items.reverse();
        items.try_into().ok()
    })
}

#[test]
fn what_people_do_and_may_not_do_is_recorded_by_their_names() -> Result<()> {
    let name = "what_people_do_and_may_not_do_is_recorded_by_their_names";
    if !ready(name, &[]) {
        return Ok(());
    }
    let people = People::start()?;
    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    let eve = Signed::new("eve").of(&["strangers"]).cookie(PASSWORD)?;
    let ids = [1, 2, 3].map(|number| format!("0190163d-8694-739b-aea5-00000000000{number}"));
    let [wrote, denied, read] = &ids;
    let ask = |method: &str, cookie: &str, id: &str| {
        let line = format!("X-Request-Id: {id}");
        let path = "/c/kube/api/v1/namespaces/n/pods/p";
        people.ask(method, path, &[cookie, OWN, &line])
    };
    assert_eq!(ask("DELETE", &ana, wrote)?.status, 404, "it arrived");
    let [attempted, ended] = rows(&people, wrote)?;
    println!("{attempted}\n{ended}");
    assert_eq!(attempted["actor"]["sub"], "ana");
    assert_eq!(attempted["actor"]["groups"], json!(["ops"]));
    assert_eq!(attempted["transport"], "session");
    assert_eq!(attempted["verb"], "delete");
    assert_eq!(attempted["resource"]["resource"], "pods");
    assert_eq!(attempted["resource"]["namespace"], "n");
    assert_eq!(attempted["resource"]["name"], "p");
    assert_eq!(ended["status"], 404);

    assert_eq!(ask("DELETE", &eve, denied)?.status, 403);
    let [attempted, ended] = rows(&people, denied)?;
    assert_eq!(attempted["actor"]["sub"], "eve");
    assert_eq!(ended["outcome"], "denied");
    assert_eq!(ended["reason"], "no_identity");

    assert_eq!(ask("GET", &ana, read)?.status, 404);
    let path = format!("/api/audit?request_id={read}");
    let page = people.control.ok("GET", &path, None)?;
    let items = page["items"].as_array().context("items")?;
    assert!(items.is_empty(), "a read is not audited: {items:?}");
    Ok(())
}

//! Quickstart's processes end with it, however it ends.

use std::time::Duration;

use anyhow::{Context, Result};
use culvert_perf::testbed::{Layout, Process, Spawn, Testbed, wait_for};

use crate::hub::{binary, ready};

/// The agent takes no new streams for a second before it goes; the data plane waits for agents.
const STOP_MAX: Duration = Duration::from_secs(15);

/// Name, state letter and process group.
fn stat(pid: u32) -> Option<(String, char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = text.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((name.to_owned(), state, fields.nth(1)?.parse().ok()?))
}

fn started(bed: &Testbed, name: &str) -> Result<(Process, Vec<u32>)> {
    let mut quickstart = Spawn::new(binary("culvert")?)
        .args(["quickstart", "--state-dir"])
        .args([bed.path(name)])
        .start(bed, &bed.hub, name)?;
    quickstart.wait_log("Ctrl-C drains and stops", Duration::from_secs(60))?;
    let pid = quickstart.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children = children.split_whitespace().map(str::parse);
    Ok((quickstart, children.collect::<Result<_, _>>()?))
}

#[test]
fn quickstart_takes_its_processes_with_it() -> Result<()> {
    if !ready("quickstart_takes_its_processes_with_it", &[]) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    for signal in ["INT", "TERM", "KILL"] {
        let (mut quickstart, children) = started(&bed, signal)?;
        let mut names = Vec::new();
        for child in &children {
            let (name, _, group) = stat(*child).context("a child that runs")?;
            assert_eq!(group, *child, "{name}: Ctrl-C must reach quickstart alone");
            names.push(name);
        }
        names.sort();
        assert_eq!(
            names,
            ["culvert-agent", "culvert-control", "culvert-datapla"]
        );
        let kill = format!("-{signal}");
        bed.hub
            .output("kill", &[&kill, &quickstart.pid().to_string()])?;
        let status = quickstart.wait_end(STOP_MAX)?;
        assert_eq!(status.success(), signal != "KILL", "{signal}: {status}");
        wait_for("the children to end", STOP_MAX, || {
            let gone = |pid: &u32| stat(*pid).is_none_or(|(_, state, _)| state == 'Z');
            children.iter().all(gone).then_some(())
        })?;
    }
    Ok(())
}

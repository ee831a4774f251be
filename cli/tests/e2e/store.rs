//! The disk under control fails: a clear error there, no effect on the data plane.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{Layout, Testbed, wait_for};
use serde_json::json;

use crate::client;
use crate::control::{Control, Fleet};
use crate::hub::{internal, ready, wait_served};
use crate::load::Load;
use crate::watched::{CONTROL_GONE, HUB_GONE};

/// A small file system of its own, unmounted on drop.
pub struct Disk(PathBuf);

impl Disk {
    pub fn mount(path: PathBuf, size: &str) -> Result<Disk> {
        std::fs::create_dir_all(&path)?;
        mount(
            &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"],
            &path,
        )?;
        Ok(Disk(path))
    }

    /// Fills it, and proves that it is full.
    pub fn fill(&self) -> Result<()> {
        let filler = self.0.join("filler");
        let error = std::fs::write(&filler, vec![0; 64 << 20]).expect_err("it has a size");
        ensure!(error.kind() == std::io::ErrorKind::StorageFull, "{error}");
        Ok(())
    }

    pub fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("filler"))?)
    }

    fn remount(&self, how: &str) -> Result<()> {
        mount(&["-o", &format!("remount,{how}")], &self.0)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str], path: &Path) -> Result<()> {
    let output = Command::new("mount").args(arguments).arg(path).output()?;
    ensure!(
        output.status.success(),
        "mount: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn a_full_and_a_read_only_disk_are_said_and_harm_no_tunnel() -> Result<()> {
    if !ready(
        "a_full_and_a_read_only_disk_are_said_and_harm_no_tunnel",
        &[],
    ) {
        return Ok(());
    }
    let bed = Testbed::new(Layout {
        second_site: true,
        ..Layout::default()
    })?;
    let disk = Disk::mount(bed.path("disk"), "4m")?;
    let store = disk.0.join("control.db");
    let control = Control::with(&bed, "control", "state.sock", &store)?;
    let mut fleet = Fleet::with(bed, control)?;
    // Unmounted before the directory around it goes.
    let disk = disk;
    fleet.control.process.expect(&["the disk is full"]);
    fleet.dataplane.expect(CONTROL_GONE);
    let load = Load::start(
        &fleet.bed.client,
        internal(),
        "dev",
        2,
        Duration::from_millis(5),
    )?;

    // Reads go on; a write says what is wrong and whose side it is.
    let add = |control: &Control, id: &str| {
        control.call("POST", "/api/clusters", Some(json!({"id": id})))
    };
    disk.fill()?;
    let refusal = (0..200)
        .map(|number| add(&fleet.control, &format!("full-{number}")))
        .find(|answer| answer.as_ref().is_ok_and(|(status, _)| *status >= 500))
        .context("a full disk must refuse a write in the end")??;
    let text = refusal.1.to_string().to_ascii_lowercase();
    println!("full disk: {refusal:?}");
    assert!(text.contains("full") || text.contains("space"), "{text}");
    assert_eq!(fleet.control.call("GET", "/api/clusters", None)?.0, 200);
    disk.empty()?;
    let mut last = None;
    wait_for("writes to work again", Duration::from_secs(10), || {
        last = add(&fleet.control, "again").ok();
        (last.as_ref()?.0 == 201).then_some(())
    })
    .with_context(|| format!("last answer: {last:?}"))?;

    fleet.control.process.kill_9()?;
    disk.remount("ro")?;
    let mut broken = Control::spawn(&fleet.bed, "read-only", "state.sock", &store, &[])?;
    broken.process.expect(&["read-only", "readonly"]);
    let status = broken.process.wait_end(Duration::from_secs(10))?;
    let log = broken.process.log();
    println!(
        "read-only store: {status}: {}",
        log.lines().last().unwrap_or_default()
    );
    assert!(!status.success());
    assert!(
        log.to_ascii_lowercase().contains("read-only") || log.contains("readonly"),
        "{log}"
    );
    assert!(
        log.contains(&*disk.0.to_string_lossy()),
        "the path is named: {log}"
    );
    disk.remount("rw")?;

    fleet.control = Control::with(&fleet.bed, "control-2", "state.sock", &store)?;
    let already = load.tally().answered;
    load.wait_answered(already + 100, Duration::from_secs(10))?;
    let tally = load.finish();
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    Ok(())
}

#[test]
fn a_corrupt_copy_of_the_state_is_refused_by_its_signature() -> Result<()> {
    if !ready(
        "a_corrupt_copy_of_the_state_is_refused_by_its_signature",
        &[],
    ) {
        return Ok(());
    }
    let mut fleet = Fleet::start()?;
    fleet.dev_agent.expect(HUB_GONE);
    fleet.neighbour_agent.expect(HUB_GONE);
    fleet.dataplane.expect(CONTROL_GONE);
    wait_served(&fleet.bed, "dev", Duration::from_secs(5))?;
    fleet.control.process.kill_9()?;
    fleet.dataplane.kill_9()?;
    let mut damaged = 0;
    for entry in std::fs::read_dir(fleet.bed.path("dataplane-state"))? {
        let path = entry?.path();
        if !path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains("snapshot"))
        {
            continue;
        }
        let mut bytes = std::fs::read(&path)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("an empty copy")? ^= 1;
        std::fs::write(&path, bytes)?;
        damaged += 1;
    }
    ensure!(damaged > 0, "no copy of the state on disk");

    let state = fleet
        .bed
        .path("dataplane-state")
        .to_string_lossy()
        .into_owned();
    let link = fleet.control.link.clone();
    let arguments = ["--control", link.as_str(), "--state-dir", &state];
    let mut second = crate::hub::spawn_dataplane(&fleet.bed, "dataplane-2", &arguments)?;
    second.expect(CONTROL_GONE);
    second.expect(&["a copy of the state is not used"]);
    second.wait_until(
        "it says why it refuses",
        Duration::from_secs(10),
        |process| {
            let log = process.log().to_ascii_lowercase();
            (log.contains("signature") && log.contains("snapshot")).then_some(())
        },
    )?;
    // Static, never open: nobody is served from it.
    for _ in 0..20 {
        if let Ok(answer) = client::get(&fleet.bed.client, internal(), "/tunnel/dev/id/x") {
            assert_ne!(answer.status, 200, "served from a copy that nobody signed");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    fleet.control = Control::start(&fleet.bed, "control-2")?;
    let up = wait_served(&fleet.bed, "dev", Duration::from_secs(70))?;
    println!("served {up:?} after control was back");
    Ok(())
}

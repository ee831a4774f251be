//! A control group without controllers: it counts the CPU time of processes that have ended too.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// Removed on drop, when its processes have ended.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one below the mounted cgroup v2; `None` where none is mounted.
    ///
    /// # Errors
    /// No root.
    pub fn new() -> Result<Option<Cgroup>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(root) = mounted() else {
            return Ok(None);
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("cv-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Some(Cgroup { path }))
    }

    /// The process whose id is written here is counted, with its later children.
    pub(super) fn entrance(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Nanoseconds that all its processes have spent on a CPU, ended ones included.
    ///
    /// # Errors
    /// When the kernel says nothing.
    pub fn spent_ns(&self) -> Result<u64> {
        let text = fs::read_to_string(self.path.join("cpu.stat"))?;
        let usage = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .context("no usage_usec in cpu.stat")?;
        Ok(usage.trim().parse::<u64>()? * 1000)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

fn mounted() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| Path::new(at).to_owned())
    })
}

//! CPU time of process trees from `schedstat`, the host's busy time, and how quiet the host is.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Calls of a calibration.
const CALIBRATION_CALLS: u32 = 1_000_000;

/// Nanoseconds that all threads of these processes have spent on a CPU.
///
/// # Errors
/// When one of the processes is gone: its time would be lost.
pub fn spent_ns(pids: &[u32]) -> Result<u64> {
    let mut total = 0;
    for pid in pids {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .with_context(|| format!("process {pid} is gone"))?;
        for task in tasks {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            total += first_number(&text);
        }
    }
    Ok(total)
}

fn first_number(text: &str) -> u64 {
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

/// Whose time a task's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Threads of the first hop.
    Hub,
    /// Threads of the second hop.
    Agent,
    /// io_uring's workers of either.
    IoWorker,
    /// The kernel's own workers.
    Kworker,
    /// Softirqs that did not fit into the context they interrupted.
    Ksoftirqd,
    /// Generator and service.
    Load,
    /// The long path.
    Delayer,
    /// Everybody else.
    Other,
}

/// The time of all tasks of the host at a moment.
pub struct Books(HashMap<u32, (Class, u64)>);

impl Books {
    /// Reads them. The processes of both hops are named, this process is the load.
    ///
    /// # Errors
    /// When a hop's process is gone: its time would be lost.
    pub fn take(hub: &[u32], agent: &[u32]) -> Result<Books> {
        let mut books = HashMap::new();
        for pid in hub.iter().chain(agent) {
            let gone = || format!("process {pid} is gone");
            fs::metadata(format!("/proc/{pid}")).with_context(gone)?;
        }
        for process in fs::read_dir("/proc")? {
            let path = process?.path();
            let Some(pid) = number(&path) else { continue };
            // Processes and threads may end between the listing and the reading.
            let Ok(tasks) = fs::read_dir(path.join("task")) else {
                continue;
            };
            for task in tasks.flatten() {
                let path = task.path();
                let (Some(tid), Ok(spent), Ok(name)) = (
                    number(&path),
                    fs::read_to_string(path.join("schedstat")),
                    fs::read_to_string(path.join("comm")),
                ) else {
                    continue;
                };
                let class = class(pid, &name, hub, agent);
                books.insert(tid, (class, first_number(&spent)));
            }
        }
        Ok(Books(books))
    }

    /// Nanoseconds of a class since `earlier`.
    pub fn since(&self, earlier: &Books, wanted: Class) -> u64 {
        let of = |(tid, (class, spent)): (&u32, &(Class, u64))| {
            let before = earlier.0.get(tid).map_or(0, |(_, spent)| *spent);
            (*class == wanted).then(|| spent.saturating_sub(before))
        };
        self.0.iter().filter_map(of).sum()
    }
}

fn number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

fn class(pid: u32, name: &str, hub: &[u32], agent: &[u32]) -> Class {
    let is_worker = name.starts_with("iou-");
    match name {
        _ if hub.contains(&pid) || agent.contains(&pid) => match is_worker {
            true => Class::IoWorker,
            false if hub.contains(&pid) => Class::Hub,
            false => Class::Agent,
        },
        _ if pid == std::process::id() && name.trim() == "delayer" => Class::Delayer,
        _ if pid == std::process::id() => Class::Load,
        _ if name.starts_with("kworker") => Class::Kworker,
        _ if name.starts_with("ksoftirqd") => Class::Ksoftirqd,
        _ => Class::Other,
    }
}

/// Busy, stolen nanoseconds of the whole host since boot (resolution 10 ms).
///
/// # Errors
/// When `/proc/stat` is not as documented.
pub fn host_ns() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _idle, _wait, irq, softirq, steal, ..] = ticks[..] else {
        anyhow::bail!("/proc/stat: {line}");
    };
    let tick_ns = 10_000_000;
    Ok((
        (user + nice + system + irq + softirq) * tick_ns,
        steal * tick_ns,
    ))
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// When that CPU is not allowed.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("pinning to CPU {cpu}"))
}

/// Nanoseconds of one `getppid` on each of these CPUs; the largest. Higher than the run's best
/// by a tenth means that somebody else was there.
///
/// # Errors
/// When a CPU is not allowed.
pub fn calibrate(cpus: &[usize]) -> Result<f64> {
    let mut worst: f64 = 0.0;
    for cpu in cpus.iter().copied() {
        let taken = std::thread::spawn(move || -> Result<f64> {
            pin(cpu)?;
            let start = Instant::now();
            for _ in 0..CALIBRATION_CALLS {
                std::hint::black_box(rustix::process::getppid());
            }
            Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALIBRATION_CALLS))
        });
        worst = worst.max(taken.join().expect("nothing in it panics")?);
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_this_process_is_seen() {
        let me = [std::process::id()];
        let before = spent_ns(&me).unwrap();
        let start = Instant::now();
        while start.elapsed().as_millis() < 50 {
            std::hint::black_box(start);
        }
        let spent = spent_ns(&me).unwrap() - before;
        assert!(spent > 10_000_000, "{spent} ns");
        assert!(spent_ns(&[u32::MAX]).is_err());
    }

    #[test]
    fn books_tell_the_load_from_the_rest() {
        let before = Books::take(&[], &[]).unwrap();
        let start = Instant::now();
        while start.elapsed().as_millis() < 50 {
            std::hint::black_box(start);
        }
        let after = Books::take(&[], &[]).unwrap();
        assert!(after.since(&before, Class::Load) > 10_000_000);
        assert_eq!(after.since(&before, Class::Hub), 0);
        assert!(Books::take(&[u32::MAX], &[]).is_err());
    }

    #[test]
    fn the_host_has_been_busy() {
        assert!(host_ns().unwrap().0 > 0);
    }
}

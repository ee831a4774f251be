//! What the kernel has counted up to a moment.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cpu::{Books, Class, host_ns};
use crate::lab::Running;
use crate::sample::Sample;
use crate::testbed::{Cgroup, memory_kib};

pub(super) struct Moment {
    pub at: Instant,
    books: Books,
    /// Hub, agent: of their control groups.
    groups_ns: [u64; 2],
    steal_ns: u64,
    hub: Vec<u32>,
    agent: Vec<u32>,
}

impl Moment {
    pub fn take(running: &Running) -> Result<Moment> {
        let (hub, agent) = (running.hub_pids(), running.agent_pids());
        let group = |group: &Option<Cgroup>| group.as_ref().map_or(Ok(0), Cgroup::spent_ns);
        Ok(Moment {
            at: Instant::now(),
            books: Books::take(&hub, &agent)?,
            groups_ns: [group(&running.groups[0])?, group(&running.groups[1])?],
            steal_ns: host_ns()?.1,
            hub,
            agent,
        })
    }

    /// Times since `start`, and memory now. Where children come and go, the groups' times count.
    pub fn since(&self, start: &Moment, forks: bool, sample: &mut Sample) {
        let of = |class| self.books.since(&start.books, class);
        let groups = [0, 1].map(|hop| self.groups_ns[hop] - start.groups_ns[hop]);
        sample.group_ns = groups[0] + groups[1];
        [sample.hub_ns, sample.agent_ns] = if forks && sample.group_ns > 0 {
            groups
        } else {
            [of(Class::Hub), of(Class::Agent)]
        };
        sample.io_worker_ns = of(Class::IoWorker);
        sample.kworker_ns = of(Class::Kworker);
        sample.ksoftirqd_ns = of(Class::Ksoftirqd);
        sample.load_ns = of(Class::Load);
        sample.delayer_ns = of(Class::Delayer);
        sample.other_ns = of(Class::Other);
        sample.steal_ns = self.steal_ns.saturating_sub(start.steal_ns);
        let resident = |pids: &[u32]| {
            let each = pids.iter().filter_map(|pid| memory_kib(*pid, "VmRSS").ok());
            each.sum()
        };
        let proportional = |pids: &[u32]| {
            let path = |pid: &u32| format!("/proc/{pid}/smaps_rollup");
            pids.iter()
                .filter_map(|pid| line_kib(&path(pid), "Pss:").ok())
                .sum()
        };
        (sample.hub_rss_kib, sample.agent_rss_kib) = (resident(&self.hub), resident(&self.agent));
        (sample.hub_pss_kib, sample.agent_pss_kib) =
            (proportional(&self.hub), proportional(&self.agent));
        sample.slab_kib = line_kib("/proc/meminfo", "Slab:").unwrap_or(0);
        sample.sockets_kib = sockets_kib();
    }
}

/// `Name: 123 kB` in a file of the kernel's.
pub(crate) fn line_kib(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    text.lines()
        .find_map(|line| {
            let value = line.strip_prefix(name)?.trim();
            value.strip_suffix("kB")?.trim().parse().ok()
        })
        .with_context(|| format!("no {name} in {path}"))
}

/// Buffers of TCP sockets of the calling thread's namespace; pages of 4 KiB.
fn sockets_kib() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/sockstat").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("TCP:"));
    line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .map_or(0, |pages| pages * 4)
}

//! What the programs themselves cost.

use std::time::Duration;

use crate::observer::Observer;

/// What the kernel counted of one program. The two counters move only while
/// `kernel.bpf_stats_enabled` is 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramStats {
    /// Its name.
    pub program: &'static str,
    /// Its number in the kernel, as `bpftool prog` shows it.
    pub id: u32,
    /// How often it ran.
    pub runs: u64,
    /// How long in all.
    pub run_time: Duration,
    /// Bytes of its instructions after the verifier.
    pub xlated_bytes: u32,
    /// Bytes of its machine code; 0 where it is interpreted.
    pub jited_bytes: u32,
}

impl Observer {
    /// The counters of every program that is loaded: one syscall each.
    pub fn program_stats(&self) -> Vec<ProgramStats> {
        let Some(kernel) = &self.shared.kernel else {
            return Vec::new();
        };
        let programs = kernel.programs.lock();
        let stats = self.report().programs.iter().filter_map(|name| {
            let info = programs.program(name)?.info().ok()?;
            Some(ProgramStats {
                program: name,
                id: info.id(),
                runs: info.run_count(),
                run_time: info.run_time(),
                xlated_bytes: info.size_translated().unwrap_or_default(),
                jited_bytes: info.size_jitted(),
            })
        });
        stats.collect()
    }
}

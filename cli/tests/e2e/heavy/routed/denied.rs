//! io_uring denied by seccomp and by sysctl: the cause is named, and every byte arrives on epoll.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::*;

const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// Refuses io_uring to this thread and to what it starts, as container runtimes do.
fn deny_by_seccomp() -> Result<()> {
    let calls = [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
    ];
    let rules: BTreeMap<_, _> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}

/// Written back when it is dropped.
struct Disabled(String);

impl Disabled {
    fn write() -> Result<Disabled> {
        let before = std::fs::read_to_string(SYSCTL)?;
        std::fs::write(SYSCTL, "2")?;
        Ok(Disabled(before))
    }
}

impl Drop for Disabled {
    fn drop(&mut self) {
        let _ = std::fs::write(SYSCTL, &self.0);
    }
}

fn every_byte_on_epoll(reason: &str) -> Result<()> {
    let rig = rig(&[PLAINTEXT])?;
    let name = format!("culvert_io_backend{{backend=\"epoll\",reason=\"{reason}\"}}");
    assert_eq!(rig.metric(&name)?, 1.0, "{name}");
    let amount = Amount {
        connections: 60,
        bytes: 64 << 20,
        at_once: 32,
        seed: 5,
    };
    let bed = &rig.bed;
    let tally = pattern::run(&bed.client, at_hub(PORT), &bed.site, service(), amount)?;
    println!("{reason}: {tally:?}");
    assert!(rig.metric("culvert_engine_spliced_bytes_total")? > 1e6);
    Ok(())
}

#[test]
fn seccomp_denies_io_uring_and_no_byte_notices() -> Result<()> {
    if !ready("seccomp_denies_io_uring_and_no_byte_notices", &[]) {
        return Ok(());
    }
    deny_by_seccomp()?;
    every_byte_on_epoll("seccomp")
}

/// Alone on the machine (nextest.toml): the switch is the host's.
#[test]
fn sysctl_denies_io_uring_and_no_byte_notices() -> Result<()> {
    if !ready("sysctl_denies_io_uring_and_no_byte_notices", &[]) {
        return Ok(());
    }
    let disabled = Disabled::write()?;
    let result = every_byte_on_epoll("sysctl");
    drop(disabled);
    result
}

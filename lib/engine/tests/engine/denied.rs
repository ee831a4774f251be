//! io_uring denied, in the ways in which hosts deny it: the probe says how, and
//! on epoll everything is as it was.

use std::collections::BTreeMap;

use culvert_engine::{IoEngine, probe};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::integrity::suite;
use crate::rig::{become_nobody, engines, in_a_child, is_root, role};

const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

/// What container runtimes install: `io_uring_setup` fails with EPERM.
fn forbid_io_uring() {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let rules = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    seccompiler::apply_filter_all_threads(&program).unwrap();
}

/// What the others run in processes of their own: the filter stays.
#[test]
#[ignore = "run by the tests below"]
fn on_epoll_as_before() {
    let role = role();
    match role.as_str() {
        "seccomp" => forbid_io_uring(),
        _ => become_nobody(),
    }
    let auto = probe(IoEngine::Auto).unwrap();
    assert_eq!((auto.uring, auto.reason), (false, role.as_str()));
    let required = probe(IoEngine::IoUring).unwrap_err().to_string();
    assert!(required.contains(&role), "{required}");
    let engines = engines();
    assert_eq!(engines.len(), 1, "there is only epoll");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(suite(&role, &engines[0].1));
}

#[test]
fn a_seccomp_filter_is_named_and_epoll_keeps_every_byte() {
    in_a_child("denied::on_epoll_as_before", "seccomp");
}

/// Puts back what the setting was.
struct Setting(String);

impl Setting {
    /// 1 denies everybody without `CAP_SYS_ADMIN` or a group: the tests of other
    /// processes, which this setting of the whole host reaches too, go on.
    fn deny() -> Setting {
        let was = std::fs::read_to_string(DISABLED).unwrap();
        let kept = Setting(was);
        std::fs::write(DISABLED, "1").unwrap();
        kept
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let restored = std::fs::write(DISABLED, self.0.trim());
        assert!(restored.is_ok(), "{DISABLED} was {}", self.0);
    }
}

#[test]
fn the_sysctl_is_named_and_epoll_keeps_every_byte() {
    if !is_root("the_sysctl_is_named_and_epoll_keeps_every_byte") {
        return;
    }
    let _setting = Setting::deny();
    in_a_child("denied::on_epoll_as_before", "sysctl");
}

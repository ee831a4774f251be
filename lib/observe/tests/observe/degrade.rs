//! Each condition that keeps the tier down, brought about for real.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use culvert_observe::{Leg, Mode, Observer, Reason, Settings, Tier, Traced};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::load::{accept_all, attach, clear_flags};
use crate::rig::{
    GRANTED, Rows, alone, child, has_traces_and_accounts, in_a_child, is_root, limit, parent,
    passed, role, small, started,
};

/// Commands of bpf(2).
const MAP_CREATE: u64 = 0;
const PROG_LOAD: u64 = 5;
const LINK_CREATE: u64 = 28;
/// `BPF_CGROUP_INET_EGRESS` and `BPF_CGROUP_SOCK_OPS`.
const EGRESS: u32 = 1;
const SOCK_OPS: u32 = 3;
const ALLOW_MULTI: u32 = 2;

#[test]
#[ignore = "run by the tests below"]
fn degraded() {
    alone(degraded_alone);
}

fn degraded_alone() {
    let role = role();
    let (tier, reason, granted) = match role.as_str() {
        "off" => (Tier::TcpInfo, Reason::Disabled, false),
        "old" => (Tier::TcpInfo, Reason::KernelTooOld, false),
        "unmounted" => (Tier::TcpInfo, Reason::NoCgroup2, false),
        "seccomp" | "user namespace" => (Tier::TcpInfo, Reason::BpfDenied, true),
        "memory" | "memory limit" => (Tier::TcpInfo, Reason::MapCreate, true),
        "load" | "link" | "single sockops" => (Tier::TcpInfo, Reason::SockopsAttach, true),
        "single egress" => (Tier::Sockops, Reason::SkbAttach, true),
        "elsewhere" | "cleared" => (Tier::TcpInfo, Reason::SelfTest, true),
        other => panic!("{other}"),
    };
    prepare(&role);
    limit(GRANTED);
    let mode = match role.as_str() {
        "off" => Mode::Off,
        _ => Mode::Auto,
    };
    let clusters_max = match role.as_str() {
        "memory limit" => LIMITED_CLUSTERS,
        _ => small().clusters_max,
    };
    let observer = started(&Settings {
        mode,
        clusters_max,
        ..small()
    });
    let report = observer.report();
    assert_eq!(
        (report.tier, report.reason),
        (tier, Some(reason)),
        "{report:#?}"
    );
    assert_eq!(report.is_warning(), granted, "{report}");
    let line = report.to_string();
    assert!(line.contains(&format!("tier={tier}")), "{line}");
    assert!(line.contains(&format!(" reason={reason}")), "{line}");
    assert!(
        line.contains(" fix=\"") && line.lines().count() == 1,
        "{line}"
    );
    if reason == Reason::SkbAttach || reason == Reason::SockopsAttach {
        let failure = report.failures.first().unwrap();
        assert!(line.contains(failure.program), "{line}");
        assert!(
            report
                .checks
                .iter()
                .any(|it| matches!(&it.outcome, Some(Err(why)) if why.contains(failure.program)))
        );
    }
    works_all_the_same(&observer);
}

/// Bytes and calls do not notice.
fn works_all_the_same(observer: &Observer) {
    let mut rows = Rows::v4(observer);
    let cluster = observer.cluster("any");
    let mut row = rows.row(cluster);
    let slot = rows.join(&row, cluster, Default::default());
    assert!(slot.is_none(), "nothing measures residence");
    row.pass_to_service(b"there", Default::default());
    row.pass_to_client(b"and back", Default::default());
    let stat = observer.stat(std::os::fd::AsFd::as_fd(&row.near));
    assert_eq!(stat.is_some(), observer.tier() == Tier::Sockops);
    assert_eq!(observer.tag_failures(), []);
    observer.sweep();
    drop(row);
    let reading = observer.read();
    for cluster in reading.clusters() {
        assert_eq!(
            cluster.legs().filter(|(_, cnt)| cnt.rx_bytes > 0).count(),
            0
        );
    }
    assert!(observer.begin_trace(Traced::All).is_err());
    let closes = observer.closes().count();
    assert_eq!(closes > 0, observer.tier() == Tier::Sockops);
}

/// Brings the condition about.
fn prepare(role: &str) {
    match role {
        "unmounted" => {
            private_mounts();
            while let Some(point) = cgroup2() {
                rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
            }
        }
        "user namespace" => unshare(UnshareFlags::NEWUSER),
        "seccomp" => refuse(Vec::new(), libc::EPERM),
        // The first, tiny map has a shorter attribute than those that aya makes.
        "memory" => {
            let is_long = condition(2, SeccompCmpOp::Gt, 20);
            refuse(vec![command(MAP_CREATE), is_long], libc::ENOMEM);
        }
        "memory limit" => enter_limited(&limited(role, parent())),
        "load" => refuse(vec![command(PROG_LOAD)], libc::EACCES),
        "link" => refuse(vec![command(LINK_CREATE)], libc::EPERM),
        "single sockops" => Nested::under(role, &accept_all(SOCK_OPS), SOCK_OPS, 0),
        "single egress" => Nested::under(role, &accept_all(EGRESS), EGRESS, 0),
        "cleared" => Nested::under(role, &clear_flags(), SOCK_OPS, ALLOW_MULTI),
        "elsewhere" => Nested::seen_as_another(role),
        _ => {}
    }
}

/// Their histograms alone take 64 MiB.
const LIMITED_CLUSTERS: u16 = 8_192;
/// Enough for the process, too little for that.
const LIMIT_BYTES: &str = "41943040";

/// A memory cgroup of the child of the test process `of`, and the name of its limit.
fn limited(role: &str, of: u32) -> (PathBuf, &'static str) {
    let name = format!("culvert-test-{}-{of}", role.replace(' ', "-"));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let first = mounts.lines().find(|line| {
        let (_, source) = line.split_once(" - ").unwrap_or_default();
        source.starts_with("cgroup ") && source.split([' ', ',']).any(|it| it == "memory")
    });
    match first.and_then(|line| line.split(' ').nth(4)) {
        Some(point) => (PathBuf::from(point).join(name), "memory.limit_in_bytes"),
        None => {
            let root = cgroup2().unwrap();
            // Where it is on already, this changes nothing.
            let _ = std::fs::write(root.join("cgroup.subtree_control"), "+memory");
            (root.join(name), "memory.max")
        }
    }
}

fn enter_limited((dir, limit): &(PathBuf, &str)) {
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join(limit), LIMIT_BYTES).unwrap();
    std::fs::write(dir.join("cgroup.procs"), "0").unwrap();
}

fn command(number: u64) -> SeccompCondition {
    condition(0, SeccompCmpOp::Eq, number)
}

fn condition(argument: u8, op: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).unwrap()
}

/// bpf(2) with these arguments fails from now on.
fn refuse(conditions: Vec<SeccompCondition>, errno: libc::c_int) {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let rules = match conditions.is_empty() {
        true => Vec::new(),
        false => vec![SeccompRule::new(conditions).unwrap()],
    };
    let rules = BTreeMap::from([(libc::SYS_bpf, rules)]);
    let refused = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

fn unshare(what: UnshareFlags) {
    // SAFETY: this process has one thread, and shares no file descriptors with another.
    unsafe { rustix::thread::unshare_unsafe(what) }.unwrap();
}

fn private_mounts() {
    unshare(UnshareFlags::NEWNS);
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Where a cgroup2 is mounted.
fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(line.split(' ').nth(4)?.into())
}

/// A cgroup of this test, below another of its own. The parent process takes both away.
struct Nested {
    top: PathBuf,
}

impl Nested {
    /// Of the test process `of`.
    fn path(role: &str, of: u32) -> PathBuf {
        let name = format!("culvert-test-{}-{of}", role.replace(' ', "-"));
        cgroup2().unwrap().join(name)
    }

    /// Makes both and moves this process into the lower one.
    fn enter(role: &str) -> Self {
        let top = Self::path(role, parent());
        let nested = Self { top };
        std::fs::create_dir_all(nested.below()).unwrap();
        std::fs::write(nested.below().join("cgroup.procs"), "0").unwrap();
        nested
    }

    fn below(&self) -> PathBuf {
        self.top.join("below")
    }

    /// Whose parent holds a program of others.
    fn under(role: &str, program: &OwnedFd, attach_type: u32, flags: u32) {
        let nested = Self::enter(role);
        let parent = std::fs::File::open(&nested.top).unwrap();
        attach(&parent, program, attach_type, flags);
    }

    /// Whose path shows another cgroup, as when a process is moved after it looked.
    fn seen_as_another(role: &str) {
        let nested = Self::enter(role);
        let other = nested.top.join("other");
        std::fs::create_dir(&other).unwrap();
        private_mounts();
        rustix::mount::mount_bind(&other, nested.below()).unwrap();
    }
}

impl Drop for TakenAway {
    fn drop(&mut self) {
        let Self(top) = self;
        for dir in [top.join("below"), top.join("other"), top.clone()] {
            if dir.exists() {
                std::fs::remove_dir(dir).unwrap();
            }
        }
    }
}

/// The cgroups of a child that ended.
struct TakenAway(PathBuf);

fn degrades(test: &str, role: &str) {
    if is_root(test) {
        let _after = TakenAway(Nested::path(role, std::process::id()));
        in_a_child("degrade::degraded", role);
    }
}

#[test]
fn off_touches_nothing() {
    degrades("off_touches_nothing", "off");
}

#[test]
fn an_old_kernel_is_named() {
    if !is_root("an_old_kernel_is_named") {
        return;
    }
    let name = "degrade::degraded";
    let plain = child(name, "old");
    let mut old = std::process::Command::new("setarch");
    old.arg("--uname-2.6")
        .arg(plain.get_program())
        .args(plain.get_args());
    old.envs(
        plain
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    passed(name, "old", old);
}

#[test]
fn without_cgroup2_there_is_nothing_to_link_to() {
    degrades("without_cgroup2_there_is_nothing_to_link_to", "unmounted");
}

#[test]
fn a_seccomp_filter_on_bpf_is_named() {
    degrades("a_seccomp_filter_on_bpf_is_named", "seccomp");
}

#[test]
fn a_capability_in_a_user_namespace_is_none_for_bpf() {
    let test = "a_capability_in_a_user_namespace_is_none_for_bpf";
    degrades(test, "user namespace");
}

#[test]
fn maps_that_find_no_memory_are_named() {
    let (test, role) = ("maps_that_find_no_memory_are_named", "memory limit");
    let _after = TakenAway(limited(role, std::process::id()).0);
    if has_traces_and_accounts() {
        degrades(test, role);
    }
    degrades(test, "memory");
}

#[test]
fn a_program_that_cannot_be_loaded_or_linked_is_named() {
    for role in ["load", "link"] {
        degrades("a_program_that_cannot_be_loaded_or_linked_is_named", role);
    }
}

#[test]
fn a_program_of_others_that_allows_none_beside_it_costs_the_tier_that_it_blocks() {
    let test = "a_program_of_others_that_allows_none_beside_it_costs_the_tier_that_it_blocks";
    for role in ["single sockops", "single egress"] {
        degrades(test, role);
    }
}

#[test]
fn a_process_outside_the_linked_cgroup_is_found_by_the_self_test() {
    degrades(
        "a_process_outside_the_linked_cgroup_is_found_by_the_self_test",
        "elsewhere",
    );
}

#[test]
fn a_program_of_others_that_takes_our_callbacks_away_is_found_by_the_self_test() {
    let test = "a_program_of_others_that_takes_our_callbacks_away_is_found_by_the_self_test";
    degrades(test, "cleared");
}

#[test]
#[ignore = "run by the test below"]
fn without_loopback() {
    alone(without_loopback_alone);
}

fn without_loopback_alone() {
    unshare(UnshareFlags::NEWNET);
    limit(GRANTED);
    let observer = started(&small());
    let report = observer.report();
    let self_test = (Tier::TcpInfo, Some(Reason::SelfTest));
    assert_eq!((report.tier, report.reason), self_test);
    let detail = report.detail.as_deref().unwrap();
    assert!(
        detail.contains("the relay of the self-test failed"),
        "{detail}"
    );
}

#[test]
fn a_self_test_that_cannot_run_proves_nothing() {
    if is_root("a_self_test_that_cannot_run_proves_nothing") {
        in_a_child("degrade::without_loopback", "");
    }
}

#[test]
#[ignore = "run by the test below"]
fn broken_object() {
    alone(broken_object_alone);
}

fn broken_object_alone() {
    let built_in = crate::load::BUILT_IN;
    let patched = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = built_in.to_vec();
        change(&mut bytes);
        bytes
    };
    let role = role();
    let (bytes, said) = match role.as_str() {
        "missing" => (Vec::new(), "missing"),
        "truncated" => (built_in[..built_in.len() / 2].to_vec(), "damaged"),
        "head" => (built_in[..100].to_vec(), "damaged"),
        "garbage" => (vec![0x5a; 4_096], "damaged"),
        "version" => (
            patched(&crate::load::next_version),
            "of the records, and this program version",
        ),
        // EI_DATA of the ELF header.
        "endianness" => (patched(&|it| it[5] = 2), "big-endian"),
        "machine" => (std::fs::read("/proc/self/exe").unwrap(), "X86_64"),
        other => panic!("{other}"),
    };
    limit(GRANTED);
    let observer = started(&Settings {
        object: Some(Cow::Owned(bytes)),
        ..small()
    });
    let report = observer.report();
    assert_eq!(
        (report.tier, report.reason),
        (Tier::TcpInfo, Some(Reason::Object))
    );
    let detail = report.detail.as_deref().unwrap();
    assert!(detail.contains(said), "{detail}");
    assert!(report.is_warning());
    observer.listener(std::os::fd::AsFd::as_fd(&std::io::stdin()), Leg::Client);
    assert_eq!(observer.tag_failures(), []);
}

#[test]
fn a_broken_object_is_refused_before_the_kernel_sees_it() {
    if !is_root("a_broken_object_is_refused_before_the_kernel_sees_it") {
        return;
    }
    for role in [
        "missing",
        "truncated",
        "head",
        "garbage",
        "version",
        "endianness",
    ] {
        in_a_child("degrade::broken_object", role);
    }
    if cfg!(target_arch = "x86_64") {
        in_a_child("degrade::broken_object", "machine");
    }
}

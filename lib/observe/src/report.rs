//! What came of the start, for people and for metrics.

use std::fmt;

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::caps::{self, Caps};
use crate::settings::{Mode, Tier};
use crate::tier::Reason;

/// A step of the start, as `culvert check` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was tried.
    pub what: &'static str,
    /// How it went; nothing when an earlier step stood in its way.
    pub outcome: Option<Result<(), String>>,
}

/// A program that could not be loaded or linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub program: &'static str,
    /// `load` or `link`.
    pub step: &'static str,
    /// What the kernel said.
    pub errno: Errno,
    /// The same at length, with the end of the verifier's own words.
    pub text: String,
}

/// Whether trace programs stand ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// Nobody asked.
    NotRequested,
    /// These can be linked.
    Ready(Vec<&'static str>),
    /// In one word or sentence, why not.
    Unavailable(String),
}

/// What came of the start.
#[derive(Debug, Clone)]
pub struct Report {
    /// What runs.
    pub tier: Tier,
    /// What was asked for.
    pub requested: Mode,
    /// The highest tier that was asked for.
    pub tier_max: Tier,
    /// Why it is less, or what is not as it should be.
    pub reason: Option<Reason>,
    /// The reason's particulars, in words.
    pub detail: Option<String>,
    /// Capabilities that were needed and not granted.
    pub missing: CapabilitySet,
    /// Release of the running kernel.
    pub kernel: String,
    /// The cgroup whose sockets are observed.
    pub cgroup: Option<String>,
    /// Programs in the kernel, trace programs included.
    pub programs: Vec<&'static str>,
    /// Memory of the maps, by their layout.
    pub maps_bytes: u64,
    /// What became of the capabilities.
    pub caps: Caps,
    /// The trace programs.
    pub trace: Trace,
    /// Programs that failed.
    pub failures: Vec<Failure>,
    /// Every step, for `culvert check`.
    pub checks: Vec<Check>,
}

impl Report {
    /// Of an observer that was never started.
    pub fn absent(reason: Reason) -> Self {
        Self {
            tier: Tier::TcpInfo,
            requested: Mode::Off,
            tier_max: Tier::TcpInfo,
            reason: Some(reason),
            detail: None,
            missing: CapabilitySet::empty(),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            cgroup: None,
            programs: Vec::new(),
            maps_bytes: 0,
            caps: Caps::Untouched,
            trace: Trace::NotRequested,
            failures: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// Where the figures come from: the value of label `source`.
    pub fn source(&self) -> &'static str {
        match self.tier {
            Tier::TcpInfo => "tcp_info",
            Tier::Sockops | Tier::Skb => "kernel",
        }
    }

    /// The reason's word, or nothing.
    pub fn reason_name(&self) -> &'static str {
        self.reason.map_or("", Reason::name)
    }

    /// What an operator can do about the reason.
    pub fn fix(&self) -> Option<&'static str> {
        let refused = self.failures.iter().any(|it| it.step == "load");
        match self.reason? {
            Reason::SockopsAttach | Reason::SkbAttach if refused => {
                Some("report this line with the kernel's release: its verifier refused a program")
            }
            reason => Some(reason.fix()),
        }
    }

    /// Whether the log line is a warning: something was granted and failed all the same, or
    /// capabilities are left that should be gone.
    pub fn is_warning(&self) -> bool {
        self.reason.is_some_and(|reason| !reason.is_expected())
            || matches!(self.caps, Caps::Stuck(_) | Caps::ThisThreadOnly(_))
    }

    /// Whether the tier is the one that was asked for.
    pub fn is_whole(&self) -> bool {
        self.tier >= self.tier_max
    }
}

/// The one log line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ebpf observer: tier={} requested={}",
            self.tier, self.requested
        )?;
        if let Some(reason) = self.reason {
            write!(f, " reason={reason}")?;
        }
        if !self.missing.is_empty() {
            write!(f, " missing={}", caps::names(self.missing))?;
        }
        for failure in &self.failures {
            let Failure {
                program,
                step,
                errno: why,
                ..
            } = failure;
            write!(f, " failed={program}:{step}:{}", errno(*why))?;
        }
        if let Some(detail) = &self.detail {
            write!(f, " detail={detail:?}")?;
        }
        if let Some(fix) = self.fix() {
            write!(f, " fix={fix:?}")?;
        }
        if self.tier == Tier::TcpInfo && self.reason.is_some_and(Reason::is_expected) {
            return Ok(());
        }
        write!(f, " kernel={}", self.kernel)?;
        if let Some(cgroup) = &self.cgroup {
            write!(f, " cgroup={cgroup}")?;
        }
        let (programs, bytes) = (self.programs.len(), self.maps_bytes);
        write!(
            f,
            " programs={programs} maps_bytes={bytes} caps={}",
            self.caps
        )
    }
}

/// The name of an error number, such as `EPERM`.
pub fn errno(errno: Errno) -> String {
    let known = [
        (Errno::PERM, "EPERM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::BADF, "EBADF"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::TOOBIG, "E2BIG"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::NOTSOCK, "ENOTSOCK"),
        (Errno::NOTSUP, "ENOTSUP"),
        (Errno::MFILE, "EMFILE"),
        (Errno::NFILE, "ENFILE"),
        (Errno::INTR, "EINTR"),
        (Errno::FAULT, "EFAULT"),
        (Errno::RANGE, "ERANGE"),
    ];
    let name = known.iter().find(|(number, _)| *number == errno);
    name.map_or_else(
        || format!("E{}", errno.raw_os_error()),
        |(_, name)| (*name).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Report {
        Report {
            tier: Tier::Skb,
            requested: Mode::Auto,
            tier_max: Tier::Skb,
            reason: None,
            kernel: "6.18.44".to_owned(),
            cgroup: Some("/".to_owned()),
            programs: vec!["cv_sockops", "cv_in", "cv_out"],
            maps_bytes: 23_072_768,
            caps: Caps::Dropped,
            ..Report::absent(Reason::Disabled)
        }
    }

    #[test]
    fn all_is_well_in_one_line() {
        assert_eq!(
            well().to_string(),
            "ebpf observer: tier=skb requested=auto kernel=6.18.44 cgroup=/ programs=3 \
             maps_bytes=23072768 caps=dropped"
        );
        assert!(!well().is_warning());
    }

    #[test]
    fn nothing_granted_is_no_warning_and_says_what_to_do() {
        let report = Report {
            tier: Tier::TcpInfo,
            reason: Some(Reason::MissingCapability),
            missing: caps::NEEDED,
            ..well()
        };
        assert_eq!(
            report.to_string(),
            "ebpf observer: tier=tcp_info requested=auto reason=missing_capability \
             missing=cap_bpf,cap_net_admin fix=\"set ebpf.capabilities=true\""
        );
        assert!(!report.is_warning());
    }

    #[test]
    fn granted_and_failed_is_a_warning_that_names_program_and_errno() {
        let report = Report {
            tier: Tier::Sockops,
            reason: Some(Reason::SkbAttach),
            failures: vec![Failure {
                program: "cv_in",
                step: "link",
                errno: Errno::PERM,
                text: String::new(),
            }],
            ..well()
        };
        let line = report.to_string();
        assert!(
            line.contains("tier=sockops requested=auto reason=skb_attach failed=cv_in:link:EPERM")
        );
        assert!(
            line.contains("fix=\"") && line.ends_with("caps=dropped"),
            "{line}"
        );
        assert!(report.is_warning());
        assert!(line.contains("bpftool cgroup tree"), "{line}");
        let mut refused = report;
        refused.failures[0].step = "load";
        assert!(
            refused.to_string().contains("its verifier refused"),
            "{refused}"
        );
    }

    #[test]
    fn error_numbers_have_names_or_stay_numbers() {
        assert_eq!(errno(Errno::PERM), "EPERM");
        assert_eq!(errno(Errno::from_raw_os_error(133)), "E133");
    }
}

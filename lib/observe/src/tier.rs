//! Which tier a host permits. Pure: what was found in, verdict out.

use std::fmt;

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::settings::{Mode, Tier};

/// Lowest kernel: bpf_link is of 5.7, `CAP_BPF` and the ring of 5.8; 5.10 is the first long-lived one.
pub const KERNEL_MIN: Kernel = Kernel(5, 10);

/// Version of a kernel, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(pub u32, pub u32);

impl Kernel {
    /// From a release such as `6.18.44-fc`; what cannot be read is 0.
    pub fn of_release(release: &str) -> Self {
        let mut parts = release.split(|it: char| !it.is_ascii_digit());
        let mut next = || parts.next().and_then(|it| it.parse().ok()).unwrap_or(0);
        Self(next(), next())
    }
}

/// Why the tier is below what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The mode is off.
    Disabled,
    /// Before 5.10.
    KernelTooOld,
    /// No cgroup2 that this process can see itself in.
    NoCgroup2,
    /// `CAP_BPF` or `CAP_NET_ADMIN` was not granted.
    MissingCapability,
    /// The object is missing, broken, or of another version or byte order.
    Object,
    /// bpf(2) is refused although the capability is there.
    BpfDenied,
    /// A map could not be made.
    MapCreate,
    /// `cv_sockops` could not be loaded or linked.
    SockopsAttach,
    /// `cv_in` or `cv_out` could not be loaded or linked.
    SkbAttach,
    /// Loaded, linked, and yet the kernel did not tell what it should.
    SelfTest,
    /// The tier is whole, but `CAP_BPF` had to stay.
    CapsKept,
}

impl Reason {
    /// Every reason, in the order in which they are looked for.
    pub const ALL: [Self; 11] = [
        Self::Disabled,
        Self::KernelTooOld,
        Self::NoCgroup2,
        Self::MissingCapability,
        Self::Object,
        Self::BpfDenied,
        Self::MapCreate,
        Self::SockopsAttach,
        Self::SkbAttach,
        Self::SelfTest,
        Self::CapsKept,
    ];

    /// One word, for the log and the metric.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::KernelTooOld => "kernel_too_old",
            Self::NoCgroup2 => "no_cgroup2",
            Self::MissingCapability => "missing_capability",
            Self::Object => "object",
            Self::BpfDenied => "bpf_denied",
            Self::MapCreate => "map_create",
            Self::SockopsAttach => "sockops_attach",
            Self::SkbAttach => "skb_attach",
            Self::SelfTest => "self_test",
            Self::CapsKept => "caps_kept",
        }
    }

    /// What an operator can do about it.
    pub fn fix(self) -> &'static str {
        match self {
            Self::Disabled => "set ebpf.mode=auto",
            Self::KernelTooOld => "run on Linux 5.10 or later",
            Self::NoCgroup2 => "mount cgroup2 where the process sees its own cgroup",
            Self::MissingCapability => "set ebpf.capabilities=true",
            Self::Object => {
                "install the program anew: its eBPF object is damaged or of another version"
            }
            Self::BpfDenied => {
                "allow bpf(2) in the seccomp profile, and no user namespace (hostUsers: true)"
            }
            Self::MapCreate => {
                "raise the memory limit by 22 MiB; below Linux 5.11 also RLIMIT_MEMLOCK"
            }
            Self::SockopsAttach | Self::SkbAttach => {
                "look for programs attached without BPF_F_ALLOW_MULTI to a parent cgroup (bpftool cgroup tree)"
            }
            Self::SelfTest => {
                "look for other sock_ops programs, and for cgroup v1 net_cls or net_prio"
            }
            Self::CapsKept => {
                "run on Linux 5.19 or later, or set kernel.unprivileged_bpf_disabled=0"
            }
        }
    }

    /// Whether nothing was granted, so that nothing failed either.
    pub fn is_expected(self) -> bool {
        matches!(
            self,
            Self::Disabled | Self::KernelTooOld | Self::NoCgroup2 | Self::MissingCapability
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the self-test saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proof {
    /// A listener's identity reached its accepted child.
    pub clone: bool,
    /// An RTT was measured.
    pub rtt: bool,
    /// Both ends left a close record.
    pub closes: bool,
    /// The kernel counted the bytes that were moved.
    pub bytes: bool,
    /// A residence was measured.
    pub residence: bool,
}

impl Proof {
    /// The highest tier whose facts were all there.
    pub fn tier(self) -> Tier {
        match (
            self.clone && self.rtt && self.closes,
            self.bytes && self.residence,
        ) {
            (false, _) => Tier::TcpInfo,
            (true, false) => Tier::Sockops,
            (true, true) => Tier::Skb,
        }
    }

    /// What was missing, in words, for `tier`.
    pub fn missing(self, tier: Tier) -> Vec<&'static str> {
        let facts = [
            (self.clone, Tier::Sockops, "identity of an accepted socket"),
            (self.rtt, Tier::Sockops, "RTT callback"),
            (self.closes, Tier::Sockops, "two close records"),
            (self.bytes, Tier::Skb, "equal bytes"),
            (self.residence, Tier::Skb, "residence sample"),
        ];
        let absent = facts.iter().filter(|(seen, of, _)| !seen && *of <= tier);
        absent.map(|(_, _, what)| *what).collect()
    }
}

/// What was found, step by step. A step that was not reached stays `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What was asked for.
    pub mode: Mode,
    /// The highest tier that was asked for.
    pub tier_max: Tier,
    /// The running kernel.
    pub kernel: Kernel,
    /// Whether the own cgroup2 could be opened.
    pub cgroup: Option<Result<(), Errno>>,
    /// Needed and not permitted.
    pub missing: CapabilitySet,
    /// Whether the object is one that this program understands.
    pub object: Option<bool>,
    /// A first, tiny use of bpf(2).
    pub bpf: Option<Result<(), Errno>>,
    /// All maps.
    pub maps: Option<Result<(), Errno>>,
    /// `cv_sockops`, loaded and linked.
    pub sockops: Option<Result<(), Errno>>,
    /// `cv_in` and `cv_out`, loaded and linked.
    pub skb: Option<Result<(), Errno>>,
    /// The self-test.
    pub proof: Option<Proof>,
    /// Whether identities can be written with no capability in effect.
    pub unprivileged: Option<bool>,
}

impl Found {
    /// Nothing yet.
    pub fn new(mode: Mode, tier_max: Tier, kernel: Kernel) -> Self {
        Self {
            mode,
            tier_max,
            kernel,
            cgroup: None,
            missing: CapabilitySet::empty(),
            object: None,
            bpf: None,
            maps: None,
            sockops: None,
            skb: None,
            proof: None,
            unprivileged: None,
        }
    }

    /// The first condition that keeps the tier down, if one does. Steps that were not reached do
    /// not count, so this also tells whether to go on.
    pub fn reason(&self) -> Option<Reason> {
        let failed = |step: Option<Result<(), Errno>>| matches!(step, Some(Err(_)));
        let wanted = self.tier_max;
        let proven = self.proof.map(Proof::tier);
        let conditions = [
            (self.mode == Mode::Off, Reason::Disabled),
            (self.kernel < KERNEL_MIN, Reason::KernelTooOld),
            (failed(self.cgroup), Reason::NoCgroup2),
            (!self.missing.is_empty(), Reason::MissingCapability),
            (self.object == Some(false), Reason::Object),
            (failed(self.bpf), Reason::BpfDenied),
            (failed(self.maps), Reason::MapCreate),
            (failed(self.sockops), Reason::SockopsAttach),
            (failed(self.skb) && wanted >= Tier::Skb, Reason::SkbAttach),
            (
                proven.is_some_and(|proven| proven < wanted),
                Reason::SelfTest,
            ),
            (self.unprivileged == Some(false), Reason::CapsKept),
        ];
        let met = conditions.iter().find(|(met, _)| *met);
        met.map(|(_, reason)| *reason)
    }

    /// The tier that remains.
    pub fn tier(&self) -> Tier {
        let proven = self.proof.map_or(Tier::TcpInfo, Proof::tier);
        let linked = match (self.sockops, self.skb) {
            (Some(Ok(())), Some(Ok(()))) => Tier::Skb,
            (Some(Ok(())), _) => Tier::Sockops,
            _ => Tier::TcpInfo,
        };
        let attempted = match self.reason() {
            None | Some(Reason::SkbAttach | Reason::SelfTest | Reason::CapsKept) => self.tier_max,
            Some(_) => Tier::TcpInfo,
        };
        attempted.min(linked).min(proven)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Proof = Proof {
        clone: true,
        rtt: true,
        closes: true,
        bytes: true,
        residence: true,
    };

    /// A host on which everything works.
    fn well() -> Found {
        Found {
            cgroup: Some(Ok(())),
            object: Some(true),
            bpf: Some(Ok(())),
            maps: Some(Ok(())),
            sockops: Some(Ok(())),
            skb: Some(Ok(())),
            proof: Some(WHOLE),
            unprivileged: Some(true),
            ..Found::new(Mode::Auto, Tier::Skb, Kernel(6, 18))
        }
    }

    type Change = fn(&mut Found);

    /// Every row of the table of conditions, in its order.
    const ROWS: [(Change, Tier, Reason); 13] = [
        (|it| it.mode = Mode::Off, Tier::TcpInfo, Reason::Disabled),
        (
            |it| it.kernel = Kernel(5, 9),
            Tier::TcpInfo,
            Reason::KernelTooOld,
        ),
        (
            |it| it.cgroup = Some(Err(Errno::NOENT)),
            Tier::TcpInfo,
            Reason::NoCgroup2,
        ),
        (
            |it| it.missing = CapabilitySet::BPF,
            Tier::TcpInfo,
            Reason::MissingCapability,
        ),
        (|it| it.object = Some(false), Tier::TcpInfo, Reason::Object),
        (
            |it| it.bpf = Some(Err(Errno::PERM)),
            Tier::TcpInfo,
            Reason::BpfDenied,
        ),
        (
            |it| it.maps = Some(Err(Errno::NOMEM)),
            Tier::TcpInfo,
            Reason::MapCreate,
        ),
        (
            |it| it.sockops = Some(Err(Errno::PERM)),
            Tier::TcpInfo,
            Reason::SockopsAttach,
        ),
        (
            |it| it.skb = Some(Err(Errno::PERM)),
            Tier::Sockops,
            Reason::SkbAttach,
        ),
        (
            |it| {
                it.proof = Some(Proof {
                    residence: false,
                    ..WHOLE
                });
            },
            Tier::Sockops,
            Reason::SelfTest,
        ),
        (
            |it| {
                it.proof = Some(Proof {
                    bytes: false,
                    ..WHOLE
                });
            },
            Tier::Sockops,
            Reason::SelfTest,
        ),
        (
            |it| {
                it.proof = Some(Proof {
                    rtt: false,
                    ..WHOLE
                });
            },
            Tier::TcpInfo,
            Reason::SelfTest,
        ),
        (
            |it| it.unprivileged = Some(false),
            Tier::Skb,
            Reason::CapsKept,
        ),
    ];

    #[test]
    fn each_condition_gives_its_tier_and_reason() {
        for (change, tier, reason) in ROWS {
            let mut found = well();
            change(&mut found);
            assert_eq!(
                (found.tier(), found.reason()),
                (tier, Some(reason)),
                "{found:?}"
            );
        }
        assert_eq!((well().tier(), well().reason()), (Tier::Skb, None));
    }

    #[test]
    fn the_first_condition_wins() {
        for (first, row) in ROWS.iter().enumerate() {
            let mut found = well();
            // Those after it and itself, last first, so that the first one also has the last word.
            for (change, ..) in ROWS[first..].iter().rev() {
                change(&mut found);
            }
            assert_eq!(found.reason(), Some(row.2), "{found:?}");
        }
    }

    #[test]
    fn a_lower_wish_is_met_by_a_lower_tier() {
        let mut found = well();
        found.tier_max = Tier::Sockops;
        found.skb = None;
        found.proof = Some(Proof {
            bytes: false,
            residence: false,
            ..WHOLE
        });
        assert_eq!((found.tier(), found.reason()), (Tier::Sockops, None));
    }

    #[test]
    fn skb_that_could_not_be_linked_is_never_claimed() {
        let mut found = well();
        found.skb = Some(Err(Errno::PERM));
        found.proof = Some(Proof {
            clone: false,
            ..WHOLE
        });
        assert_eq!(found.tier(), Tier::TcpInfo);
        assert_eq!(found.reason(), Some(Reason::SkbAttach), "the first one");
    }

    #[test]
    fn releases_are_read_and_what_cannot_be_read_is_too_old() {
        assert_eq!(Kernel::of_release("6.18.44-fc-v657"), Kernel(6, 18));
        assert_eq!(Kernel::of_release("5.10.0"), KERNEL_MIN);
        assert_eq!(Kernel::of_release("5.4.302-1.el8"), Kernel(5, 4));
        assert_eq!(Kernel::of_release("7"), Kernel(7, 0));
        assert!(Kernel::of_release("unknown") < KERNEL_MIN);
    }

    #[test]
    fn what_the_self_test_missed_is_named_for_the_tier_alone() {
        let none = Proof::default();
        assert_eq!(none.missing(Tier::Sockops).len(), 3);
        assert_eq!(none.missing(Tier::Skb).len(), 5);
        assert_eq!(WHOLE.missing(Tier::Skb), [""; 0]);
    }

    #[test]
    fn every_reason_has_a_word_of_its_own_and_something_to_do() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|it| it.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|it| !it.fix().is_empty()));
    }
}

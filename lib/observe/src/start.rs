//! The start: probe, load, link, prove, and give the capabilities up.

use std::os::fd::AsFd as _;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;

use crate::caps::{Caps, Grant, NEEDED};
use crate::cgroup::{self, Cgroup};
use crate::kernel::Kernel;
use crate::load::{self, NoMaps};
use crate::object;
use crate::observer::Observer;
use crate::report::{Check, Report, Trace, errno};
use crate::selftest;
use crate::settings::{Mode, Settings, Tier};
use crate::tier::{Found, KERNEL_MIN, Kernel as Version};

/// The observer was required, and there is none.
#[derive(Debug, thiserror::Error)]
#[error("ebpf.mode=require: this host gives tier {tier}, not {wanted} ({reason}{detail}): {fix}; or set ebpf.mode=auto", tier = report.tier, wanted = report.tier_max, reason = report.reason_name(), detail = particulars(report), fix = report.fix().unwrap_or_default())]
pub struct ObserveError {
    /// All that is known.
    pub report: Box<Report>,
}

fn particulars(report: &Report) -> String {
    let missing = match report.missing.is_empty() {
        true => String::new(),
        false => format!(", without {}", crate::caps::names(report.missing)),
    };
    let failures = report.failures.iter().map(|it| {
        let (program, step) = (it.program, it.step);
        format!(", {program} {step} {}: {}", errno(it.errno), it.text)
    });
    let detail = report.detail.iter().map(|it| format!(", {it}"));
    missing + &failures.chain(detail).collect::<String>()
}

/// Starts the observer. To be called on the main thread, before any other thread exists and any
/// socket is made: capabilities are given up for this thread alone, and those that it starts later.
///
/// # Errors
/// When it is required and this host does not give the tier that was asked for.
pub fn start(settings: &Settings) -> Result<Observer, ObserveError> {
    let mut start = Start::new(settings);
    let kernel = start.climb();
    let grant = Grant::read();
    let caps = match settings.mode {
        Mode::Off => Caps::Untouched,
        Mode::Auto | Mode::Require => start.drop_capabilities(&grant, kernel.as_ref()),
    };
    let report = start.report(caps);
    if settings.mode == Mode::Require && !report.is_whole() {
        let report = Box::new(report);
        return Err(ObserveError { report });
    }
    // Below its tier, a program has no right to run.
    let kernel = kernel.filter(|_| report.tier > Tier::TcpInfo);
    Ok(Observer::new(report, kernel, settings.cluster_rows()))
}

struct Start<'a> {
    settings: &'a Settings,
    found: Found,
    release: String,
    cgroup: Option<Cgroup>,
    detail: Option<String>,
    trace: Trace,
    failures: Vec<crate::report::Failure>,
}

impl<'a> Start<'a> {
    fn new(settings: &'a Settings) -> Self {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let version = Version::of_release(&release);
        Self {
            settings,
            found: Found::new(settings.mode, settings.tier_max, version),
            release,
            cgroup: None,
            detail: None,
            // Until it is more: whatever ends the way up before the trace programs keeps them away.
            trace: match settings.trace {
                true => Trace::Unavailable("tier below skb".to_owned()),
                false => Trace::NotRequested,
            },
            failures: Vec::new(),
        }
    }

    /// Goes up as far as this host permits.
    fn climb(&mut self) -> Option<Kernel> {
        self.proceed()?;
        self.find_cgroup();
        self.proceed()?;
        let grant = Grant::read();
        self.found.missing = grant.missing(NEEDED);
        self.proceed()?;
        let object = self.check_object()?;
        self.raise(&grant);
        self.proceed()?;
        let mut programs = match load::maps(&object, self.settings) {
            Ok(programs) => {
                self.found.maps = Some(Ok(()));
                programs
            }
            Err(NoMaps::Object(why)) => {
                self.found.object = Some(false);
                self.detail = Some(why);
                return None;
            }
            Err(NoMaps::Refused(errno, why)) => {
                self.found.maps = Some(Err(errno));
                self.detail = Some(why);
                return None;
            }
        };
        self.link(&mut programs)?;
        let kernel = match Kernel::new(programs, self.settings) {
            Ok(kernel) => kernel,
            Err(why) => {
                self.found.object = Some(false);
                self.detail = Some(why);
                return None;
            }
        };
        self.prove(&kernel);
        Some(kernel)
    }

    /// Nothing, once a condition is met that ends the way up.
    fn proceed(&self) -> Option<()> {
        self.found.reason().is_none().then_some(())
    }

    fn find_cgroup(&mut self) {
        match cgroup::open() {
            Ok(cgroup) => {
                self.found.cgroup = Some(Ok(()));
                self.cgroup = Some(cgroup);
            }
            Err(why) => {
                let errno = Errno::from_io_error(&why).unwrap_or(Errno::NOENT);
                self.found.cgroup = Some(Err(errno));
                self.detail = Some(why.to_string());
            }
        }
    }

    fn check_object(&mut self) -> Option<std::borrow::Cow<'static, [u8]>> {
        let object = self.settings.object.clone();
        let object = object.unwrap_or_else(|| object::BUILT_IN.into());
        match object::check(&object) {
            Ok(()) => {
                self.found.object = Some(true);
                Some(object)
            }
            Err(why) => {
                self.found.object = Some(false);
                self.detail = Some(why.to_string());
                None
            }
        }
    }

    /// Puts exactly what is needed into effect, and tries bpf(2) with it.
    fn raise(&mut self, grant: &Grant) {
        let mut wanted = NEEDED;
        if self.settings.trace {
            wanted |= CapabilitySet::PERFMON;
        }
        // Before 5.11, maps count against a limit that is low everywhere.
        if self.found.kernel < Version(5, 11) {
            wanted |= CapabilitySet::SYS_RESOURCE;
        }
        let raised = grant.raise(wanted);
        if self.found.kernel < Version(5, 11) {
            lift_locked_memory();
        }
        self.found.bpf = Some(raised.and_then(|()| crate::sys::probe()));
        if let Some(Err(why)) = self.found.bpf {
            self.detail = Some(format!("bpf(2): {}", errno(why)));
        }
    }

    /// Loads and links what the tier has. Nothing when not even the first program runs.
    fn link(&mut self, programs: &mut aya::Ebpf) -> Option<()> {
        let cgroup = self.cgroup.as_ref()?.dir.as_fd();
        let sockops = load::sockops(programs, cgroup);
        self.found.sockops = Some(sockops.as_ref().copied().map_err(|why| why.errno));
        self.failures.extend(sockops.err());
        self.proceed()?;
        if self.settings.tier_max >= Tier::Skb {
            let skb = load::skb(programs, cgroup);
            self.found.skb = Some(skb.as_ref().copied().map_err(|why| why.errno));
            self.failures.extend(skb.err());
        }
        if self.settings.trace {
            self.load_trace(programs);
        }
        Some(())
    }

    fn load_trace(&mut self, programs: &mut aya::Ebpf) {
        self.trace = match self.found.skb {
            Some(Ok(())) if Grant::read().missing(CapabilitySet::PERFMON).is_empty() => {
                let (trace, failures) = load::trace(programs);
                self.failures.extend(failures);
                trace
            }
            Some(Ok(())) => Trace::Unavailable("missing cap_perfmon".to_owned()),
            _ => Trace::Unavailable("tier below skb".to_owned()),
        };
    }

    fn prove(&mut self, kernel: &Kernel) {
        let wanted = match self.found.skb {
            Some(Ok(())) => Tier::Skb,
            _ => Tier::Sockops,
        };
        let proof = selftest::run(kernel, wanted).unwrap_or_else(|why| {
            self.detail = Some(format!("the relay of the self-test failed: {why}"));
            crate::tier::Proof::default()
        });
        self.found.proof = Some(proof);
        let missing = proof.missing(wanted);
        if !missing.is_empty() && self.detail.is_none() {
            self.detail = Some(format!("not seen: {}", missing.join(", ")));
        }
        if self.found.tier() < Tier::Skb {
            load::unload_skb(&mut kernel.programs.lock());
        }
    }

    fn drop_capabilities(&mut self, grant: &Grant, kernel: Option<&Kernel>) -> Caps {
        let keep = match self.settings.keep_net_bind {
            true => CapabilitySet::NET_BIND_SERVICE,
            false => CapabilitySet::empty(),
        };
        // A tier without programs tags nothing, and needs nothing for it.
        let kernel = kernel.filter(|_| self.found.tier() > Tier::TcpInfo);
        let mut unprivileged = None;
        let caps = grant.drop(keep, || {
            let works = kernel.is_none_or(|kernel| selftest::tags(kernel).is_ok());
            unprivileged = kernel.map(|_| works);
            works
        });
        self.found.unprivileged = unprivileged;
        caps
    }

    fn report(self, caps: Caps) -> Report {
        let tier = self.found.tier();
        let checks = self.checks();
        let mut programs = Vec::new();
        if tier >= Tier::Sockops {
            programs.push(culvert_abi::maps::SOCK_OPS);
        }
        if tier >= Tier::Skb {
            programs.extend([culvert_abi::maps::INGRESS, culvert_abi::maps::EGRESS]);
        }
        let trace = match (tier, self.trace) {
            (Tier::TcpInfo | Tier::Sockops, Trace::Ready(_)) => {
                Trace::Unavailable("tier below skb".to_owned())
            }
            (_, trace) => trace,
        };
        if let Trace::Ready(ready) = &trace {
            programs.extend(ready);
        }
        Report {
            tier,
            requested: self.settings.mode,
            tier_max: self.settings.tier_max,
            reason: self.found.reason(),
            detail: self.detail,
            missing: self.found.missing,
            kernel: self.release,
            cgroup: self.cgroup.map(|it| it.path),
            programs,
            maps_bytes: match tier {
                Tier::TcpInfo => 0,
                Tier::Sockops | Tier::Skb => load::maps_bytes(self.settings),
            },
            caps,
            trace,
            failures: self.failures,
            checks,
        }
    }

    /// Each step in words.
    fn checks(&self) -> Vec<Check> {
        let found = &self.found;
        let step = |outcome: Option<Result<(), Errno>>| {
            outcome.map(|it| it.map_err(|why| self.text_of(why)))
        };
        let told = |is: bool, why: &dyn Fn() -> String| Some(if is { Ok(()) } else { Err(why()) });
        let is_on = found.mode != Mode::Off;
        let reached = |outcome: Option<Result<(), String>>| outcome.filter(|_| is_on);
        let detail = || self.detail.clone().unwrap_or_default();
        let missing = || format!("missing {}", crate::caps::names(found.missing));
        let granted = found.cgroup.filter(Result::is_ok);
        let trace = match &self.trace {
            Trace::NotRequested => None,
            Trace::Ready(_) => Some(Ok(())),
            Trace::Unavailable(why) => Some(Err(why.clone())),
        };
        let check = |what, outcome| Check { what, outcome };
        vec![
            check(
                "kernel 5.10 or later",
                reached(told(found.kernel >= KERNEL_MIN, &|| self.release.clone())),
            ),
            check("own cgroup2 visible", step(found.cgroup)),
            check(
                "CAP_BPF and CAP_NET_ADMIN",
                granted.and_then(|_| told(found.missing.is_empty(), &missing)),
            ),
            check("eBPF object", found.object.and_then(|is| told(is, &detail))),
            check("bpf(2)", step(found.bpf)),
            check("maps", step(found.maps)),
            check("cv_sockops loaded and linked", step(found.sockops)),
            check("cv_in and cv_out loaded and linked", step(found.skb)),
            check("trace programs loaded", trace),
            check(
                "self-test",
                found
                    .proof
                    .and_then(|it| told(it.tier() >= found.tier_max, &detail)),
            ),
            check(
                "tags without capability",
                found
                    .unprivileged
                    .and_then(|it| told(it, &|| "CAP_BPF kept".to_owned())),
            ),
        ]
    }

    fn text_of(&self, why: Errno) -> String {
        let failure = self.failures.iter().find(|it| it.errno == why);
        match (failure, &self.detail) {
            (Some(failure), _) => format!("{} {}: {}", failure.program, failure.step, failure.text),
            (None, Some(detail)) => format!("{}: {detail}", errno(why)),
            (None, None) => errno(why),
        }
    }
}

fn lift_locked_memory() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        // Without the capability, up to the hard limit.
        let mut limit = getrlimit(Resource::Memlock);
        limit.current = limit.maximum;
        let _ = setrlimit(Resource::Memlock, limit);
    }
}

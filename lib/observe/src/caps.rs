//! The capabilities of this thread: which there are, which are in effect, and how they go.
//!
//! capset(2) acts on one thread, so all of this runs on the main thread before another exists.

use std::fmt;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What every tier above `tcp_info` needs.
pub const NEEDED: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN);
/// The highest capability number that Linux has had so far, with room.
const NUMBERS: u32 = 64;

/// What became of the capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caps {
    /// Nothing was touched.
    Untouched,
    /// All are gone, for this thread and those that it starts.
    Dropped,
    /// All are gone but these.
    Kept(CapabilitySet),
    /// They could not be given up.
    Stuck(Errno),
    /// So many other threads were there already and keep what they have: the start came too late.
    ThisThreadOnly(usize),
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untouched => f.write_str("untouched"),
            Self::Dropped => f.write_str("dropped"),
            Self::Kept(kept) => write!(f, "kept:{}", names(*kept)),
            Self::Stuck(why) => write!(f, "stuck:{}", crate::report::errno(*why)),
            Self::ThisThreadOnly(others) => write!(f, "this_thread_only:{others}"),
        }
    }
}

/// The sets of this thread.
pub struct Grant {
    sets: CapabilitySets,
}

impl Grant {
    /// As they are now. A kernel that does not say grants nothing.
    pub fn read() -> Self {
        let none = CapabilitySet::empty();
        let sets = capabilities(None).unwrap_or(CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        });
        Self { sets }
    }

    /// Of `wanted`, what is not permitted.
    pub fn missing(&self, wanted: CapabilitySet) -> CapabilitySet {
        wanted.difference(self.sets.permitted)
    }

    /// Puts exactly `wanted` into effect, as far as it is permitted: root meets the rules of an
    /// ordinary user then, such as those of the verifier.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn raise(&self, wanted: CapabilitySet) -> Result<(), Errno> {
        let effective = wanted.intersection(self.sets.permitted);
        let sets = CapabilitySets {
            effective,
            ..self.sets
        };
        set_capabilities(None, sets)
    }

    /// Gives up everything but `keep`. `is_enough` is asked with nothing in effect: whether the
    /// observer can do without `CAP_BPF`, too. Kernels before 5.19 may want it for every bpf(2).
    pub fn drop(&self, keep: CapabilitySet, is_enough: impl FnOnce() -> bool) -> Caps {
        match self.try_drop(keep, is_enough) {
            Ok(_) if other_threads() > 0 => Caps::ThisThreadOnly(other_threads()),
            Ok(kept) if kept.is_empty() => Caps::Dropped,
            Ok(kept) => Caps::Kept(kept),
            Err(why) => Caps::Stuck(why),
        }
    }

    fn try_drop(
        &self,
        keep: CapabilitySet,
        is_enough: impl FnOnce() -> bool,
    ) -> Result<CapabilitySet, Errno> {
        let held = self.sets.permitted;
        let keep = keep.intersection(held);
        // An old kernel has no ambient set, and then nothing to clear.
        let _ = clear_ambient_capability_set();
        if held.contains(CapabilitySet::SETPCAP) {
            self.raise(CapabilitySet::SETPCAP)?;
            for bit in (0..NUMBERS).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
                if !keep.intersects(bit) {
                    // Numbers that this kernel does not have are refused.
                    let _ = remove_capability_from_bounding_set(bit);
                }
            }
        }
        self.raise(CapabilitySet::empty())?;
        let kept = match is_enough() {
            true => keep,
            false => keep.union(CapabilitySet::BPF.intersection(held)),
        };
        set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
        )?;
        set_no_new_privs(true)?;
        Ok(kept)
    }
}

fn other_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task");
    tasks.map_or(0, |tasks| tasks.count().saturating_sub(1))
}

/// Names as the manual has them, in lower case and order.
pub fn names(set: CapabilitySet) -> String {
    let name = |(name, _): (&str, _)| format!("cap_{}", name.to_ascii_lowercase());
    let mut names: Vec<_> = set.iter_names().map(name).collect();
    names.sort_unstable();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_as_the_manual_names_them() {
        assert_eq!(names(NEEDED), "cap_bpf,cap_net_admin");
        assert_eq!(names(CapabilitySet::empty()), "");
        let kept = Caps::Kept(CapabilitySet::NET_BIND_SERVICE);
        assert_eq!(kept.to_string(), "kept:cap_net_bind_service");
        assert_eq!(Caps::Stuck(Errno::PERM).to_string(), "stuck:EPERM");
    }

    #[test]
    fn a_start_that_comes_after_other_threads_says_so() {
        // The harness has a thread beside that of this test.
        let caps = Grant::read().drop(CapabilitySet::empty(), || true);
        assert!(matches!(caps, Caps::ThisThreadOnly(1..)), "{caps}");
    }
}

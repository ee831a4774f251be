//! The eBPF observer, user side.
//!
//! Programs in the kernel measure every connection of this process, whichever way its bytes move.
//! This crate loads them, tells them whose socket is whose, and reads what they measured. Bytes
//! never wait for it, and where the host permits nothing, every call is there and does nothing.
//!
//! The only home of aya.
#![deny(unsafe_code)]

mod caps;
mod cgroup;
mod closes;
mod clusters;
mod kernel;
mod load;
mod mapped;
mod object;
mod observer;
mod reading;
mod reasons;
mod report;
mod selftest;
mod settings;
mod slots;
mod start;
mod stats;
mod sys;
mod tier;
mod trace;

pub use caps::{Caps, names as capability_names};
pub use closes::Closes;
pub use clusters::{ClusterIndex, FIXED as FIXED_CLUSTERS};
pub use culvert_abi::{Close, CloseKind, Cnt, Ident, Kind, Leg, Own, Role, Stat, bucket};
pub use kernel::Residence;
pub use observer::{ConnId, Observer, Offsets, Slot, Tag, TagFailure, monotonic_ns};
pub use reading::{ClusterReading, Histogram, Reading, Unsampled};
pub use report::{Check, Failure, Report, Trace, errno};
pub use settings::{Mode, Settings, Tier};
pub use slots::{SlotCounts, SlotId};
pub use start::{ObserveError, start};
pub use stats::ProgramStats;
pub use tier::{Proof, Reason};
pub use trace::{Mark, TraceError, Traced, Tracing};

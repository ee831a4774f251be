//! Round-trip times: each round that the kernel measures is the connection's, and one in four goes
//! into the distribution once there are many.

use aya_ebpf::bindings::bpf_sock_ops;
use culvert_abi::{Ident, Kind, Stat, thin};

use super::cells::write;
use super::maps::sample;
use crate::memory::read;

const NS_PER_US: u64 = 1_000;

/// The kernel measured a round trip.
#[inline(always)]
pub fn measured(ops: *mut bpf_sock_ops, ident: *mut Ident, stat: *mut Stat) {
    // Before 6.10 the sample is not handed over; the mean before it stands in.
    let mut us = read!(ops, __bindgen_anon_1.args[0]);
    if us == 0 {
        us = read!(ops, srtt_us) >> 3;
    }
    if us == 0 {
        return;
    }
    let least = read!(stat, rtt_min_us);
    if least == 0 || us < least {
        write!(stat, rtt_min_us, us);
    }
    write!(
        stat,
        rtt_sum_us,
        read!(stat, rtt_sum_us).wrapping_add(u64::from(us))
    );
    let nth = read!(stat, rtt_n);
    write!(stat, rtt_n, nth.wrapping_add(1));
    if !thin::takes(nth) {
        return;
    }
    let kind = Kind::rtt(read!(ident, leg));
    sample(read!(ident, cluster), kind, u64::from(us) * NS_PER_US);
}

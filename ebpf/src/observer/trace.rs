//! On demand: how long payload waits to be read, and why resets are sent. The hooks are those
//! of the whole host; sockets that are not ours cost a lookup.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::BtfTracePointContext;
use culvert_abi::{Ident, Kind, Stat, keys, ticks};

use super::cells::write;
use super::maps::{IDENT, STAT, count_cell, sample};
use super::time::now_ns;
use crate::memory::read;

/// Payload came: remembers when, unless older payload waits already.
#[inline(always)]
pub fn arrived(ident: *mut Ident, stat: *mut Stat, now: u64) {
    if read!(ident, flags) & Ident::TRACE != 0 && read!(stat, q_arm) == 0 {
        // 0 is "nothing waits": the lowest bit is given up for it.
        write!(stat, q_arm, short_tick(now) | 1);
    }
}

/// The process read from a socket.
#[inline(always)]
pub fn was_read(ctx: &BtfTracePointContext) {
    let sk: *mut bpf_sock = ctx.arg(0);
    let Some(ident) = IDENT.get(sk) else { return };
    let Some(stat) = STAT.get(sk) else { return };
    let since = read!(stat, q_arm);
    if since == 0 {
        return;
    }
    write!(stat, q_arm, 0);
    let waited = short_tick(now_ns()).wrapping_sub(since);
    // The bit that was given up may put the arrival a tick ahead.
    let waited = if waited == u32::MAX { 0 } else { waited };
    let ns = u64::from(waited) * ticks::TICK_NS;
    sample(read!(ident, cluster), Kind::RxWait as u32, ns);
}

/// Wraps after four minutes; who reads later than that is measured modulo them.
#[inline(always)]
fn short_tick(ns: u64) -> u32 {
    (ticks::of_ns(ns) & 0xffff_ffff) as u32
}

/// A reset was sent for a socket of ours.
#[inline(always)]
pub fn was_reset(ctx: &BtfTracePointContext, reason: u32) {
    let sk: *mut bpf_sock = ctx.arg(0);
    if sk.is_null() {
        return;
    }
    let Some(ident) = IDENT.get(sk) else { return };
    count_cell(keys::reset_cell(read!(ident, leg), reason));
}

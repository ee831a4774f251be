//! On demand: how long payload waits to be read, and why resets are sent. The hooks are those
//! of the whole host; sockets that are not ours cost a lookup.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::BtfTracePointContext;
use culvert_abi::{Ident, Kind, Stat, keys, ticks, wait};

use super::cells::write;
use super::maps::{IDENT, STAT, count_cell, sample};
use super::time::now_ns;
use crate::memory::read;

/// Payload came: remembers when, unless older payload waits already.
#[inline(always)]
pub fn arrived(ident: *mut Ident, stat: *mut Stat) {
    let mark = Ident::traced_by(read!(ident, flags));
    if mark != 0 && wait::mark(read!(stat, q_arm)) != mark {
        write!(stat, q_arm, wait::pack(mark, ticks::of_ns(now_ns())));
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
    // What an earlier trace left waiting was read while nobody looked.
    if wait::mark(since) != Ident::traced_by(read!(ident, flags)) {
        return;
    }
    let waited = wait::ticks(since, ticks::of_ns(now_ns()));
    let ns = u64::from(waited) * ticks::TICK_NS;
    sample(read!(ident, cluster), Kind::RxWait as u32, ns);
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

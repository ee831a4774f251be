//! Programs for the tests alone: one shows what the parser reads, one loses packets.
#![expect(unsafe_code, reason = "helper calls")]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros hand contexts over"
)]

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::{cgroup_skb, classifier, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::{SkBuffContext, TcContext};

use crate::memory::read;
use crate::parse::packet;

/// Kind, sequence number, payload.
#[map]
static PARSED: Array<u64> = Array::with_max_entries(3, 0);
/// Packets that were lost; how many in a thousand are to be; the length from which they are.
#[map]
static LOSS: Array<u64> = Array::with_max_entries(3, 0);

#[cgroup_skb]
pub fn test_parse(ctx: SkBuffContext) -> i32 {
    let packet = packet(ctx.skb.skb);
    let _ = PARSED.set(0, u64::from(packet.kind), 0);
    let _ = PARSED.set(1, u64::from(packet.sequence), 0);
    let _ = PARSED.set(2, u64::from(packet.payload), 0);
    1
}

/// Loses packets on their way in.
#[classifier]
pub fn test_lose(ctx: TcContext) -> i32 {
    let [lost, per_mille, least] = [0, 1, 2].map(|at| LOSS.get(at).copied().unwrap_or_default());
    // SAFETY: the helper takes nothing.
    let dice = u64::from(unsafe { bpf_get_prandom_u32() } % 1_000);
    if u64::from(read!(ctx.skb.skb, len)) < least || dice >= per_mille {
        return TC_ACT_OK;
    }
    let _ = LOSS.set(0, lost + 1, 0);
    TC_ACT_SHOT
}

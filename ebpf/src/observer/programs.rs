//! The entry points.
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros hand contexts over"
)]

use aya_ebpf::macros::{btf_tracepoint, cgroup_skb, sock_ops};
use aya_ebpf::programs::{BtfTracePointContext, SkBuffContext, SockOpsContext};
use culvert_abi::keys::RESET_UNKNOWN;

use super::{conn, residence, trace};

/// Go on, as if no program were there.
const GO_ON: i32 = 1;

#[sock_ops]
pub fn cv_sockops(ctx: SockOpsContext) -> u32 {
    conn::event(ctx.ops);
    GO_ON.cast_unsigned()
}

#[cgroup_skb(ingress)]
pub fn cv_in(ctx: SkBuffContext) -> i32 {
    residence::ingress(ctx.skb.skb);
    GO_ON
}

#[cgroup_skb(egress)]
pub fn cv_out(ctx: SkBuffContext) -> i32 {
    residence::egress(ctx.skb.skb);
    GO_ON
}

#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn tr_rcvspace(ctx: BtfTracePointContext) -> i32 {
    trace::was_read(&ctx);
    0
}

/// The reason is there from 6.10; before, this is refused and `tr_sendrst_old` serves.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tr_sendrst(ctx: BtfTracePointContext) -> i32 {
    trace::was_reset(&ctx, ctx.arg(2));
    0
}

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tr_sendrst_old(ctx: BtfTracePointContext) -> i32 {
    trace::was_reset(&ctx, RESET_UNKNOWN);
    0
}

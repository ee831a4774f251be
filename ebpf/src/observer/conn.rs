//! The life of a connection: handshake, retransmissions, end.
#![expect(unsafe_code, reason = "helper calls")]

use aya_ebpf::bindings::{
    BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE,
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING,
    BPF_TCP_ESTABLISHED, BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_TIME_WAIT,
    bpf_sock_ops,
};
use aya_ebpf::helpers::bpf_sock_ops_cb_flags_set;
use culvert_abi::{Close, CloseKind, Ident, Own, Stat, VERSION, offset};

use super::cells::{add, write};
use super::maps::{CLOSE, IDENT, STAT, count, counters};
use super::rtt;
use super::time::now_ns;
use crate::memory::read;

/// Timeouts, retransmissions, changes of state and round trips.
const CALLBACKS: u32 = 0xf;

/// Something happened to a socket of the cgroup.
#[inline(always)]
pub fn event(ops: *mut bpf_sock_ops) {
    let op = read!(ops, op);
    let opens = op == BPF_SOCK_OPS_TCP_CONNECT_CB
        || op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
    let lives = op == BPF_SOCK_OPS_RTT_CB
        || op == BPF_SOCK_OPS_STATE_CB
        || op == BPF_SOCK_OPS_RETRANS_CB
        || op == BPF_SOCK_OPS_RTO_CB;
    // Every other one may come for a request that is no socket yet.
    if !opens && !lives {
        return;
    }
    let sk = read!(ops, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    let Some(ident) = IDENT.get(sk) else { return };
    if opens {
        match STAT.create(sk) {
            Some(stat) => opened(ops, op, stat),
            None => count(Own::StatFailed),
        }
        return;
    }
    let Some(stat) = STAT.get(sk) else { return };
    if op == BPF_SOCK_OPS_RTT_CB {
        rtt::measured(ops, ident, stat);
    } else if op == BPF_SOCK_OPS_STATE_CB {
        state_changed(ops, ident, stat);
    } else if op == BPF_SOCK_OPS_RETRANS_CB {
        retransmitted(ops, ident, stat);
    } else {
        timed_out(ops, ident, stat);
    }
}

/// A connect began, or a handshake is complete; no payload has been seen.
#[inline(always)]
fn opened(ops: *mut bpf_sock_ops, op: u32, stat: *mut Stat) {
    let now = now_ns();
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        write!(stat, t_conn, now);
    } else {
        write!(stat, t_est, now);
        write!(stat, rx_base, read!(ops, rcv_nxt));
        write!(stat, tx_base, read!(ops, snd_nxt));
        write!(stat, flags, read!(stat, flags) | Stat::BASE | Stat::EST);
    }
    let flags = read!(ops, bpf_sock_ops_cb_flags) | CALLBACKS;
    // SAFETY: the helper takes this context and flags; the others in the cgroup keep theirs.
    unsafe { bpf_sock_ops_cb_flags_set(ops, flags.cast_signed()) };
}

#[inline(always)]
fn timed_out(ops: *mut bpf_sock_ops, ident: *mut Ident, stat: *mut Stat) {
    write!(stat, rto, read!(stat, rto).wrapping_add(1));
    write!(stat, rto_high, read!(ops, snd_nxt));
    if let Some(cnt) = counters(ident) {
        add!(cnt, rto_events, 1);
    }
}

#[inline(always)]
fn retransmitted(ops: *mut bpf_sock_ops, ident: *mut Ident, stat: *mut Stat) {
    let sequence = read!(ops, __bindgen_anon_1.args[0]);
    let segments = read!(ops, __bindgen_anon_1.args[1]);
    let error = read!(ops, __bindgen_anon_1.args[2]);
    if error != 0 {
        return;
    }
    write!(stat, retrans, read!(stat, retrans).wrapping_add(segments));
    let Some(cnt) = counters(ident) else { return };
    add!(cnt, retrans, u64::from(segments));
    // What was in flight at a timeout is sent again because of it.
    let before = read!(stat, rto_high).wrapping_sub(sequence);
    if read!(stat, rto) > 0 && before.cast_signed() > 0 {
        add!(cnt, retrans_rto, u64::from(segments));
    }
}

#[inline(always)]
fn state_changed(ops: *mut bpf_sock_ops, ident: *mut Ident, stat: *mut Stat) {
    let old = read!(ops, __bindgen_anon_1.args[0]);
    let new = read!(ops, __bindgen_anon_1.args[1]);
    let mut flags = read!(stat, flags);
    if old == BPF_TCP_ESTABLISHED && new == BPF_TCP_FIN_WAIT1 {
        flags |= Stat::LOCAL_FIN;
    }
    if old == BPF_TCP_ESTABLISHED && new == BPF_TCP_CLOSE_WAIT {
        flags |= Stat::REMOTE_FIN;
    }
    let closes = new == BPF_TCP_CLOSE && flags & Stat::CLOSED == 0;
    if closes {
        flags |= Stat::CLOSED;
    }
    write!(stat, flags, flags);
    if closes {
        closed(ops, ident, stat, old);
    }
}

/// The last event of a connection: counts what is left and writes the record.
#[inline(always)]
fn closed(ops: *mut bpf_sock_ops, ident: *mut Ident, stat: *mut Stat, old: u32) {
    let rx_end = read!(stat, rx_end);
    // In the first of these states it may have come, in the others it has.
    let fin = old == BPF_TCP_FIN_WAIT2
        || old == BPF_TCP_CLOSE_WAIT
        || old == BPF_TCP_LAST_ACK
        || old == BPF_TCP_CLOSING
        || old == BPF_TCP_TIME_WAIT;
    let rx_bytes = offset::received(read!(ops, bytes_received), rx_end, fin);
    if let Some(cnt) = counters(ident) {
        add!(cnt, closes, 1);
        let counted = read!(stat, rx_counted);
        // Where packets are seen at all, the kernel's count also has those that were missed.
        if rx_end > 0 && rx_bytes > counted {
            add!(cnt, rx_bytes, rx_bytes - counted);
            write!(stat, rx_counted, rx_bytes);
        }
    }
    let Some(mut entry) = CLOSE.reserve::<Close>(0) else {
        count(Own::ClosesLost);
        return;
    };
    let record = entry.as_mut_ptr();
    copy(record, ident, stat);
    write!(record, t_close, now_ns());
    write!(record, rx_bytes, rx_bytes);
    write!(record, total_retrans, read!(ops, total_retrans));
    write!(record, srtt_us, read!(ops, srtt_us) >> 3);
    write!(
        record,
        unacked,
        read!(ops, snd_nxt).wrapping_sub(read!(ops, snd_una))
    );
    // Fourteen states.
    write!(record, old_state, (old & 0xff) as u8);
    // A reader that looks four times a second is woken only when the ring fills.
    let filled = CLOSE.query(u64::from(BPF_RB_AVAIL_DATA));
    let wakes = filled > CLOSE.query(u64::from(BPF_RB_RING_SIZE)) / 4;
    let how = if wakes {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    entry.submit(u64::from(how));
}

/// What the record takes over as it is.
#[inline(always)]
fn copy(record: *mut Close, ident: *mut Ident, stat: *mut Stat) {
    write!(record, conn_id, read!(ident, conn_id));
    write!(record, cluster, read!(ident, cluster));
    write!(record, leg, read!(ident, leg));
    write!(record, role, read!(ident, role));
    write!(record, t_conn, read!(stat, t_conn));
    write!(record, t_est, read!(stat, t_est));
    write!(record, t_first_rx, read!(stat, t_first_rx));
    write!(record, t_first_tx, read!(stat, t_first_tx));
    write!(record, tx_bytes, read!(stat, tx_end));
    write!(record, rtt_sum_us, read!(stat, rtt_sum_us));
    write!(record, rtt_min_us, read!(stat, rtt_min_us));
    write!(record, rtt_n, read!(stat, rtt_n));
    write!(record, retrans, read!(stat, retrans));
    write!(record, rto, read!(stat, rto));
    write!(record, res_ewma, read!(stat, res_ewma));
    write!(record, res_max, read!(stat, res_max));
    write!(record, res_n, read!(stat, res_n));
    let flags = read!(stat, flags);
    write!(record, flags, flags);
    write!(record, kind, kind(flags) as u8);
    write!(record, version, VERSION);
}

#[inline(always)]
fn kind(flags: u16) -> CloseKind {
    if flags & Stat::LOCAL_FIN != 0 {
        return CloseKind::LocalFin;
    }
    if flags & Stat::REMOTE_FIN != 0 {
        return CloseKind::RemoteFin;
    }
    if flags & Stat::EST != 0 {
        return CloseKind::Abort;
    }
    CloseKind::NeverConnected
}

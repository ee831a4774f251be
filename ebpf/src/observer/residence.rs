//! How long a byte is inside: from the packet that brings it in on one socket to the packet
//! that takes it out on the other.
#![expect(unsafe_code, reason = "helper calls")]

use aya_ebpf::bindings::{__sk_buff, bpf_sock, bpf_tcp_sock};
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_tcp_sock};
use culvert_abi::{Cnt, Ident, Kind, Own, Pair, Stat, arm, lane, offset, thin, ticks};

use super::cells::{add, load, store, write};
use super::maps::{IDENT, STAT, count, counters, lanes, pair, sample};
use super::time::now_ns;
use super::trace;
use crate::memory::read;
use crate::parse::{self, Packet};

/// A tagged socket and what is known of it.
struct Tagged {
    sk: *mut bpf_sock,
    ident: *mut Ident,
    stat: *mut Stat,
}

/// A packet comes in. Not under the socket's lock: two CPUs may be here for one socket, so
/// nothing that must be exact is counted.
#[inline(always)]
pub fn ingress(skb: *mut __sk_buff) {
    let packet = parse::packet(skb);
    if packet.kind == parse::OTHER || (packet.kind == parse::TCP && packet.payload == 0) {
        return;
    }
    let Some(to) = tagged(skb) else { return };
    if !is_ours(&to, packet) {
        return;
    }
    let start = offset::end(packet.sequence, 0, read!(to.stat, rx_base));
    let end = start.wrapping_add(packet.payload);
    let before = read!(to.stat, rx_end);
    let ahead = offset::advance(before, end);
    if ahead == 0 {
        return;
    }
    write!(to.stat, rx_end, before + u64::from(ahead));
    if before == 0 {
        write!(to.stat, t_first_rx, now_ns());
    }
    if let Some(cnt) = counters(to.ident) {
        add!(cnt, rx_skbs, 1);
    }
    trace::arrived(to.ident, to.stat);
    if !in_hole(&to, before, start, end) {
        arm_sample(&to, before, packet.payload);
    }
}

/// Whether payload is missing: what waits for the sender's repair is not our residence.
#[inline(always)]
fn in_hole(to: &Tagged, before: u64, start: u32, end: u32) -> bool {
    let mut until = read!(to.stat, hole_end);
    if offset::leaves_hole(before, start) {
        // 0 is "no hole": a hole that ends just there is filled a byte later.
        until = if end == 0 { 1 } else { end };
        write!(to.stat, hole_end, until);
    }
    if until == 0 {
        return false;
    }
    let Some(tcp) = tcp_of(to.sk) else {
        return true;
    };
    let next = read!(tcp, rcv_nxt).wrapping_sub(read!(to.stat, rx_base));
    if offset::is_filled(next, until) {
        write!(to.stat, hole_end, 0);
        return false;
    }
    count(Own::Hole);
    true
}

/// Remembers the first new byte, unless one is on its way already.
#[inline(always)]
fn arm_sample(to: &Tagged, before: u64, payload: u32) {
    // Samples of the other way: they are at hand, as is the place in the stream.
    if !thin::takes_at(u32::from(read!(to.stat, res_n)), before, payload) {
        return;
    }
    let direction = u32::from(read!(to.ident, role));
    let Some(pair) = pair(to.ident, direction) else {
        return;
    };
    if read!(pair, arm) != arm::FREE {
        return;
    }
    let leaves_at = before.wrapping_add_signed(read!(pair, delta));
    let inside = leaves_at.wrapping_sub(read!(pair, out_pos)).cast_signed();
    if inside < 0 {
        write!(pair, skipped, read!(pair, skipped).wrapping_add(1));
        count(Own::OffsetSkipped);
        return;
    }
    let behind = u64::from(inside > 0);
    write!(
        pair,
        arm,
        arm::pack(behind, ticks::of_ns(now_ns()), leaves_at)
    );
}

/// A packet goes out, under the socket's lock.
#[inline(always)]
pub fn egress(skb: *mut __sk_buff) {
    let packet = parse::packet(skb);
    if packet.kind == parse::OTHER
        || (packet.kind == parse::TCP
            && packet.payload == 0
            && !thin::takes_ack(packet.acknowledged))
    {
        return;
    }
    let Some(from) = tagged(skb) else { return };
    if !is_ours(&from, packet) {
        return;
    }
    // Always there. Kept as an option it would be a pointer or a number to older verifiers.
    let Some(cnt) = counters(from.ident) else {
        return;
    };
    count_received(&from, cnt);
    let end = offset::end(packet.sequence, packet.payload, read!(from.stat, tx_base));
    let before = read!(from.stat, tx_end);
    let ahead = offset::advance(before, end);
    if packet.payload == 0 || ahead == 0 {
        return;
    }
    let sent = before + u64::from(ahead);
    write!(from.stat, tx_end, sent);
    if before == 0 {
        write!(from.stat, t_first_tx, now_ns());
    }
    add!(cnt, tx_bytes, u64::from(ahead));
    add!(cnt, tx_skbs, 1);
    let direction = u32::from(read!(from.ident, role)) ^ 1;
    if let Some(pair) = pair(from.ident, direction) {
        take_sample(&from, pair, direction, sent);
    }
}

/// Received bytes are counted on the way out, where the lock is held: to the byte at the next packet
/// out and at the end, and a few acknowledgements behind between.
#[inline(always)]
fn count_received(from: &Tagged, cnt: *mut Cnt) {
    let Some(tcp) = tcp_of(from.sk) else { return };
    let in_order = read!(tcp, bytes_received);
    let seen = read!(from.stat, rx_end);
    let received = if in_order < seen { in_order } else { seen };
    let counted = read!(from.stat, rx_counted);
    if received > counted {
        write!(from.stat, rx_counted, received);
        add!(cnt, rx_bytes, received - counted);
    }
}

/// Ends the outstanding sample when its byte has left.
#[inline(always)]
fn take_sample(from: &Tagged, pair: *mut Pair, direction: u32, sent: u64) {
    write!(pair, out_pos, sent);
    let armed = read!(pair, arm);
    if armed == arm::FREE || !arm::passed(armed, sent) {
        return;
    }
    write!(pair, arm, arm::FREE);
    let inside = ticks::since(ticks::of_ns(now_ns()), arm::tick(armed));
    let ns = inside * ticks::TICK_NS;
    let kind = Kind::residence(arm::behind(armed), direction);
    sample(read!(from.ident, cluster), kind, ns);
    add_to_lanes(read!(from.ident, pair_slot), direction, lane::of_ns(ns));
    add_to_socket(from.stat, ticks::saturated(inside));
}

#[inline(always)]
fn add_to_lanes(slot: u32, direction: u32, lane: u32) {
    let Some(word) = lanes(slot, direction, lane::word_of(lane)) else {
        return;
    };
    if lane::is_full(load(word), lane) {
        for other in 0..lane::WORDS {
            if let Some(other) = lanes(slot, direction, other) {
                store(other, lane::halved(load(other)));
            }
        }
    }
    store(word, lane::plus_one(load(word), lane));
}

#[inline(always)]
fn add_to_socket(stat: *mut Stat, inside: u32) {
    let samples = read!(stat, res_n);
    write!(
        stat,
        res_ewma,
        ticks::mean(read!(stat, res_ewma), samples, inside)
    );
    if inside > read!(stat, res_max) {
        write!(stat, res_max, inside);
    }
    write!(stat, res_n, samples.saturating_add(1));
}

/// The packet's socket, if it is ours.
#[inline(always)]
fn tagged(skb: *mut __sk_buff) -> Option<Tagged> {
    let sk = read!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return None;
    }
    // SAFETY: the helper takes a socket that is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return None;
    }
    let ident = IDENT.get(sk)?;
    let stat = STAT.get(sk)?;
    Some(Tagged { sk, ident, stat })
}

/// Whether a packet of a tagged socket can be placed in its stream; one that cannot is counted.
#[inline(always)]
fn is_ours(tagged: &Tagged, packet: Packet) -> bool {
    if packet.kind != parse::TCP {
        count(Own::Unparsed);
        return false;
    }
    if read!(tagged.stat, flags) & Stat::BASE != 0 {
        return true;
    }
    // A SYN has none yet, nor anything to place.
    if packet.payload > 0 {
        count(Own::NoBase);
    }
    false
}

#[inline(always)]
fn tcp_of(sk: *mut bpf_sock) -> Option<*mut bpf_tcp_sock> {
    // SAFETY: the helper takes a full socket.
    let tcp = unsafe { bpf_tcp_sock(sk) };
    (!tcp.is_null()).then_some(tcp)
}

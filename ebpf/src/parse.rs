//! Payload and sequence number of a packet that starts at its network header.
//!
//! Headers are copied out: kernels before 6.1 refuse to compare packet pointers without
//! CAP_PERFMON. Every field of the result is always written, since older verifiers do not
//! remember which tag goes with which.
#![expect(unsafe_code, reason = "helper calls, and bytes that they filled")]

use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_load_bytes;

use crate::memory::read;

/// Another protocol, which no tagged socket speaks.
pub const OTHER: u32 = 0;
/// A header that is not understood.
pub const UNKNOWN: u32 = 1;
/// TCP, with or without payload.
pub const TCP: u32 = 2;

const PROTOCOL_TCP: u32 = 6;
const SYN: u32 = 0x02;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const JUMBO_OPTION: u32 = 8;

/// Hop-by-hop, routing, fragment, authentication, destination options.
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
const DESTINATION: u32 = 60;

/// What a packet holds.
#[derive(Clone, Copy)]
pub struct Packet {
    /// [`OTHER`], [`UNKNOWN`] or [`TCP`].
    pub kind: u32,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Sequence number that is acknowledged.
    #[cfg_attr(feature = "testprogs", expect(dead_code, reason = "the observer's"))]
    pub acknowledged: u32,
    /// Bytes of payload, 0 for a SYN.
    pub payload: u32,
}

/// Reads the headers.
#[inline(always)]
pub fn packet(skb: *mut __sk_buff) -> Packet {
    // The whole of an IPv6 header, or of IPv4's and TCP's without options.
    let mut head = MaybeUninit::<[u32; 10]>::uninit();
    if !load(skb, 0, &mut head) {
        return neither(UNKNOWN);
    }
    let first = word(&head, 0) >> 24;
    if first >> 4 == 4 {
        if (word(&head, 2) >> 16) & 0xff != PROTOCOL_TCP {
            return neither(OTHER);
        }
        if first == 0x45 {
            let numbers = (word(&head, 6), word(&head, 7));
            return segment(skb, IPV4_HEADER, numbers, word(&head, 8));
        }
        return tcp_at(skb, (first & 0x0f) * 4);
    }
    if first >> 4 == 6 {
        return ipv6(skb, (word(&head, 1) >> 8) & 0xff);
    }
    neither(UNKNOWN)
}

#[inline(always)]
fn ipv6(skb: *mut __sk_buff, next: u32) -> Packet {
    if next == PROTOCOL_TCP {
        return tcp_at(skb, IPV6_HEADER);
    }
    if next == HOP_BY_HOP {
        return jumbo(skb);
    }
    let extended =
        next == ROUTING || next == FRAGMENT || next == AUTHENTICATION || next == DESTINATION;
    neither(if extended { UNKNOWN } else { OTHER })
}

/// More than 64 KiB before segmentation: the length stands in an option of eight bytes. Loopback
/// has such packets, and any device with BIG TCP.
#[inline(always)]
fn jumbo(skb: *mut __sk_buff) -> Packet {
    let mut option = MaybeUninit::<[u32; 2]>::uninit();
    // The next header, and no further eight bytes.
    if !load(skb, IPV6_HEADER, &mut option) || word(&option, 0) >> 16 != PROTOCOL_TCP << 8 {
        return neither(UNKNOWN);
    }
    tcp_at(skb, IPV6_HEADER + JUMBO_OPTION)
}

#[inline(always)]
fn tcp_at(skb: *mut __sk_buff, header: u32) -> Packet {
    let mut tcp = MaybeUninit::<[u32; 4]>::uninit();
    if header < IPV4_HEADER || !load(skb, header, &mut tcp) {
        return neither(UNKNOWN);
    }
    segment(skb, header, (word(&tcp, 1), word(&tcp, 2)), word(&tcp, 3))
}

/// `numbers` are what is sent and acknowledged; `flags` is the word that begins with the data
/// offset and the flags.
#[inline(always)]
fn segment(skb: *mut __sk_buff, header: u32, numbers: (u32, u32), flags: u32) -> Packet {
    let headers = header + (flags >> 28) * 4;
    let len = read!(skb, len);
    if headers > len {
        return neither(UNKNOWN);
    }
    let is_syn = (flags >> 16) & SYN != 0;
    let payload = if is_syn { 0 } else { len - headers };
    Packet {
        kind: TCP,
        sequence: numbers.0,
        acknowledged: numbers.1,
        payload,
    }
}

#[inline(always)]
fn neither(kind: u32) -> Packet {
    Packet {
        kind,
        sequence: 0,
        acknowledged: 0,
        payload: 0,
    }
}

/// Fills words from the packet; not when it is shorter.
#[expect(clippy::cast_possible_truncation, reason = "a few words")]
#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, at: u32, to: &mut MaybeUninit<[u32; N]>) -> bool {
    // SAFETY: the helper fills so many bytes of the stack or fails.
    let failed = unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            at,
            to.as_mut_ptr().cast(),
            size_of::<[u32; N]>() as u32,
        )
    };
    failed == 0
}

/// A word that was filled, in the order of the network.
#[inline(always)]
fn word<const N: usize>(words: &MaybeUninit<[u32; N]>, at: usize) -> u32 {
    // SAFETY: filled, and `at` is a constant below `N`.
    u32::from_be(unsafe { read_volatile(words.as_ptr().cast::<u32>().add(at)) })
}

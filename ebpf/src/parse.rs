//! Payload and sequence number of a packet that starts at its network header.
#![expect(unsafe_code, reason = "packet bytes that the verifier bounds")]

use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_load_bytes;

use crate::memory::read;

const TCP: u8 = 6;
const SYN: u32 = 0x02;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const HOP_BY_HOP: u8 = 0;
const JUMBO_OPTION: u32 = 8;

/// What a packet holds.
pub enum Packet {
    /// TCP, with or without payload.
    Tcp(Segment),
    /// Another protocol, which no tagged socket speaks.
    Other,
    /// A header that is not understood.
    Unknown,
}

/// A TCP segment.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Bytes of payload, 0 for a SYN.
    pub payload: u32,
}

/// Reads the headers.
#[inline(always)]
pub fn packet(skb: *mut __sk_buff) -> Packet {
    let data = read!(skb, data) as usize as *const u8;
    let end = read!(skb, data_end) as usize as *const u8;
    // Either header whole, and so much TCP that the data offset and flags are in it.
    if data.wrapping_add(40) > end {
        return Packet::Unknown;
    }
    let first = byte(data, 0);
    if first == 0x45 {
        return match byte(data, 9) {
            TCP => tcp_at::<20>(skb, data, IPV4_HEADER),
            _ => Packet::Other,
        };
    }
    match first >> 4 {
        4 => with_options(skb, data, first),
        6 => ipv6(skb, data, end),
        _ => Packet::Unknown,
    }
}

#[inline(always)]
fn ipv6(skb: *mut __sk_buff, data: *const u8, end: *const u8) -> Packet {
    /// Routing, fragment, authentication, destination options.
    const EXTENSIONS: [u8; 4] = [43, 44, 51, 60];
    let next = byte(data, 6);
    if next == TCP {
        if data.wrapping_add(60) > end {
            return Packet::Unknown;
        }
        return tcp_at::<40>(skb, data, IPV6_HEADER);
    }
    if next == HOP_BY_HOP {
        return jumbo(skb, data, end);
    }
    let [a, b, c, d] = EXTENSIONS;
    let extended = next == a || next == b || next == c || next == d;
    if extended {
        Packet::Unknown
    } else {
        Packet::Other
    }
}

/// More than 64 KiB before segmentation: the length stands in an option of eight bytes. Loopback
/// has such packets, and any device with BIG TCP.
#[inline(always)]
fn jumbo(skb: *mut __sk_buff, data: *const u8, end: *const u8) -> Packet {
    if data.wrapping_add(68) > end || byte(data, 40) != TCP || byte(data, 41) != 0 {
        return Packet::Unknown;
    }
    tcp_at::<48>(skb, data, IPV6_HEADER + JUMBO_OPTION)
}

/// A packet pointer plus a variable is refused: the header is copied out.
#[inline(always)]
fn with_options(skb: *mut __sk_buff, data: *const u8, first: u8) -> Packet {
    if byte(data, 9) != TCP {
        return Packet::Other;
    }
    let header = u32::from(first & 0x0f) * 4;
    let mut tcp = MaybeUninit::<[u32; 4]>::uninit();
    // SAFETY: the helper fills 16 bytes of the stack or fails.
    let failed = unsafe { bpf_skb_load_bytes(skb.cast(), header, tcp.as_mut_ptr().cast(), 16) };
    if failed != 0 || header < IPV4_HEADER {
        return Packet::Unknown;
    }
    let words: *const u32 = addr_of_mut!(tcp).cast();
    // SAFETY: filled above, at constant offsets.
    let (sequence, flags) = unsafe { (read_volatile(words.add(1)), read_volatile(words.add(3))) };
    segment(
        skb,
        header,
        u32::from_be(sequence),
        u32::from_be(flags) >> 16,
    )
}

#[inline(always)]
fn tcp_at<const AT: usize>(skb: *mut __sk_buff, data: *const u8, header: u32) -> Packet {
    let sequence = u32::from(half(data, AT + 4)) << 16 | u32::from(half(data, AT + 6));
    segment(skb, header, sequence, u32::from(half(data, AT + 12)))
}

/// `flags`: data offset in the upper four bits, flags in the lower eight.
#[inline(always)]
fn segment(skb: *mut __sk_buff, header: u32, sequence: u32, flags: u32) -> Packet {
    let headers = header + (flags >> 12) * 4;
    let len = read!(skb, len);
    if headers > len {
        return Packet::Unknown;
    }
    let payload = if flags & SYN == 0 { len - headers } else { 0 };
    Packet::Tcp(Segment { sequence, payload })
}

#[inline(always)]
fn byte(data: *const u8, at: usize) -> u8 {
    // SAFETY: below the bound that was checked against the packet's end.
    unsafe { read_volatile(addr_of!(*data.add(at))) }
}

#[inline(always)]
fn half(data: *const u8, at: usize) -> u16 {
    // SAFETY: below the bound that was checked against the packet's end; headers are aligned.
    u16::from_be(unsafe { read_volatile(data.add(at).cast::<u16>()) })
}

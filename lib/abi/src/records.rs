//! The records of the maps. Offsets are written down and checked by the compiler.

use crate::wait;

/// Declares a record with its offsets, its size and its bytes.
macro_rules! record {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal {
            $( $(#[$field_meta:meta])* $offset:literal $field:ident: $kind:ident, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $kind, )*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size, "size");
            let fields = 0 $( + size_of::<$kind>() )*;
            assert!(fields == $size, "padding");
            $( assert!(core::mem::offset_of!($name, $field) == $offset, stringify!($field)); )*
        };

        impl $name {
            /// Size in a map, in bytes.
            pub const BYTES: usize = $size;

            /// As it lies in a map.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                $( bytes[$offset..$offset + size_of::<$kind>()]
                    .copy_from_slice(&self.$field.to_ne_bytes()); )*
                bytes
            }

            /// From the bytes of a map.
            #[must_use]
            pub fn from_bytes(bytes: &[u8; $size]) -> Self {
                Self {
                    $( $field: {
                        let mut field = [0; size_of::<$kind>()];
                        field.copy_from_slice(&bytes[$offset..$offset + size_of::<$kind>()]);
                        $kind::from_ne_bytes(field)
                    }, )*
                }
            }
        }
    };
}

record! {
    /// Whose socket this is: value of map `IDENT`, written by the socket's owner only, as a whole.
    pub struct Ident: 24 {
        /// `sequence << 1 | role`: both legs of a relay share `conn_id >> 1`.
        0 conn_id: u64,
        /// Row of the pair in `PAIR`, or [`crate::NO_SLOT`].
        8 pair_slot: u32,
        /// Must equal [`Pair::generation`]: a slot that was taken again ignores its old sockets.
        12 pair_gen: u32,
        /// Dense index of the cluster in this process.
        16 cluster: u16,
        /// A [`crate::Leg`].
        18 leg: u8,
        /// A [`crate::Role`].
        19 role: u8,
        /// [`Ident::TEMPLATE`] and its neighbours.
        20 flags: u16,
        /// Zero.
        22 zero: u16,
    }
}

impl Ident {
    /// A listener: its accepted children inherit the record.
    pub const TEMPLATE: u16 = 1;
    /// Payload is not forwarded one to one: no residence.
    pub const NO_RESIDENCE: u16 = 4;
    /// Taken over from another process while established; nothing asks for it yet.
    pub const ADOPTED: u16 = 8;
    /// The flags that say which trace the socket is looked at for; 0 = none.
    pub const TRACE: u16 = (wait::MARKS as u16) << Self::TRACE_SHIFT;
    const TRACE_SHIFT: u32 = 8;

    /// The trace that these flags name.
    #[inline(always)]
    #[must_use]
    pub const fn traced_by(flags: u16) -> u32 {
        ((flags & Self::TRACE) >> Self::TRACE_SHIFT) as u32
    }

    /// These flags, for another trace; 0 = none.
    #[must_use]
    pub const fn for_trace(flags: u16, mark: u32) -> u16 {
        flags & !Self::TRACE | (mark << Self::TRACE_SHIFT) as u16 & Self::TRACE
    }
}

record! {
    /// What the programs know of a socket: value of map `STAT`, written by the programs only.
    /// Times are nanoseconds of `CLOCK_MONOTONIC`, 0 = not yet. Fields that every packet needs
    /// come first: after the kernel's own word before it they fill one cache line.
    pub struct Stat: 112 {
        /// Highest payload offset seen on the way in, holes included.
        0 rx_end: u64,
        /// Highest payload offset seen on the way out.
        8 tx_end: u64,
        /// Received bytes that were added to `CNT`.
        16 rx_counted: u64,
        /// Sequence number of payload offset 0, in.
        24 rx_base: u32,
        /// Sequence number of payload offset 0, out.
        28 tx_base: u32,
        /// Payload offset, modulo 2^32, at which the open hole is filled; 0 = nothing is missing.
        /// A field and no flag: it is written without the socket's lock.
        32 hole_end: u32,
        /// Residence samples, saturating.
        36 res_n: u16,
        /// [`Stat::BASE`] and its neighbours.
        38 flags: u16,
        /// Mean residence of bytes leaving here, weight 1/8, in ticks of 64 ns.
        40 res_ewma: u32,
        /// Highest residence of bytes leaving here, in ticks of 64 ns.
        44 res_max: u32,
        /// Since when the oldest payload waits that is not read yet, while traced ([`crate::wait`]);
        /// 0 = none.
        48 q_arm: u32,
        /// Sequence number up to which the last retransmission timeout sends again.
        52 rto_high: u32,
        /// When the connect began.
        56 t_conn: u64,
        /// When the handshake was complete.
        64 t_est: u64,
        /// First payload in.
        72 t_first_rx: u64,
        /// First payload out.
        80 t_first_tx: u64,
        /// Sum of the RTT samples, in microseconds.
        88 rtt_sum_us: u64,
        /// RTT samples.
        96 rtt_n: u32,
        /// Least RTT sample, in microseconds; 0 before the first.
        100 rtt_min_us: u32,
        /// Retransmitted segments.
        104 retrans: u32,
        /// Retransmission timeouts.
        108 rto: u32,
    }
}

impl Stat {
    /// `rx_base` and `tx_base` are set.
    pub const BASE: u16 = 1;
    /// The close record was written.
    pub const CLOSED: u16 = 2;
    /// This side sent its FIN first.
    pub const LOCAL_FIN: u16 = 4;
    /// The other side sent its FIN first.
    pub const REMOTE_FIN: u16 = 8;
    /// Was established.
    pub const EST: u16 = 16;
}

record! {
    /// One direction of two joined sockets: value of map `PAIR`.
    pub struct Pair: 32 {
        /// The outstanding sample ([`crate::arm`]), 0 = none. Written by the programs.
        0 arm: u64,
        /// Payload offset reached on the way out. Written by the owner at the join, then by the programs.
        8 out_pos: u64,
        /// Offset out minus offset in of the same payload byte. Written by the owner.
        16 delta: i64,
        /// Who holds the slot; 0 = nobody. Written by the owner, last.
        24 generation: u32,
        /// Payload that seemed to leave before it came: wrong offsets. Written by the programs.
        28 skipped: u32,
    }
}

record! {
    /// Counters of a cluster, leg and shard: value of map `CNT`.
    pub struct Cnt: 64 {
        /// Payload bytes received.
        0 rx_bytes: u64,
        /// Payload bytes sent, retransmissions not included.
        8 tx_bytes: u64,
        /// Units of new payload received, after coalescing.
        16 rx_skbs: u64,
        /// Units of new payload sent, before segmentation.
        24 tx_skbs: u64,
        /// Retransmitted segments.
        32 retrans: u64,
        /// Of these, those that a timeout caused.
        40 retrans_rto: u64,
        /// Retransmission timeouts.
        48 rto_events: u64,
        /// Close records, the lost ones included.
        56 closes: u64,
    }
}

record! {
    /// The end of a connection: record of ring `CLOSE`.
    pub struct Close: 120 {
        /// As in [`Ident`].
        0 conn_id: u64,
        /// When the socket closed.
        8 t_close: u64,
        /// As in [`Stat`].
        16 t_conn: u64,
        /// As in [`Stat`].
        24 t_est: u64,
        /// As in [`Stat`].
        32 t_first_rx: u64,
        /// As in [`Stat`].
        40 t_first_tx: u64,
        /// Payload bytes received in order ([`crate::offset::received`]).
        48 rx_bytes: u64,
        /// Payload bytes sent.
        56 tx_bytes: u64,
        /// As in [`Stat`].
        64 rtt_sum_us: u64,
        /// As in [`Stat`].
        72 rtt_min_us: u32,
        /// As in [`Stat`].
        76 rtt_n: u32,
        /// As in [`Stat`].
        80 retrans: u32,
        /// As in [`Stat`].
        84 rto: u32,
        /// The kernel's own count of retransmitted segments, SYN included.
        88 total_retrans: u32,
        /// Smoothed RTT at the end, in microseconds.
        92 srtt_us: u32,
        /// Sequence space sent and never acknowledged; a FIN counts as one byte.
        96 unacked: u32,
        /// As in [`Stat`].
        100 res_ewma: u32,
        /// As in [`Stat`].
        104 res_max: u32,
        /// As in [`Stat`].
        108 res_n: u16,
        /// As in [`Ident`].
        110 cluster: u16,
        /// As in [`Ident`].
        112 leg: u8,
        /// As in [`Ident`].
        113 role: u8,
        /// A [`crate::CloseKind`].
        114 kind: u8,
        /// State of the socket before it closed, as the kernel numbers them.
        115 old_state: u8,
        /// Flags of [`Stat`].
        116 flags: u16,
        /// [`crate::VERSION`].
        118 version: u16,
    }
}

//! Golden bytes of each record, and the keys and sizes of the maps. A change here is a change
//! of `VERSION`.
#![cfg(target_endian = "little")]

use culvert_abi::{Close, CloseKind, Cnt, Ident, Kind, Leg, Pair, Stat, keys, maps};

/// Every field in its place and in order: field number n holds n, twice over, in its lowest and
/// highest byte.
const IDENT: &str = "0100000000000001 02000002 03000003 0404 05 06 0707 0808";
const STAT: &str = "\
    0100000000000001 0200000000000002 0300000000000003 04000004 05000005 06000006 0707 0808 \
    09000009 0a00000a 0b00000b 0c00000c 0d0000000000000d 0e0000000000000e 0f0000000000000f \
    1000000000000010 1100000000000011 12000012 13000013 14000014 15000015";
const PAIR: &str = "0100000000000001 0200000000000002 0300000000000003 04000004 05000005";
const CNT: &str = "\
    0100000000000001 0200000000000002 0300000000000003 0400000000000004 \
    0500000000000005 0600000000000006 0700000000000007 0800000000000008";
const CLOSE: &str = "\
    0100000000000001 0200000000000002 0300000000000003 0400000000000004 0500000000000005 \
    0600000000000006 0700000000000007 0800000000000008 0900000000000009 0a00000a 0b00000b 0c00000c \
    0d00000d 0e00000e 0f00000f 10000010 11000011 12000012 1313 1414 15 16 17 18 1919 1a1a";

fn golden(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let bytes = (0..digits.len()).step_by(2);
    bytes
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

const fn u16s(n: u16) -> u16 {
    n << 8 | n
}
const fn u32s(n: u32) -> u32 {
    n << 24 | n
}
const fn u64s(n: u64) -> u64 {
    n << 56 | n
}

#[test]
fn ident_has_its_golden_bytes() {
    let record = Ident {
        conn_id: u64s(1),
        pair_slot: u32s(2),
        pair_gen: u32s(3),
        cluster: u16s(4),
        leg: 5,
        role: 6,
        flags: u16s(7),
        zero: u16s(8),
    };
    assert_eq!(record.to_bytes().as_slice(), golden(IDENT));
    assert_eq!(Ident::from_bytes(&record.to_bytes()), record);
}

#[test]
fn stat_has_its_golden_bytes() {
    let record = Stat {
        rx_end: u64s(1),
        tx_end: u64s(2),
        rx_counted: u64s(3),
        rx_base: u32s(4),
        tx_base: u32s(5),
        hole_end: u32s(6),
        res_n: u16s(7),
        flags: u16s(8),
        res_ewma: u32s(9),
        res_max: u32s(10),
        q_arm: u32s(11),
        rto_high: u32s(12),
        t_conn: u64s(13),
        t_est: u64s(14),
        t_first_rx: u64s(15),
        t_first_tx: u64s(16),
        rtt_sum_us: u64s(17),
        rtt_n: u32s(18),
        rtt_min_us: u32s(19),
        retrans: u32s(20),
        rto: u32s(21),
    };
    assert_eq!(record.to_bytes().as_slice(), golden(STAT));
    assert_eq!(Stat::from_bytes(&record.to_bytes()), record);
}

#[test]
fn pair_has_its_golden_bytes() {
    let record = Pair {
        arm: u64s(1),
        out_pos: u64s(2),
        delta: u64s(3).cast_signed(),
        generation: u32s(4),
        skipped: u32s(5),
    };
    assert_eq!(record.to_bytes().as_slice(), golden(PAIR));
    assert_eq!(Pair::from_bytes(&record.to_bytes()), record);
}

#[test]
fn cnt_has_its_golden_bytes() {
    let record = Cnt {
        rx_bytes: u64s(1),
        tx_bytes: u64s(2),
        rx_skbs: u64s(3),
        tx_skbs: u64s(4),
        retrans: u64s(5),
        retrans_rto: u64s(6),
        rto_events: u64s(7),
        closes: u64s(8),
    };
    assert_eq!(record.to_bytes().as_slice(), golden(CNT));
    assert_eq!(Cnt::from_bytes(&record.to_bytes()), record);
}

#[test]
fn close_has_its_golden_bytes() {
    let record = Close {
        conn_id: u64s(1),
        t_close: u64s(2),
        t_conn: u64s(3),
        t_est: u64s(4),
        t_first_rx: u64s(5),
        t_first_tx: u64s(6),
        rx_bytes: u64s(7),
        tx_bytes: u64s(8),
        rtt_sum_us: u64s(9),
        rtt_min_us: u32s(10),
        rtt_n: u32s(11),
        retrans: u32s(12),
        rto: u32s(13),
        total_retrans: u32s(14),
        srtt_us: u32s(15),
        unacked: u32s(16),
        res_ewma: u32s(17),
        res_max: u32s(18),
        res_n: u16s(19),
        cluster: u16s(20),
        leg: 21,
        role: 22,
        kind: 23,
        old_state: 24,
        flags: u16s(25),
        version: u16s(26),
    };
    assert_eq!(record.to_bytes().as_slice(), golden(CLOSE));
    assert_eq!(Close::from_bytes(&record.to_bytes()), record);
}

#[test]
fn maps_have_powers_of_two_and_their_last_key_fits() {
    assert_eq!(maps::pair_entries(maps::SLOTS), 131_072);
    assert_eq!(maps::pres_entries(maps::SLOTS), 524_288);
    assert_eq!(maps::hist_entries(maps::CLUSTERS), 1_048_576);
    assert_eq!(maps::cnt_entries(maps::CLUSTERS), 32_768);
    let cluster = u16::try_from(maps::CLUSTERS - 1).unwrap();
    let slot = maps::SLOTS - 1;
    assert_eq!(keys::hist_row(cluster, 7) + 127, 1_048_575);
    assert_eq!(keys::cnt_cell(cluster, 7, 3), 32_767);
    assert_eq!(keys::pair_key(slot, 1), 131_071);
    assert_eq!(keys::pres_key(slot, 1, 3), 524_287);
    assert_eq!(keys::reset_cell(7, 99), maps::SELF_CELLS - 1);
    assert_eq!(keys::reset_cell(0, 0), 256);
}

#[test]
fn keys_are_dense_and_never_leave_their_row() {
    assert_eq!(keys::hist_row(2, 3), ((2 * 8 + 3) << 7));
    assert_eq!(keys::cnt_cell(2, 3, 6), ((2 * 8 + 3) << 2) + 2);
    assert_eq!(keys::pair_key(9, 1), 19);
    assert_eq!(keys::pres_key(9, 1, 2), 19 * 4 + 2);
    // What the kernel side may be told by a wrong tag stays within its cluster.
    assert_eq!(keys::cnt_cell(2, 8 + 3, 0), keys::cnt_cell(2, 3, 0));
    assert_eq!(keys::hist_row(2, 8 + 3), keys::hist_row(2, 3));
}

#[test]
fn numbers_of_kinds_are_those_of_the_records() {
    for leg in Leg::ALL {
        assert_eq!(Leg::of(leg as u8), Some(leg));
    }
    assert_eq!(Leg::of(0), None);
    assert_eq!(Leg::of(8), None);
    for (number, kind) in [
        (1, CloseKind::LocalFin),
        (2, CloseKind::RemoteFin),
        (3, CloseKind::Abort),
        (4, CloseKind::NeverConnected),
    ] {
        assert_eq!(CloseKind::of(number), Some(kind));
        assert_eq!(kind as u8, number);
    }
    assert_eq!(CloseKind::of(5), None);
    assert_eq!(Kind::residence(0, 0), Kind::ToServiceEmpty as u32);
    assert_eq!(Kind::residence(0, 1), Kind::ToClientEmpty as u32);
    assert_eq!(Kind::residence(1, 0), Kind::ToServiceBehind as u32);
    assert_eq!(Kind::residence(1, 1), Kind::ToClientBehind as u32);
    let rtt = Leg::ALL.map(|leg| Kind::rtt(leg as u8));
    assert_eq!(rtt, [4, 5, 6, 4, 4, 6, 4]);
}

//! Packets of every form, by `BPF_PROG_TEST_RUN`.

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::Ebpf;
use aya::maps::Array;
use aya::programs::{CgroupSkb, TestRun as _, TestRunOptions};
use culvert_abi::maps;

use crate::rig;

const TCP: u8 = 6;
const SEQUENCE: u32 = 0xfedc_ba98;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const FIN: u8 = 0x01;

/// What the parser makes of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Other,
    Unknown,
    Tcp { payload: u64 },
}

/// A TCP header with `options` bytes of options, and payload.
fn tcp(flags: u8, options: usize, payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; 20 + options + payload];
    bytes[..4].copy_from_slice(&[0x12, 0x34, 0x00, 0x50]);
    bytes[4..8].copy_from_slice(&SEQUENCE.to_be_bytes());
    bytes[12] = u8::try_from((20 + options) / 4).unwrap() << 4;
    bytes[13] = flags;
    bytes
}

fn ipv4(protocol: u8, options: usize, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20 + options];
    bytes[0] = 0x40 | u8::try_from((20 + options) / 4).unwrap();
    let len = u16::try_from(bytes.len() + inner.len()).unwrap();
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes[8..10].copy_from_slice(&[64, protocol]);
    bytes[12..16].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
    bytes[16..20].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
    framed([8, 0], bytes, inner)
}

fn ipv6(next: u8, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[0] = 0x60;
    let len = u16::try_from(inner.len()).unwrap();
    bytes[4..6].copy_from_slice(&len.to_be_bytes());
    bytes[6..8].copy_from_slice(&[next, 64]);
    bytes[8..24].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
    bytes[24..40].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
    framed([0x86, 0xdd], bytes, inner)
}

/// With the link's header, which the kernel takes off.
fn framed(kind: [u8; 2], header: Vec<u8>, inner: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(kind);
    frame.extend(header);
    frame.extend(inner);
    frame
}

/// Each form of packet, and what there is to read in it.
fn forms() -> Vec<(&'static str, Vec<u8>, Parsed)> {
    let data = |payload| Parsed::Tcp { payload };
    let after =
        |next, length, tcp: Vec<u8>| [vec![next, length, 0xc2, 4, 0, 0, 0, 0], tcp].concat();
    let jumbo = after(TCP, 0, tcp(ACK, 12, 60));
    let long = after(TCP, 1, tcp(ACK, 20, 50));
    let routed = after(43, 0, tcp(ACK, 20, 50));
    let mut lying = tcp(ACK, 0, 4);
    lying[12] = 0xf0;
    vec![
        ("IPv4", ipv4(TCP, 0, &tcp(ACK, 0, 100)), data(100)),
        (
            "TCP options",
            ipv4(TCP, 0, &tcp(ACK, 12, 1_000)),
            data(1_000),
        ),
        ("all TCP options", ipv4(TCP, 0, &tcp(ACK, 40, 1)), data(1)),
        ("acknowledgement", ipv4(TCP, 0, &tcp(ACK, 12, 0)), data(0)),
        (
            "FIN with payload",
            ipv4(TCP, 0, &tcp(ACK | FIN, 12, 9)),
            data(9),
        ),
        ("SYN with payload", ipv4(TCP, 0, &tcp(SYN, 0, 100)), data(0)),
        ("IPv4 options", ipv4(TCP, 4, &tcp(ACK, 12, 77)), data(77)),
        ("all IPv4 options", ipv4(TCP, 40, &tcp(ACK, 0, 3)), data(3)),
        ("IPv4 UDP", ipv4(17, 0, &[0; 40]), Parsed::Other),
        (
            "IPv4 UDP with options",
            ipv4(17, 8, &[0; 40]),
            Parsed::Other,
        ),
        ("IPv4 ICMP", ipv4(1, 0, &[0; 40]), Parsed::Other),
        ("IPv6", ipv6(TCP, &tcp(ACK, 0, 100)), data(100)),
        (
            "IPv6, TCP options",
            ipv6(TCP, &tcp(ACK, 32, 1_200)),
            data(1_200),
        ),
        ("IPv6 UDP", ipv6(17, &[0; 40]), Parsed::Other),
        (
            "IPv6 with the option of a jumbogram",
            ipv6(0, &jumbo),
            data(60),
        ),
        ("IPv6, longer options", ipv6(0, &long), Parsed::Unknown),
        (
            "IPv6, options and routing",
            ipv6(0, &routed),
            Parsed::Unknown,
        ),
        ("IPv6 routing", ipv6(43, &jumbo), Parsed::Unknown),
        ("IPv6 fragment", ipv6(44, &jumbo), Parsed::Unknown),
        (
            "truncated options of IPv6",
            ipv6(0, &jumbo[..20]),
            Parsed::Unknown,
        ),
        (
            "truncated IPv4",
            ipv4(TCP, 0, &tcp(ACK, 0, 0)[..10]),
            Parsed::Unknown,
        ),
        (
            "truncated IPv6",
            ipv6(TCP, &tcp(ACK, 0, 0)[..10]),
            Parsed::Unknown,
        ),
        ("truncated options", ipv4(TCP, 40, &[0; 8]), Parsed::Unknown),
        (
            "data offset beyond the end",
            ipv4(TCP, 0, &lying),
            Parsed::Unknown,
        ),
    ]
}

fn parse(bpf: &mut Ebpf, frame: &[u8]) -> Parsed {
    let program: &mut CgroupSkb = bpf.program_mut("test_parse").unwrap().try_into().unwrap();
    let options = TestRunOptions {
        data_in: Some(frame),
        ..TestRunOptions::default()
    };
    assert_eq!(program.test_run(options).unwrap().return_value, 1);
    let parsed: Array<_, u64> = bpf.map("PARSED").unwrap().try_into().unwrap();
    let [kind, sequence, payload] = [0, 1, 2].map(|at| parsed.get(&at, 0).unwrap());
    match kind {
        0 => Parsed::Other,
        1 => Parsed::Unknown,
        _ => {
            assert_eq!(sequence, u64::from(SEQUENCE));
            Parsed::Tcp { payload }
        }
    }
}

#[test]
fn each_form_of_packet_is_read_as_it_is() {
    rig::alone("each_form_of_packet_is_read_as_it_is", |_| {
        rig::reduce_capabilities();
        let mut bpf = Ebpf::load(rig::TESTPROGS).unwrap();
        let program: &mut CgroupSkb = bpf.program_mut("test_parse").unwrap().try_into().unwrap();
        program.load().unwrap();
        for (what, frame, expected) in forms() {
            assert_eq!(parse(&mut bpf, &frame), expected, "{what}");
        }
    });
}

#[test]
fn the_programs_let_every_form_of_packet_pass() {
    rig::alone("the_programs_let_every_form_of_packet_pass", |_| {
        rig::reduce_capabilities();
        let mut bpf = rig::load();
        for name in [maps::INGRESS, maps::EGRESS] {
            let program: &mut CgroupSkb = bpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
            for (what, frame, _) in forms() {
                let options = TestRunOptions {
                    data_in: Some(&frame),
                    ..TestRunOptions::default()
                };
                let returned = program.test_run(options).unwrap().return_value;
                assert_eq!(returned, 1, "{name}: {what}");
            }
        }
    });
}

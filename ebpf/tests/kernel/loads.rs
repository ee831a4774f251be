//! The programs are accepted with the capabilities that they are documented to want.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf};
use culvert_abi::{Ident, Kind, Leg, Role, keys, maps};
use rustix::net::sockopt::set_socket_linger;
use rustix::thread::CapabilitySet;

use crate::rig::{self, CLUSTER, Observer, Tier};

/// Of the kernel's own instructions; more is a cost that nobody meant to add.
const XLATED_BYTES_MAX: u32 = 6_000;

#[test]
fn programs_load_and_link_with_two_capabilities() {
    rig::alone("programs_load_and_link_with_two_capabilities", |place| {
        let observer = Observer::start(place, Tier::Skb);
        for name in [maps::SOCK_OPS, maps::INGRESS, maps::EGRESS] {
            let info = observer.info(name);
            let translated = info.size_translated().unwrap();
            println!("{name}: {translated} bytes, {} jited", info.size_jitted());
            assert!(translated < XLATED_BYTES_MAX, "{name}: {translated} bytes");
        }
    });
}

fn load_trace(bpf: &mut Ebpf, name: &str, hook: &str) -> Result<(), ProgramError> {
    let btf = Btf::from_sys_fs().unwrap();
    let program: &mut BtfTracePoint = bpf.program_mut(name).unwrap().try_into()?;
    program.load(hook, &btf)
}

/// Storage by socket is there for them from 5.11.
fn has_traces(test: &str) -> bool {
    if rig::is_linux(5, 11) {
        return true;
    }
    println!("SKIP {test}: needs Linux 5.11");
    false
}

/// Each with its hook; older kernels do not give the reason.
fn traces() -> [(&'static str, &'static str); 2] {
    let with_reason = rig::is_linux(6, 10);
    let resets = if with_reason {
        maps::RESETS
    } else {
        maps::RESETS_OLD
    };
    [
        (maps::RX_WAIT, "tcp_rcv_space_adjust"),
        (resets, "tcp_send_reset"),
    ]
}

#[test]
fn trace_programs_want_a_third_capability() {
    if !has_traces("trace_programs_want_a_third_capability") {
        return;
    }
    rig::alone("trace_programs_want_a_third_capability", |_| {
        let two = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
        rig::reduce_to(two | CapabilitySet::PERFMON);
        let mut bpf = rig::load();
        for (name, hook) in traces() {
            load_trace(&mut bpf, name, hook).unwrap();
        }
        if rig::is_linux(6, 10) {
            load_trace(&mut bpf, maps::RESETS_OLD, "tcp_send_reset").unwrap();
        }
        rig::reduce_to(two);
        let mut bpf = rig::load();
        for (name, hook) in traces() {
            let refused = load_trace(&mut bpf, name, hook).unwrap_err();
            let ProgramError::LoadError { io_error, .. } = refused else {
                panic!("{name}: {refused}");
            };
            assert_eq!(
                io_error.kind(),
                std::io::ErrorKind::PermissionDenied,
                "{name}"
            );
        }
    });
}

#[test]
fn a_trace_tells_the_wait_to_be_read_and_the_resets() {
    if !has_traces("a_trace_tells_the_wait_to_be_read_and_the_resets") {
        return;
    }
    rig::alone(
        "a_trace_tells_the_wait_to_be_read_and_the_resets",
        |place| {
            let mut observer = Observer::start_tracing(place, |bpf| {
                for (name, hook) in traces() {
                    load_trace(bpf, name, hook).unwrap();
                }
            });
            // Loaded before the capability went; linked without it.
            for (name, _) in traces() {
                let program = observer.bpf.program_mut(name).unwrap();
                let program: &mut BtfTracePoint = program.try_into().unwrap();
                program.attach().unwrap();
            }
            let listener = rig::tagged_listener(&mut observer, rig::loopbacks()[0], Leg::Client);
            let to = listener.local_addr().unwrap();
            let ident = rig::ident(1, Leg::Upstream, Role::Service);
            let mut near = rig::tagged_connect(&mut observer, to, ident).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            let traced = rig::ident(1, Leg::Client, Role::Client);
            observer.tag(
                &far,
                Ident {
                    flags: Ident::for_trace(0, 1),
                    ..traced
                },
            );
            let mut bounds = [Duration::ZERO; 2];
            for _ in 0..3 {
                let start = Instant::now();
                near.write_all(&[1; 100]).unwrap();
                let sent = Instant::now();
                std::thread::sleep(Duration::from_millis(5));
                bounds[0] += sent.elapsed();
                far.read_exact(&mut [0; 100]).unwrap();
                bounds[1] += start.elapsed();
                // The other end is not traced.
                far.write_all(&[1; 100]).unwrap();
                near.read_exact(&mut [0; 100]).unwrap();
            }
            let (samples, ns) = observer.histogram(CLUSTER, Kind::RxWait as u32);
            let waited = Duration::from_nanos(ns);
            assert_eq!(samples, 3);
            // Three times a word's least step, at both ends.
            let rounding = Duration::from_micros(4);
            assert!(waited + rounding >= bounds[0], "{waited:?}, {bounds:?}");
            assert!(waited <= bounds[1] + rounding, "{waited:?}, {bounds:?}");

            let resets = |observer: &Observer, leg: Leg| -> u64 {
                let reasons = 0..keys::RESET_REASONS;
                reasons
                    .map(|reason| observer.cell(keys::reset_cell(leg as u8, reason)))
                    .sum()
            };
            assert_eq!(resets(&observer, Leg::Client), 0);
            set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
            drop(far);
            assert!(near.read(&mut [0]).is_err());
            assert_eq!(resets(&observer, Leg::Client), 1);
            assert_eq!(resets(&observer, Leg::Upstream), 0);
        },
    );
}

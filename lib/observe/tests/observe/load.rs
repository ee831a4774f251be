//! Programs of others, and the object itself, as tests need them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use object::{Object as _, ObjectSection as _};

/// The object that is built in.
pub const BUILT_IN: &[u8] = include_bytes!("../../../../ebpf/prebuilt/culvert.bpf.o");

/// Makes it of the next version of the records.
pub fn next_version(object: &mut Vec<u8>) {
    let file = object::File::parse(&**object).unwrap();
    let section = file.section_by_name("culvert_abi").unwrap();
    let (at, _) = section.file_range().unwrap();
    let at = usize::try_from(at).unwrap();
    object[at..at + 2].copy_from_slice(&(culvert_abi::VERSION + 1).to_ne_bytes());
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_DETACH: libc::c_int = 34;
const TYPE_CGROUP_SKB: u32 = 8;
const TYPE_SOCK_OPS: u32 = 13;
/// `BPF_CGROUP_SOCK_OPS`.
const SOCK_OPS: u32 = 3;

/// The part of `union bpf_attr` for programs.
#[repr(C)]
#[derive(Default)]
struct Program {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// A program that lets everything pass.
pub fn accept_all(attach_type: u32) -> OwnedFd {
    // r0 = 1; exit
    program(attach_type, &[0x0000_0001_0000_00b7, 0x95])
}

/// A sock_ops program that wants no callbacks, and takes those of others away.
pub fn clear_flags() -> OwnedFd {
    // r2 = 0; bpf_sock_ops_cb_flags_set(r1, r2); r0 = 1; exit
    let instructions = [0x02b7, 0x0000_003b_0000_0085, 0x0000_0001_0000_00b7, 0x95];
    program(SOCK_OPS, &instructions)
}

fn program(attach_type: u32, instructions: &[u64]) -> OwnedFd {
    let program = Program {
        kind: match attach_type {
            SOCK_OPS => TYPE_SOCK_OPS,
            _ => TYPE_CGROUP_SKB,
        },
        instruction_count: u32::try_from(instructions.len()).unwrap(),
        instructions: instructions.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
        attach_type,
        ..Program::default()
    };
    let loaded = bpf(PROG_LOAD, &program).unwrap();
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(loaded) }
}

/// Attaches it as one that allows no other below (`flags` 0), or any (2, `BPF_F_ALLOW_MULTI`).
pub fn attach(cgroup: &File, program: &OwnedFd, attach_type: u32, flags: u32) {
    let attribute = [
        cgroup.as_raw_fd().cast_unsigned(),
        program.as_raw_fd().cast_unsigned(),
        attach_type,
        flags,
    ];
    bpf(PROG_ATTACH, &attribute).unwrap();
}

/// Takes a link of another process away, as `bpftool link detach` does. Whether it is of a kind
/// that can be.
pub fn detach(link: u32) -> bool {
    let found = bpf(LINK_GET_FD_BY_ID, &[link, 0, 0]).unwrap();
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    let found = unsafe { OwnedFd::from_raw_fd(found) };
    bpf(LINK_DETACH, &[found.as_raw_fd().cast_unsigned()]).is_ok()
}

fn bpf<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_int> {
    let attribute = std::ptr::from_ref(attribute);
    // SAFETY: the attribute is as long as is said, and what it points to outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size_of::<T>()) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(libc::c_int::try_from(done).unwrap()),
    }
}

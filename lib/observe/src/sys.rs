//! bpf(2) for the elements of the two socket maps. aya's own access wants `&mut`, which would put
//! a lock around every tag; the kernel needs none.
#![expect(
    unsafe_code,
    reason = "no crate of the tree offers bpf(2) by shared reference"
)]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const TYPE_QUEUE: u32 = 22;

/// The part of `union bpf_attr` for elements.
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for new maps, as far as it is used.
#[repr(C)]
struct NewMap {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// A map by socket whose value has `N` bytes.
#[derive(Debug)]
pub struct BySocket<const N: usize> {
    map: OwnedFd,
}

impl<const N: usize> BySocket<N> {
    /// `map` is by socket, and `value_bytes` what the kernel says its values have.
    pub fn new(map: OwnedFd, value_bytes: u32) -> Option<Self> {
        (usize::try_from(value_bytes) == Ok(N)).then_some(Self { map })
    }

    /// Writes the whole value of a socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn update(&self, socket: BorrowedFd<'_>, value: &[u8; N]) -> Result<(), Errno> {
        let key = socket.as_raw_fd();
        self.element(MAP_UPDATE_ELEM, &raw const key, value.as_ptr() as u64)
    }

    /// Reads the value of a socket.
    ///
    /// # Errors
    /// `NOENT` when it has none, or what the kernel says.
    pub fn lookup(&self, socket: BorrowedFd<'_>) -> Result<[u8; N], Errno> {
        let (key, mut value) = (socket.as_raw_fd(), [0; N]);
        self.element(MAP_LOOKUP_ELEM, &raw const key, value.as_mut_ptr() as u64)?;
        Ok(value)
    }

    fn element(&self, command: libc::c_int, key: *const i32, value: u64) -> Result<(), Errno> {
        let element = Element {
            map: self.map.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key as u64,
            value,
            flags: 0,
        };
        // SAFETY: key points to four bytes and value to N, both alive for the call; N is the size
        // that the kernel has for this map's values, and only a lookup writes, to a `mut` buffer.
        unsafe { bpf(command, &element) }.map(drop)
    }
}

/// Whether bpf(2) works with `CAP_BPF`: makes a queue of one element and drops it. Queues are for
/// those with the capability even where arrays are for everybody.
///
/// # Errors
/// What the kernel says.
pub fn probe() -> Result<(), Errno> {
    let map = NewMap {
        kind: TYPE_QUEUE,
        key_bytes: 0,
        value_bytes: 8,
        entries: 1,
        flags: 0,
    };
    // SAFETY: this command reads the attribute and nothing else.
    let made = unsafe { bpf(MAP_CREATE, &map) }?;
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(made) });
    Ok(())
}

/// # Safety
/// `attribute` must be the part of `union bpf_attr` for `command`, and what it points to be valid
/// for what the command does with it.
unsafe fn bpf<T>(command: libc::c_int, attribute: &T) -> Result<libc::c_int, Errno> {
    let attribute = std::ptr::from_ref(attribute);
    // SAFETY: by the contract of this function; the size is that of the attribute.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size_of::<T>()) };
    match libc::c_int::try_from(done) {
        Ok(done) if done >= 0 => Ok(done),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

//! A TUN device: two calls for which no crate of the tree has a safe name.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::ioctl::{IntegerSetter, Opcode, Updater, opcode};

const SET_INTERFACE: Opcode = opcode::write::<i32>(b'T', 202);
const SET_OFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
/// IP packets, no protocol header, but the virtio one that tells of segments.
const FLAGS: u16 = 0x0001 | 0x1000 | 0x4000;
/// Checksums and TCP segmentation are left to the other side.
const OFFLOADS: usize = 1 | 2 | 4;
/// `struct ifreq`: the name and a union.
const REQUEST_BYTES: usize = 40;
const NAME_BYTES: usize = 16;

/// Makes device `name` in the network namespace of the calling thread; non-blocking.
pub(super) fn open(name: &str, offload: bool) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    rustix::io::ioctl_fionbio(&file, true)?;
    let mut request = [0_u8; REQUEST_BYTES];
    let length = name.len().min(NAME_BYTES - 1);
    request[..length].copy_from_slice(&name.as_bytes()[..length]);
    request[NAME_BYTES..NAME_BYTES + 2].copy_from_slice(&FLAGS.to_ne_bytes());
    set(&file, &mut request, offload).with_context(|| format!("making the device {name}"))?;
    Ok(file)
}

#[allow(unsafe_code, reason = "no crate of the tree makes TUN devices")]
fn set(file: &File, request: &mut [u8; REQUEST_BYTES], offload: bool) -> Result<()> {
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, whose size this is.
    unsafe {
        let call = Updater::<SET_INTERFACE, [u8; REQUEST_BYTES]>::new(request);
        rustix::ioctl::ioctl(file, call)?;
    }
    let wanted = if offload { OFFLOADS } else { 0 };
    // SAFETY: TUNSETOFFLOAD takes flags by value.
    unsafe {
        let call = IntegerSetter::<SET_OFFLOAD>::new_usize(wanted);
        rustix::ioctl::ioctl(file, call)?;
    }
    Ok(())
}

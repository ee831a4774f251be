//! What an object needs beside its programs.
#![expect(unsafe_code, reason = "a symbol by name")]

/// Never reached: the programs hold nothing that panics.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The trace programs call helpers that want it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// What the reader compares with its own version before the kernel sees anything.
#[unsafe(link_section = "culvert_abi")]
#[unsafe(no_mangle)]
static VERSION_OF_RECORDS: u16 = culvert_abi::VERSION;

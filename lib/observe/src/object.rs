//! The object with the programs: the one that was built in, and whether it is what it should be.

use object::endian::Endianness;
use object::read::elf::ElfFile64;
use object::{Architecture, Object as _, ObjectSection as _};

/// The programs. The build refuses them when their checksum is another.
pub const BUILT_IN: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../ebpf/prebuilt/culvert.bpf.o"
));

/// Section that holds [`culvert_abi::VERSION`].
const VERSION_SECTION: &str = "culvert_abi";

/// Why an object is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// There is none.
    #[error("the eBPF object is missing: it has no bytes")]
    Missing,
    /// No ELF file, or a part of one.
    #[error("the eBPF object is damaged: {0}")]
    Damaged(String),
    /// For another machine or byte order.
    #[error("the eBPF object is for {0}, and this host wants {NATIVE} BPF")]
    Foreign(String),
    /// Of another version of the records.
    #[error(
        "the eBPF object has version {found} of the records, and this program version {wanted}"
    )]
    Version {
        /// What it says; 0 when it says nothing.
        found: u16,
        /// What this program was built with.
        wanted: u16,
    },
}

const NATIVE: &str = match cfg!(target_endian = "little") {
    true => "little-endian",
    false => "big-endian",
};

/// The byte order that the first bytes of an ELF file name.
fn byte_order(bytes: &[u8]) -> Option<&'static str> {
    let order = bytes.strip_prefix(b"\x7fELF")?.get(1)?;
    match order {
        1 => Some("little-endian"),
        2 => Some("big-endian"),
        _ => None,
    }
}

/// Looks at an object before the kernel sees it.
pub fn check(bytes: &[u8]) -> Result<(), ObjectError> {
    if bytes.is_empty() {
        return Err(ObjectError::Missing);
    }
    let damaged = |why: object::Error| ObjectError::Damaged(why.to_string());
    if let Some(order) = byte_order(bytes).filter(|it| *it != NATIVE) {
        return Err(ObjectError::Foreign(order.to_owned()));
    }
    let file = ElfFile64::<Endianness>::parse(bytes).map_err(damaged)?;
    if file.architecture() != Architecture::Bpf {
        let machine = format!("{:?}", file.architecture());
        return Err(ObjectError::Foreign(machine));
    }
    let section = file.section_by_name(VERSION_SECTION);
    let data = section.map(|it| it.data()).transpose().map_err(damaged)?;
    let first = data.and_then(|it| it.first_chunk::<2>().copied());
    let found = first.map_or(0, u16::from_ne_bytes);
    match found == culvert_abi::VERSION {
        true => Ok(()),
        false => Err(ObjectError::Version {
            found,
            wanted: culvert_abi::VERSION,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_damaged_object_is_refused_or_read_and_never_a_panic(
            at in 0..BUILT_IN.len(),
            change in 1_u8..,
            length in 0..BUILT_IN.len(),
        ) {
            let mut bytes = BUILT_IN.to_vec();
            bytes[at] ^= change;
            let _ = check(&bytes);
            prop_assert!(check(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn the_object_that_is_built_in_is_of_this_version() {
        assert_eq!(check(BUILT_IN), Ok(()));
    }
}

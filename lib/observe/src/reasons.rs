//! Names of the reasons for which this kernel sends resets. They are numbered anew from release to
//! release, so they are read from its own types. Pure, but for the file.

/// Where the running kernel describes its types.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
const ENUM: &str = "sk_rst_reason";
const PREFIX: &str = "SK_RST_REASON_";

const MAGIC: u16 = 0xeb9f;
/// Bytes before the part of a type that depends on its kind.
const TYPE_BYTES: usize = 12;

/// Names in the order of their numbers; empty where the kernel has none, as before 6.10.
pub fn read() -> Vec<(u32, String)> {
    std::fs::read(TYPES).map_or_else(|_| Vec::new(), |types| named(&types).unwrap_or_default())
}

/// The members of the enum in the bytes of a BTF section, without their prefix, in lower case.
fn named(types: &[u8]) -> Option<Vec<(u32, String)>> {
    let four = |from: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(from.get(at..)?.first_chunk().copied()?))
    };
    let magic = u16::from_ne_bytes(types.first_chunk().copied()?);
    if magic != MAGIC {
        return None;
    }
    let field = |at| four(types, at).and_then(|it| usize::try_from(it).ok());
    let [header, type_at, type_bytes, string_at] = [field(4)?, field(8)?, field(12)?, field(16)?];
    let strings = types.get(header.checked_add(string_at)?..)?;
    let string = |at: u32| -> Option<&str> {
        let rest = strings.get(usize::try_from(at).ok()?..)?;
        std::str::from_utf8(rest.split(|byte| *byte == 0).next()?).ok()
    };
    let first = header.checked_add(type_at)?;
    let mut rest = types.get(first..first.checked_add(type_bytes)?)?;
    while rest.len() >= TYPE_BYTES {
        let (name, info) = (four(rest, 0)?, four(rest, 4)?);
        let members = usize::try_from(info & 0xffff).ok()?;
        let kind = (info >> 24) & 0x1f;
        if kind == 6 && string(name) == Some(ENUM) {
            let member = |at: usize| {
                let from = TYPE_BYTES + at * 8;
                let name = string(four(rest, from)?)?;
                let name = name.strip_prefix(PREFIX).unwrap_or(name);
                Some((four(rest, from + 4)?, name.to_ascii_lowercase()))
            };
            return (0..members).map(member).collect();
        }
        rest = rest.get(TYPE_BYTES + members_bytes(kind, members)?..)?;
    }
    None
}

/// Bytes after the common part of a type, as linux/btf.h has them.
fn members_bytes(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, forward declarations, names, qualifiers, functions, floats, tags of types.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections, wide enums.
        4 | 5 | 15 | 19 => members * 12,
        // Enums, prototypes.
        6 | 13 => members * 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section with an integer, a structure of one member and the enum.
    fn section() -> Vec<u8> {
        let strings = b"\0sk_rst_reason\0SK_RST_REASON_NO_SOCKET\0OTHER\0";
        let types: [u32; 17] = [
            [0, 1 << 24, 4, 32].as_slice(),
            &[0, 4 << 24 | 1, 4, 0, 1, 0],
            &[1, 6 << 24 | 2, 4, 15, 1, 39, 9],
        ]
        .concat()
        .try_into()
        .unwrap();
        let header = [24, 0, 68, 68, u32::try_from(strings.len()).unwrap()];
        let words = header
            .iter()
            .chain(&types)
            .flat_map(|word| word.to_ne_bytes());
        let start = MAGIC.to_ne_bytes().into_iter().chain([1, 0]);
        start.chain(words).chain(*strings).collect()
    }

    #[test]
    fn members_are_found_behind_types_of_other_sizes() {
        let names = named(&section()).unwrap();
        assert_eq!(
            names,
            [(1, "no_socket".to_owned()), (9, "other".to_owned())]
        );
    }

    #[test]
    fn a_section_that_is_cut_or_damaged_has_no_names_and_no_panic() {
        let whole = section();
        for length in 0..whole.len() - 6 {
            assert_eq!(named(&whole[..length]), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = named(&damaged);
            }
        }
    }

    #[test]
    fn the_running_kernel_names_a_closed_socket() {
        let names = read();
        // Before 6.10, or without types, there are none.
        if !names.is_empty() {
            assert!(
                names.iter().any(|(_, name)| name == "no_socket"),
                "{names:?}"
            );
        }
    }
}

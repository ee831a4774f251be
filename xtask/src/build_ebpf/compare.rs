//! Two objects: equal by bytes, or else by what the kernel executes.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind};

/// Bytes of an instruction.
const INSTRUCTION: usize = 8;

/// How two objects are equal.
#[derive(Debug, PartialEq, Eq)]
pub enum Equal {
    /// In every byte.
    Bytes,
    /// In every instruction and what it refers to.
    Instructions,
    /// Not; both disassemblies.
    Not(String, String),
}

/// Compares two objects.
pub fn objects(committed: &[u8], built: &[u8]) -> Result<Equal> {
    if committed == built {
        return Ok(Equal::Bytes);
    }
    let committed = disassembly(committed).context("the committed object")?;
    let built = disassembly(built).context("the built object")?;
    if committed == built {
        return Ok(Equal::Instructions);
    }
    Ok(Equal::Not(committed, built))
}

/// Every program as text: an instruction a line, with the map or function that it names, and
/// the definitions of the maps.
fn disassembly(bytes: &[u8]) -> Result<String> {
    let file = object::File::parse(bytes)?;
    let mut text = String::new();
    for section in file.sections() {
        let name = section.name()?;
        let is_map = name == "maps" || name == ".maps";
        if section.kind() != SectionKind::Text && !is_map {
            continue;
        }
        writeln!(text, "{name}:")?;
        let mut named = section.relocations().peekable();
        for (at, code) in section.data()?.chunks(INSTRUCTION).enumerate() {
            let at = at * INSTRUCTION;
            write!(text, "{at:6x}  {}", instruction(code))?;
            while let Some((_, relocation)) =
                named.next_if(|(offset, _)| *offset < (at + INSTRUCTION) as u64)
            {
                if let RelocationTarget::Symbol(symbol) = relocation.target() {
                    write!(text, "  ; {}", file.symbol_by_index(symbol)?.name()?)?;
                }
            }
            text.push('\n');
        }
    }
    Ok(text)
}

/// Operation, registers, offset and immediate, as the kernel's documentation splits them.
fn instruction(code: &[u8]) -> String {
    let [op, registers, low, high, immediate @ ..] = code else {
        return format!("{code:02x?}");
    };
    let offset = i16::from_le_bytes([*low, *high]);
    let immediate = immediate
        .iter()
        .rev()
        .fold(0_i32, |word, byte| word << 8 | i32::from(*byte));
    let class = ["ld", "ldx", "st", "stx", "alu", "jmp", "jmp32", "alu64"][usize::from(op & 7)];
    let (to, from) = (registers & 0xf, registers >> 4);
    format!("{class:5} {op:#04x} r{to}, r{from}, {offset:+}, {immediate:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> Vec<u8> {
        std::fs::read(crate::run::root().join("ebpf/prebuilt/culvert.bpf.o")).unwrap()
    }

    /// Where a section's bytes lie in the file.
    fn place(object: &[u8], name: &str) -> usize {
        let file = object::File::parse(object).unwrap();
        let section = file.section_by_name(name).unwrap();
        usize::try_from(section.file_range().unwrap().0).unwrap()
    }

    #[test]
    fn equal_bytes_are_equal() {
        assert_eq!(objects(&committed(), &committed()).unwrap(), Equal::Bytes);
    }

    #[test]
    fn types_may_differ_and_instructions_may_not() {
        let mut types = committed();
        let at = place(&types, ".BTF.ext");
        types[at + 40] ^= 1;
        assert_eq!(objects(&committed(), &types).unwrap(), Equal::Instructions);

        let mut code = committed();
        let at = place(&code, "sockops");
        code[at + 8 + 4] ^= 1;
        let Equal::Not(ours, theirs) = objects(&committed(), &code).unwrap() else {
            panic!("an instruction differs");
        };
        let differ = ours.lines().zip(theirs.lines()).filter(|(a, b)| a != b);
        assert_eq!(differ.count(), 1, "{ours}");
        assert!(ours.contains("; IDENT"), "maps are named");
    }

    /// The oldest kernel that is promised: later instructions and helpers would be refused there.
    #[test]
    fn every_instruction_is_one_of_linux_5_10() {
        /// `bpf_redirect_peer`; the next one came with 5.11.
        const HELPER_MAX: i32 = 155;
        let bytes = committed();
        let file = object::File::parse(bytes.as_slice()).unwrap();
        let code = file
            .sections()
            .filter(|section| section.kind() == SectionKind::Text);
        let mut calls = 0;
        for section in code {
            let data = section.data().unwrap();
            let mut wide = false;
            for (at, code) in data.chunks(INSTRUCTION).enumerate() {
                // The second half of a load of 64 bits is no instruction.
                if std::mem::take(&mut wide) {
                    continue;
                }
                let [op, _, low, high, immediate @ ..] = code else {
                    panic!("half an instruction");
                };
                let offset = i16::from_le_bytes([*low, *high]);
                let immediate = i32::from_le_bytes(immediate.try_into().unwrap());
                wide = *op == 0x18;
                let known = match *op {
                    // Sign-extending loads, byte swaps without order, far jumps: 6.6.
                    op if op & 0xe7 == 0x81 => false,
                    0xd7 | 0x06 => false,
                    // Sign-extending moves, signed division.
                    0xbc | 0xbf | 0x34 | 0x37 | 0x3c | 0x3f | 0x94 | 0x97 | 0x9c | 0x9f => {
                        offset == 0
                    }
                    // Atomics that return something: 5.12.
                    0xc3 | 0xdb => immediate == 0,
                    0x85 => {
                        calls += 1;
                        code[1] >> 4 != 0 || (1..=HELPER_MAX).contains(&immediate)
                    }
                    _ => true,
                };
                let name = section.name().unwrap();
                assert!(known, "{name} {}: {}", at * INSTRUCTION, instruction(code));
            }
        }
        assert!(calls > 20, "{calls} calls were looked at");
    }
}

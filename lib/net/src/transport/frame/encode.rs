//! Our own frames.

use super::HEADER_BYTES_MAX;

/// Header of a whole (unfragmented) frame of ours; returns it and its length.
#[must_use]
pub fn encode_header(
    opcode: u8,
    length: usize,
    mask: Option<[u8; 4]>,
) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut header = [0; HEADER_BYTES_MAX];
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    header[0] = 0x80 | opcode;
    let mut used = match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => {
            header[1] = mask_bit | short;
            2
        }
        (_, Ok(medium)) => {
            header[1] = mask_bit | 126;
            header[2..4].copy_from_slice(&medium.to_be_bytes());
            4
        }
        _ => {
            header[1] = mask_bit | 127;
            header[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    if let Some(mask) = mask {
        header[used..used + 4].copy_from_slice(&mask);
        used += 4;
    }
    (header, used)
}

/// XORs `data` with the mask and turns the mask, so that the next call continues.
pub fn apply_mask(data: &mut [u8], mask: &mut [u8; 4]) {
    let word = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let mut words = data.chunks_exact_mut(8);
    for chunk in &mut words {
        let mut value = [0; 8];
        value.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(value) ^ word).to_ne_bytes());
    }
    let rest = words.into_remainder();
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    let turn = rest.len() % 4;
    mask.rotate_left(turn);
}

#![no_main]

use bytes::Bytes;
use culvert_proto::control::ControlDecoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((piece, wire)) = data.split_first() else {
        return;
    };
    let mut decoder = ControlDecoder::new();
    for piece in wire.chunks(usize::from(*piece) + 1) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match decoder.push(&mut piece) {
                Ok(Some(message)) => drop(message.encode()),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});

#![no_main]

use bytes::Bytes;
use culvert_proto::open::StreamHeaderDecoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte chooses where the rest is cut.
    let Some((cut, wire)) = data.split_first() else {
        return;
    };
    let (first, second) = wire.split_at(usize::from(*cut).min(wire.len()));
    let mut decoder = StreamHeaderDecoder::new();
    for piece in [first, second] {
        match decoder.push(&mut Bytes::copy_from_slice(piece)) {
            Ok(Some(header)) => {
                let again = header.encode().expect("what was read can be written");
                let read = StreamHeaderDecoder::new().push(&mut again.clone());
                assert_eq!(read, Ok(Some(header)));
                return;
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
});

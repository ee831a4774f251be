#![no_main]

use bytes::Bytes;
use culvert_proto::open::DialAnswerDecoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = DialAnswerDecoder::new().push(&mut Bytes::copy_from_slice(data));
});

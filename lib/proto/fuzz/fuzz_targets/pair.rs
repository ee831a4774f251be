#![no_main]

use culvert_proto::pair::{Preface, PrefaceReader, RelayHello, Reply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(bytes) = data.first_chunk()
        && let Ok(reply) = Reply::decode(bytes)
    {
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
    if let Some(bytes) = data.first_chunk()
        && let Ok(hello) = RelayHello::decode(bytes)
    {
        assert_eq!(RelayHello::decode(&hello.encode()), Ok(hello));
    }
    let mut reader = PrefaceReader::default();
    let mut input = data;
    let read = reader.feed(&mut input);
    if let Ok(Some(preface)) = &read {
        let taken = &data[..data.len() - input.len()];
        assert_eq!(preface.encode(), taken);
        assert_eq!(Preface::decode(taken).as_ref(), Ok(preface));
    }
    // Byte by byte: the same verdict, and never a byte too many.
    let mut reader = PrefaceReader::default();
    let mut bytewise = Ok(None);
    for byte in data.chunks(1) {
        assert!(reader.wanted() > 0);
        bytewise = reader.feed(&mut &*byte);
        if !matches!(bytewise, Ok(None)) {
            break;
        }
    }
    assert_eq!(bytewise.is_err(), read.is_err());
    assert_eq!(bytewise.ok().flatten(), read.ok().flatten());
});

#![no_main]

use culvert_proto::hello::{Caps, HelloAnswer, HelloRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Lines of `name: value`; the first line is the query.
    let mut lines = data.split(|byte| *byte == b'\n');
    let query = lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let fields: Vec<(&str, &[u8])> = lines
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((
                std::str::from_utf8(&line[..colon]).ok()?,
                &line[colon + 1..],
            ))
        })
        .collect();
    let _ = HelloRequest::parse(query, fields.iter().copied());
    let _ = HelloAnswer::parse(Caps::DRAIN, fields.iter().copied());
});

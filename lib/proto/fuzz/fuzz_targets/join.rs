#![no_main]

use culvert_proto::join::JoinString;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(word) = std::str::from_utf8(data)
        && let Ok(join) = JoinString::decode(word)
    {
        let again = join.encode().expect("what was read can be written");
        assert!(JoinString::decode(&again).is_ok());
    }
});

#![no_main]

use culvert_proto::id::{ClusterId, InstanceId};
use culvert_proto::token::TokenText;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(token) = TokenText::new(text) {
            let _ = token.shape();
        }
        let _ = text.parse::<ClusterId>();
        let _ = text.parse::<InstanceId>();
    }
});

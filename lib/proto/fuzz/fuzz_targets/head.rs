#![no_main]

use culvert_proto::head::{
    ConnectionTokens, RequestRules, RouteKind, Verdict, is_protected, request_field,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Some(name) = lines.next().and_then(|line| std::str::from_utf8(line).ok()) else {
        return;
    };
    let Ok(connection) = ConnectionTokens::parse(lines) else {
        return;
    };
    for kind in [RouteKind::Kube, RouteKind::Http] {
        let rules = RequestRules {
            kind,
            allow_impersonation: false,
            pass_cookies: false,
        };
        let verdict = request_field(name, &rules, &connection);
        let alias = name.to_ascii_lowercase().replace('_', "-");
        assert!(verdict == Verdict::Drop || !is_protected(&alias));
        assert!(verdict == Verdict::Drop || !name.contains('_'));
    }
});

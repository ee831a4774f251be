#![no_main]

use culvert_proto::id::ClusterId;
use culvert_proto::route::parse_tunnel_path;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(raw) = std::str::from_utf8(data)
        && let Ok(route) = parse_tunnel_path(raw)
    {
        assert!(ClusterId::check(route.cluster).is_ok());
        assert!(route.rest.starts_with('/'));
        let whole = ["/tunnel/", route.cluster, route.rest].concat();
        assert!(whole == raw || whole == format!("{raw}/"));
    }
});

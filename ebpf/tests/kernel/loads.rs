//! Every program is accepted with the two capabilities of production.

use culvert_abi::maps;

use crate::rig::{self, Observer, Tier};

/// Of the kernel's own instructions; more is a cost that nobody meant to add.
const XLATED_BYTES_MAX: u32 = 6_000;

#[test]
fn programs_load_and_link_with_two_capabilities() {
    rig::alone("programs_load_and_link_with_two_capabilities", |place| {
        let observer = Observer::start(place, Tier::Skb);
        for name in [maps::SOCK_OPS, maps::INGRESS, maps::EGRESS] {
            let info = observer.info(name);
            let translated = info.size_translated().unwrap();
            println!(
                "{name}: {translated} bytes translated, {} jited",
                info.size_jitted()
            );
            assert!(translated < XLATED_BYTES_MAX, "{name}: {translated} bytes");
        }
    });
}

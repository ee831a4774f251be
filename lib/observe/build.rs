//! Refuses to build in an object that is not the one whose checksum is committed.

use std::path::Path;

use sha2::{Digest as _, Sha256};

fn main() {
    let prebuilt = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ebpf/prebuilt");
    let (object, sum) = (
        prebuilt.join("culvert.bpf.o"),
        prebuilt.join("culvert.bpf.o.sha256"),
    );
    for file in [&object, &sum] {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let read = |path: &Path| {
        std::fs::read(path).unwrap_or_else(|why| {
            panic!(
                "{}: {why}; `cargo xtask build-ebpf` makes it",
                path.display()
            )
        })
    };
    let digest = Sha256::digest(read(&object));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let wanted = String::from_utf8_lossy(&read(&sum)).into_owned();
    let wanted = wanted.split_whitespace().next().unwrap_or_default();
    assert!(
        digest == wanted,
        "{} has checksum {digest}, and {wanted} is committed; `cargo xtask build-ebpf` makes both",
        object.display()
    );
}

//! Who may import whom: local crates by floor, third-party crates by owner.

use anyhow::Result;
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::run;

/// Each local crate and the local crates it may use. Arrows go down only.
const FLOORS: &[(&str, &[&str])] = &[
    ("culvert-abi", &[]),
    ("culvert-mux", &[]),
    ("culvert-proto", &[]),
    ("culvert-telemetry", &[]),
    ("culvert-config", &["culvert-proto"]),
    ("culvert-identity", &["culvert-proto"]),
    ("culvert-audit", &["culvert-proto"]),
    ("culvert-licence", &[]),
    (
        "culvert-net",
        &["culvert-mux", "culvert-proto", "culvert-telemetry"],
    ),
    (
        "culvert-engine",
        &["culvert-net", "culvert-proto", "culvert-telemetry"],
    ),
    ("culvert-observe", &["culvert-abi"]),
    ("culvert-pki", &["culvert-net"]),
    (
        "culvert-pair",
        &["culvert-net", "culvert-pki", "culvert-proto"],
    ),
    (
        "culvert-enrol",
        &["culvert-net", "culvert-pki", "culvert-proto"],
    ),
    ("culvert-rpc", &["culvert-net", "culvert-proto"]),
    (
        "culvert-control",
        &[
            "culvert-audit",
            "culvert-config",
            "culvert-enrol",
            "culvert-identity",
            "culvert-licence",
            "culvert-net",
            "culvert-proto",
            "culvert-rpc",
            "culvert-telemetry",
        ],
    ),
    (
        "culvert-dataplane",
        &[
            "culvert-audit",
            "culvert-config",
            "culvert-engine",
            "culvert-enrol",
            "culvert-identity",
            "culvert-mux",
            "culvert-net",
            "culvert-observe",
            "culvert-proto",
            "culvert-rpc",
            "culvert-telemetry",
        ],
    ),
    (
        "culvert-agent",
        &[
            "culvert-config",
            "culvert-engine",
            "culvert-enrol",
            "culvert-mux",
            "culvert-net",
            "culvert-pair",
            "culvert-proto",
            "culvert-telemetry",
        ],
    ),
    (
        "culvert-cli",
        &[
            "culvert-licence",
            "culvert-net",
            "culvert-pair",
            "culvert-proto",
        ],
    ),
    (
        "culvert-perf",
        &["culvert-engine", "culvert-mux", "culvert-proto"],
    ),
    ("culvert-ebpf", &["culvert-abi"]),
    ("culvert-benches", &["culvert-engine"]),
    ("xtask", &["culvert-proto"]),
];

/// Third-party crates with an owner: nobody else may name them outside tests.
const OWNERS: &[(&str, &[&str])] = &[
    ("rustls", &["culvert-net"]),
    ("tokio-rustls", &["culvert-net", "culvert-perf"]),
    ("tokio-websockets", &["culvert-net"]),
    (
        "rcgen",
        &[
            "culvert-enrol",
            "culvert-net",
            "culvert-pair",
            "culvert-pki",
        ],
    ),
    ("aws-lc-rs", &["culvert-net"]),
    ("socket2", &["culvert-net", "culvert-perf"]),
    ("tonic", &["culvert-rpc"]),
    ("openidconnect", &["culvert-control"]),
    ("sqlx", &["culvert-control"]),
    ("jsonwebtoken", &["culvert-licence"]),
    ("prometheus", &["culvert-telemetry"]),
    ("tracing-subscriber", &["culvert-telemetry"]),
    ("tokio-uring", &["culvert-dataplane"]),
    ("io-uring", &["culvert-engine"]),
    ("aya", &["culvert-observe"]),
    ("aya-ebpf", &["culvert-ebpf"]),
    ("yamux", &[]),
];

/// Lists every forbidden arrow.
pub fn check() -> Result<Vec<String>> {
    let mut command = MetadataCommand::new();
    let metadata = command
        .current_dir(run::root())
        .other_options(["--locked".to_owned()])
        .exec()?;
    let mut breaches = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let Some((_, allowed)) = FLOORS.iter().find(|(floor, _)| *floor == name) else {
            breaches.push(format!(
                "{name} has no floor: add it to xtask/src/tidy/arrows.rs"
            ));
            continue;
        };
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Development {
                continue;
            }
            let to = dependency.name.as_str();
            if FLOORS.iter().any(|(floor, _)| *floor == to) && !allowed.contains(&to) {
                breaches.push(format!("{name} may not import {to}: arrows go down only"));
            }
            let owners = OWNERS
                .iter()
                .find(|(owned, _)| *owned == to)
                .map(|(_, owners)| owners);
            if owners.is_some_and(|owners| !owners.contains(&name)) {
                breaches.push(format!(
                    "{name} may not name {to}: it belongs to another crate"
                ));
            }
        }
    }
    let ring = run::cargo(&[
        "tree",
        "--locked",
        "--workspace",
        "-e",
        "normal,build",
        "-i",
        "ring",
    ]);
    if run::output(ring).is_ok_and(|tree| !tree.trim().is_empty()) {
        breaches.push("ring is in the build graph: one crypto provider, aws-lc-rs".to_owned());
    }
    breaches.extend(floors()?);
    Ok(breaches)
}

/// Lowest versions with known defects mended that the advisory database lacks.
fn floors() -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    #[derive(serde::Deserialize)]
    struct Advisories {
        advisory: Vec<Advisory>,
    }
    #[derive(serde::Deserialize)]
    struct Advisory {
        package: String,
        patched: cargo_metadata::semver::VersionReq,
        id: String,
    }
    let lock: Lock = toml::from_str(&std::fs::read_to_string(run::root().join("Cargo.lock"))?)?;
    let extra = std::fs::read_to_string(run::root().join("advisories-extra.toml"))?;
    let extra: Advisories = toml::from_str(&extra)?;
    let mut breaches = Vec::new();
    for advisory in &extra.advisory {
        for package in lock
            .package
            .iter()
            .filter(|package| package.name == advisory.package)
        {
            let version = cargo_metadata::semver::Version::parse(&package.version)?;
            if !advisory.patched.matches(&version) {
                let Advisory {
                    package,
                    patched,
                    id,
                } = advisory;
                breaches.push(format!(
                    "{package} {version} is open to {id}: wants {patched}"
                ));
            }
        }
    }
    Ok(breaches)
}

//! cubic as the namespace's congestion control: bbr, a common default of hosts, costs about three
//! times the CPU on loopback and would hide what is measured.

use std::fs;
use std::io;

use anyhow::{Context, Result};

use crate::testbed::Namespace;

/// The default of every socket in the lab.
pub(super) const ALGORITHM: &str = "cubic";
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const DEFAULT: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Sets it. A namespace may only take what the host allows, so the host's list names it for that
/// moment.
pub(super) fn set(namespace: &Namespace) -> Result<()> {
    let allowed = fs::read_to_string(ALLOWED).context("reading the host's congestion controls")?;
    let is_listed = allowed.split_whitespace().any(|name| name == ALGORITHM);
    if !is_listed {
        fs::write(ALLOWED, format!("{} {ALGORITHM}", allowed.trim()))
            .with_context(|| format!("allowing {ALGORITHM} in {ALLOWED}"))?;
    }
    let set: io::Result<()> = namespace.run(|| fs::write(DEFAULT, ALGORITHM));
    if !is_listed {
        fs::write(ALLOWED, allowed.trim()).with_context(|| format!("restoring {ALLOWED}"))?;
    }
    set.with_context(|| format!("setting {ALGORITHM} in {}", namespace.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::{Need, met};

    #[test]
    fn the_lab_has_its_own_default_and_the_host_keeps_its_list() {
        if !met("the lab's congestion control", &[Need::Root]) {
            return;
        }
        let before = fs::read_to_string(ALLOWED).expect("the host's list");
        let namespace = crate::testbed::solitary("cubic").expect("a namespace");
        set(&namespace).expect("cubic");
        let inside = namespace.run(|| fs::read_to_string(DEFAULT)).expect("read");
        assert_eq!(inside.trim(), ALGORITHM);
        assert_eq!(fs::read_to_string(ALLOWED).expect("the list"), before);
    }
}

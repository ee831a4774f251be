//! Settings of enrolment.

use std::path::PathBuf;

use culvert_enrol::{LEAF_LIFE_S_MAX, LEAF_LIFE_S_MIN};

use super::Checks;
use crate::enrol::{Enrolment, LISTENER_NAMES_MAX, import};

impl Checks {
    pub(super) fn enrolment(&mut self) -> Enrolment {
        let ca_dir = self.parsed("agent-ca-dir", |text| {
            let dir = PathBuf::from(text);
            import(&dir).map(|_| dir).map_err(|why| why.to_string())
        });
        Enrolment {
            life_s: self
                .parsed("agent-cert-life", life)
                .unwrap_or(LEAF_LIFE_S_MAX),
            names: self.parsed("agent-tunnel-sans", names).unwrap_or_default(),
            ca_dir,
        }
    }
}

fn life(text: &str) -> Result<u64, String> {
    super::seconds(text)
        .filter(|all| (LEAF_LIFE_S_MIN..=LEAF_LIFE_S_MAX).contains(all))
        .ok_or_else(|| format!("is {text:?}; wanted 60s to 90d, for example 30d"))
}

fn names(text: &str) -> Result<Vec<String>, String> {
    let all: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    if all.len() > LISTENER_NAMES_MAX {
        return Err(format!("holds over {LISTENER_NAMES_MAX} names"));
    }
    let is_name = |name: &&String| {
        let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'*');
        let is_dns = (1..=253).contains(&name.len()) && name.bytes().all(letters);
        is_dns || name.parse::<std::net::IpAddr>().is_ok()
    };
    match all.iter().find(|name| !is_name(name)) {
        Some(bad) => Err(format!("{bad:?} is no DNS name and no address")),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_and_names_keep_to_their_bounds() {
        assert_eq!(life("60s"), Ok(60));
        assert_eq!(life("90d"), Ok(LEAF_LIFE_S_MAX));
        for bad in ["59s", "91d", "1", "", "d", "-1d", "99999999999999999999d"] {
            assert!(life(bad).is_err(), "{bad}");
        }
        let good = names("tunnel.example.com, 192.0.2.1,::1").unwrap();
        assert_eq!(good, ["tunnel.example.com", "192.0.2.1", "::1"]);
        for bad in ["", "a,,b", "a b", "ex/ample", &"a,".repeat(40)] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }
}

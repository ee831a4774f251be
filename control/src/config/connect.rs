//! How long agents that have no token wait for an administrator.

use super::Checks;

const LIFE_SECONDS_MIN: u64 = 5;
const LIFE_SECONDS_MAX: u64 = 3_600;

impl Checks {
    /// In milliseconds; `None` = no agent can ask.
    pub(super) fn connect_life_ms(&mut self) -> Option<u64> {
        self.parsed("connect-life", life_ms).flatten()
    }
}

fn life_ms(text: &str) -> Result<Option<u64>, String> {
    if text == "off" {
        return Ok(None);
    }
    let in_range =
        super::seconds(text).filter(|it| (LIFE_SECONDS_MIN..=LIFE_SECONDS_MAX).contains(it));
    in_range
        .map(|seconds| Some(seconds * 1_000))
        .ok_or_else(|| format!("is {text:?}; wanted 5s to 1h, for example 15m, or off"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_has_a_unit_and_bounds() {
        assert_eq!(life_ms("15m"), Ok(Some(900_000)));
        assert_eq!(life_ms("5s"), Ok(Some(5_000)));
        assert_eq!(life_ms("off"), Ok(None));
        for bad in ["", "15", "4s", "2h", "1d", "-5s", "99999999999999999999h"] {
            assert!(life_ms(bad).is_err(), "{bad}");
        }
    }
}

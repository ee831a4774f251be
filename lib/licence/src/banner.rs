//! What people see of the licence.

use crate::{Rung, Standing, vendor};

/// How loud a banner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A warning.
    Yellow,
    /// A loud one. Nothing is blocked.
    Red,
}

/// The one banner to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banner {
    /// How loud.
    pub level: Level,
    /// What it says.
    pub text: String,
}

impl Level {
    /// The word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yellow => "yellow",
            Self::Red => "red",
        }
    }
}

/// The banner of a hub in `mode`: both reasons in one, the louder level wins.
#[must_use]
pub fn banner(standing: Standing, rung: Rung, mode: &str) -> Option<Banner> {
    let of_standing = match standing {
        Standing::Valid => None,
        Standing::Expired => Some("License is expired"),
        Standing::Invalid => Some("License verification failed"),
        Standing::Unlicensed if mode == vendor::SELF_HOSTED => Some("Running unlicensed"),
        Standing::Unlicensed => None,
    };
    let of_server = (rung > Rung::Silent).then_some(vendor::BANNER_UNREACHABLE);
    let texts: Vec<&str> = of_server.into_iter().chain(of_standing).collect();
    if texts.is_empty() {
        return None;
    }
    Some(Banner {
        level: if rung >= Rung::Red {
            Level::Red
        } else {
            Level::Yellow
        },
        text: texts.join(". "),
    })
}

/// Whether an administrator is warned at each login.
#[must_use]
pub fn login_warning(rung: Rung) -> bool {
    rung >= Rung::Red
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_louder_reason_sets_the_level() {
        let show = |standing, rung| {
            banner(standing, rung, vendor::SELF_HOSTED).map(|it| (it.level, it.text))
        };
        assert_eq!(show(Standing::Valid, Rung::Silent), None);
        assert_eq!(
            show(Standing::Valid, Rung::Yellow),
            Some((Level::Yellow, "Cannot reach license server".to_owned()))
        );
        for standing in [Standing::Expired, Standing::Invalid, Standing::Unlicensed] {
            assert_eq!(show(standing, Rung::Silent).unwrap().0, Level::Yellow);
            let (level, text) = show(standing, Rung::LongRed).unwrap();
            assert_eq!(level, Level::Red);
            assert!(text.starts_with("Cannot reach license server. "), "{text}");
        }
        assert_eq!(banner(Standing::Unlicensed, Rung::Silent, "managed"), None);
        assert!(login_warning(Rung::Red) && login_warning(Rung::LongRed));
        assert!(!login_warning(Rung::Yellow));
    }
}

//! How people sign in.

mod oidc;

use std::io::Read as _;
use std::time::Duration;

use clap::Command;
use culvert_identity::Life;

use super::{Checks, interval, public_url};
use crate::identity::{Admin, Oidc, SignIn, hash};
use crate::outbound::Outbound;

const HASH_VERB: &str = "hash-password";
/// Longest password that is read, in bytes.
const PASSWORD_BYTES_MAX: u64 = 4_096;
/// Origins at most.
const ORIGINS_MAX: usize = 32;

pub(super) fn verb(command: Command) -> Command {
    command.subcommand(
        Command::new(HASH_VERB).about(
            "Read a password from standard input and print its hash for --admin-password-hash",
        ),
    )
}

impl Checks {
    /// The hash of the password on standard input, where that was asked for.
    pub(super) fn hashed(&mut self) -> Option<String> {
        self.layers.matches.subcommand_matches(HASH_VERB)?;
        let mut password = String::new();
        let read = std::io::stdin()
            .take(PASSWORD_BYTES_MAX)
            .read_to_string(&mut password);
        let hashed = match read {
            Ok(_) => hash(password.trim_end_matches(['\r', '\n'])),
            Err(why) => Err(why.to_string()),
        };
        match hashed {
            Ok(hashed) => Some(hashed),
            Err(why) => {
                self.problems.push(why);
                None
            }
        }
    }

    /// Without a cookie password nobody signs in.
    pub(super) fn sign_in(&mut self, own: Option<&str>, outbound: &Outbound) -> Option<SignIn> {
        let text = |text: &str| Ok(text.to_owned());
        let password = self.parsed("cookie-password", text);
        let previous = self.parsed("cookie-password-previous", text);
        let idle = self.parsed("session-idle", interval).unwrap_or_default();
        let absolute = self.parsed("session-life", interval).unwrap_or_default();
        let admin = self.admin();
        let mut origins: Vec<String> = self
            .parsed("allowed-origins", |text| {
                let all = text.split(',').map(str::trim);
                all.map(origin).collect::<Result<Vec<_>, _>>()
            })
            .unwrap_or_default();
        origins.extend(own.and_then(|url| origin(url).ok()));
        if origins.len() > ORIGINS_MAX {
            self.say(
                "allowed-origins",
                &format!("holds over {ORIGINS_MAX} origins"),
            );
        }
        let Some(password) = password else {
            if admin.is_some() {
                self.say(
                    "admin-email",
                    "needs --cookie-password: sessions are sealed with it",
                );
            }
            self.no_providers();
            return None;
        };
        if origins.is_empty() {
            self.say(
                "cookie-password",
                "needs --public-url: pages of it alone may change something",
            );
        }
        let seconds = |time: Duration| time.as_secs();
        let life = Life {
            idle_s: seconds(idle),
            absolute_s: seconds(absolute),
        };
        match SignIn::new(&password, previous.as_deref(), life, admin, origins) {
            Ok(mut sign_in) => {
                sign_in.oidc = Oidc::new(self.providers(own, outbound));
                sign_in.tiers = self.tiers();
                Some(sign_in)
            }
            Err(why) => {
                self.say("cookie-password", &why.to_string());
                None
            }
        }
    }

    fn admin(&mut self) -> Option<Admin> {
        let text = |text: &str| Ok(text.to_owned());
        let email = self.parsed("admin-email", text);
        let hash = self.parsed("admin-password-hash", text);
        match (email, hash) {
            (None, None) => None,
            (Some(email), Some(hash)) => match Admin::new(&email, &hash) {
                Ok(admin) => Some(admin),
                Err(why) => {
                    self.say("admin-password-hash", &why.to_string());
                    None
                }
            },
            (Some(_), None) => {
                self.say("admin-email", "needs --admin-password-hash");
                None
            }
            (None, Some(_)) => {
                self.say("admin-password-hash", "needs --admin-email");
                None
            }
        }
    }
}

/// The origin of a URL, as browsers send it.
fn origin(url: &str) -> Result<String, String> {
    let url = public_url(url)?;
    let parsed = url::Url::parse(&url).map_err(|why| why.to_string())?;
    Ok(parsed.origin().ascii_serialization())
}

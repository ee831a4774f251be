//! A sign-in on its way: what control has to know again when the browser comes back
//! from the identity provider, sealed into a cookie of its own (R-20).

use serde::{Deserialize, Serialize};

use crate::session::{CookieError, NONCE_BYTES, Ring, SealError};
use crate::{LOGIN_COOKIE, Session};

/// A sign-in has to come back within this time, in seconds.
pub const LOGIN_S_MAX: u64 = 600;
/// Longest path that a sign-in leads to, in bytes.
pub const PATH_BYTES_MAX: usize = 1_024;

/// A sign-in that has begun. Its secrets have no `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Which provider was asked: an answer of another is refused.
    #[serde(rename = "p")]
    pub provider: String,
    /// Comes back in the answer's URL.
    #[serde(rename = "s")]
    pub state: String,
    /// Comes back in the ID token.
    #[serde(rename = "o")]
    pub nonce: String,
    /// Whoever redeems the code has to know it (PKCE).
    #[serde(rename = "k")]
    pub verifier: String,
    /// Where the browser goes then: a [`local_path`].
    #[serde(rename = "r")]
    pub path: String,
    /// Seconds since 1970.
    #[serde(rename = "x")]
    pub expires_unix_s: u64,
}

impl Ring {
    /// Seals a sign-in for [`LOGIN_COOKIE`] with a fresh random `nonce`.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal_login(&self, login: &Login, nonce: [u8; NONCE_BYTES]) -> Result<String, SealError> {
        self.seal_box(LOGIN_COOKIE, login, nonce)
    }

    /// Opens the value of [`LOGIN_COOKIE`].
    ///
    /// # Errors
    /// [`CookieError`], the first thing that is wrong with it.
    pub fn open_login(&self, text: &str, now_unix_s: u64) -> Result<Login, CookieError> {
        let login: Login = self.open_box(LOGIN_COOKIE, text)?;
        if now_unix_s >= login.expires_unix_s {
            return Err(CookieError::Expired);
        }
        Ok(login)
    }
}

impl Session {
    /// A session without an end yet: [`Session::begin`] gives it one.
    #[must_use]
    pub fn of(subject: String, provider: String, epoch: u64) -> Self {
        Self {
            subject,
            email: String::new(),
            groups: Vec::new(),
            tier: None,
            provider,
            issued_unix_s: 0,
            sealed_unix_s: 0,
            idle_until_unix_s: 0,
            expires_unix_s: 0,
            epoch,
        }
    }
}

/// The path, if a browser that is sent there stays on this host whatever it makes of the text:
/// one slash first, and nothing but visible ASCII without a backslash.
#[must_use]
pub fn local_path(path: &str) -> Option<&str> {
    let is_plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    let is_local = path.starts_with('/') && !path.starts_with("//");
    (is_plain && is_local && path.len() <= PATH_BYTES_MAX).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, SESSION_COOKIE};
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    const NOW: u64 = 1_763_683_200;

    fn ring(n: u8) -> Ring {
        let current = Key::new([n; 8], Zeroizing::new([n; 32]));
        Ring {
            current,
            previous: None,
        }
    }

    fn login() -> Login {
        Login {
            provider: "corp".to_owned(),
            state: "s".repeat(43),
            nonce: "n".repeat(43),
            verifier: "v".repeat(43),
            path: "/c/prod/".to_owned(),
            expires_unix_s: NOW + LOGIN_S_MAX,
        }
    }

    #[test]
    fn a_sign_in_comes_back_in_time_and_only_from_its_own_cookie() {
        let text = ring(1).seal_login(&login(), [9; 24]).unwrap();
        let open = |now| ring(1).open_login(&text, now).err();
        assert!(ring(1).open_login(&text, NOW).is_ok_and(|it| it == login()));
        assert_eq!(open(NOW + LOGIN_S_MAX - 1), None);
        assert_eq!(open(NOW + LOGIN_S_MAX), Some(CookieError::Expired));
        let foreign = ring(2).open_login(&text, NOW);
        assert_eq!(foreign.err(), Some(CookieError::UnknownKey));
        // A sign-in is no session, and a session no sign-in, whatever the cookie is called.
        assert!(ring(1).open(SESSION_COOKIE, &text, NOW).is_err());
        assert!(ring(1).open(LOGIN_COOKIE, &text, NOW).is_err());
        let session = Session::of("ana".to_owned(), "corp".to_owned(), 0);
        let session = session.begin(
            crate::Life {
                idle_s: 60,
                absolute_s: 60,
            },
            NOW,
        );
        for name in [LOGIN_COOKIE, SESSION_COOKIE] {
            let sealed = ring(1).seal(name, &session, [9; 24]).unwrap();
            assert!(ring(1).open_login(&sealed, NOW).is_err());
        }
        let long = Login {
            path: "/".repeat(4_000),
            ..login()
        };
        assert!(ring(1).seal_login(&long, [9; 24]).is_err());
    }

    #[test]
    fn paths_of_other_hosts_are_none() {
        for good in ["/", "/c/prod/", "/c/prod/?a=b&c=%2F%2Fx#y", "/a//b", "/@x"] {
            assert_eq!(local_path(good), Some(good));
        }
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        for bad in [
            "",
            "c",
            "//evil.test",
            "///evil.test",
            "/\\evil.test",
            "\\\\evil.test",
            "https://evil.test/",
            "javascript:alert(1)",
            "/\tevil",
            "\t//evil.test",
            "/a\r\nSet-Cookie: x",
            " /",
            "/ä",
            long.as_str(),
        ] {
            assert_eq!(local_path(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_local_path_stays_on_its_host(path in "[/\\\\@:.?#a-z%0-9\t ]{0,24}") {
            if let Some(path) = local_path(&path) {
                // As browsers read it: the rules of the URL standard.
                let here = url::Url::parse("https://hub.test/api/auth/callback?code=x").unwrap();
                let there = here.join(path).unwrap();
                prop_assert_eq!(there.origin(), here.origin());
            }
        }
    }
}

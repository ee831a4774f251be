//! How people are known here: sealed sessions, opened without asking anybody.

mod opened;

use std::sync::Arc;

use culvert_identity::{CookieError, Life, Ring, SESSION_COOKIE, Session, find_among};
use culvert_net::crypto::random_bytes;
use culvert_proto::update::{Ended, State};
use http::Uri;
use http::header::{COOKIE, HOST, HeaderMap, HeaderValue, ORIGIN};
use http::uri::Authority;

use opened::Opened;

/// The keys of sessions and who signed out, as one generation has them.
pub struct People {
    ring: Ring,
    life: Life,
    origins: Vec<Arc<str>>,
    /// Their hosts.
    names: Vec<String>,
    ended: Arc<Ended>,
    opened: Opened,
}

/// Somebody who is signed in.
pub struct SignedIn {
    /// Their session.
    pub session: Arc<Session>,
    /// `Set-Cookie`, when the session has to be sealed anew.
    pub renewed: Option<HeaderValue>,
}

/// Why a request is not of somebody who is signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSignedIn {
    /// No cookie, or more than one.
    #[error("there is no session cookie, or more than one")]
    NoCookie,
    /// A cookie that opens nothing.
    #[error("the session cookie is refused: {0}")]
    Cookie(#[from] CookieError),
}

impl People {
    /// What `state` says; `None` when nobody is signed in there.
    pub fn of(state: &State) -> Option<Self> {
        let sign_in = state.settings.sign_in.as_ref()?;
        Some(Self {
            ring: Ring::of(sign_in)?,
            life: Life::from(&**sign_in),
            names: sign_in.origins.iter().filter_map(|it| host(it)).collect(),
            origins: sign_in.origins.clone(),
            ended: state.ended.clone(),
            opened: Opened::default(),
        })
    }

    /// Who sends these headers.
    ///
    /// # Errors
    /// [`NotSignedIn`].
    pub fn session(&self, headers: &HeaderMap, now_unix_s: u64) -> Result<SignedIn, NotSignedIn> {
        let lines = headers.get_all(COOKIE).iter();
        let lines = lines.filter_map(|line| line.to_str().ok());
        let text = find_among(lines, SESSION_COOKIE).ok_or(NotSignedIn::NoCookie)?;
        let session = match self.opened.find(text) {
            Some(session) => session,
            None => {
                let session = self.ring.open(SESSION_COOKIE, text, now_unix_s)?;
                self.opened.keep(text, session)
            }
        };
        session.is_in_time(now_unix_s)?;
        if !session.is_within(self.life, now_unix_s) {
            return Err(CookieError::Expired.into());
        }
        if !self.allows(&session) {
            return Err(CookieError::SignedOut.into());
        }
        let is_due = session.wants_renewal(self.life, now_unix_s);
        let renewed = (is_due || self.ring.is_of_previous(text))
            .then(|| self.renewed(&session, now_unix_s))
            .flatten();
        Ok(SignedIn { session, renewed })
    }

    /// Whether a session that is open may go on: its subject did not sign out everywhere.
    pub fn allows(&self, session: &Session) -> bool {
        let issued_ms = session.issued_unix_s.saturating_mul(1000);
        self.ended
            .allows(&session.subject, session.epoch, issued_ms)
    }

    /// Whether the request comes from one of our own pages: browsers say so in `Origin`.
    pub fn is_own_page(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(ORIGIN).iter();
        let (Some(origin), None) = (given.next(), given.next()) else {
            return false;
        };
        let known = self
            .origins
            .iter()
            .any(|own| own.as_bytes() == origin.as_bytes());
        let site = headers.get("sec-fetch-site");
        known && site.is_none_or(|site| site != "cross-site")
    }

    /// Whether the request is for a name of ours, by whatever port: a page of another name, which its
    /// owner had point here, is none (DNS rebinding).
    pub fn is_own_name(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let named = host.and_then(|host| host.parse::<Authority>().ok());
        let Some(named) = uri.authority().or(named.as_ref()) else {
            return false;
        };
        // Without an origin there is no name to compare with.
        self.names.is_empty()
            || self
                .names
                .iter()
                .any(|own| own.eq_ignore_ascii_case(named.host()))
    }

    fn renewed(&self, session: &Session, now_unix_s: u64) -> Option<HeaderValue> {
        let session = session.clone().renewed(self.life, now_unix_s);
        let cookie = self.ring.set_cookie(&session, random_bytes(), now_unix_s);
        // A session that was sealed before fits again.
        let mut cookie = HeaderValue::try_from(cookie.ok()?).ok()?;
        cookie.set_sensitive(true);
        Some(cookie)
    }
}

fn host(origin: &str) -> Option<String> {
    let uri: Uri = origin.parse().ok()?;
    uri.host().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_identity::Key;
    use culvert_proto::update::{Settings, SignIn};

    const NOW: u64 = 1_763_683_200;

    fn key(n: u8) -> Key {
        Key::new([n; 8], [n; 32].into())
    }

    fn state(keys: &[u8]) -> State {
        let sign_in = SignIn {
            keys: keys.iter().map(|n| key(*n).published()).collect(),
            idle_s: 1_800,
            life_s: 28_800,
            origins: vec!["https://hub.test".into()],
        };
        State {
            settings: Settings {
                sign_in: Some(Arc::new(sign_in)),
                ..Settings::default()
            },
            ..State::default()
        }
    }

    fn cookie(n: u8) -> HeaderValue {
        let ring = Ring {
            current: key(n),
            previous: None,
        };
        let life = Life {
            idle_s: 1_800,
            absolute_s: 86_400,
        };
        let session = Session {
            subject: "ana".to_owned(),
            email: String::new(),
            groups: Vec::new(),
            tier: None,
            provider: "corp".to_owned(),
            issued_unix_s: 0,
            sealed_unix_s: 0,
            idle_until_unix_s: 0,
            expires_unix_s: 0,
            epoch: 0,
        };
        let text = ring.seal(SESSION_COOKIE, &session.begin(life, NOW), [9; 24]);
        HeaderValue::try_from(format!("{SESSION_COOKIE}={}", text.unwrap())).unwrap()
    }

    fn headers(lines: &[HeaderValue]) -> HeaderMap {
        let lines = lines.iter().map(|line| (COOKIE, line.clone()));
        lines.collect()
    }

    #[test]
    fn a_session_opens_until_it_ends_and_is_sealed_anew_at_half() {
        let people = People::of(&state(&[2, 1])).unwrap();
        let open = |n, now| people.session(&headers(&[cookie(n)]), now);
        assert_eq!(open(2, NOW).unwrap().session.subject, "ana");
        assert!(open(2, NOW + 899).unwrap().renewed.is_none());
        let renewed = open(2, NOW + 900).unwrap().renewed.unwrap();
        let text = renewed.to_str().unwrap();
        assert!(text.contains("Secure; HttpOnly; SameSite=Lax"), "{text}");
        let kept = HeaderValue::from_str(text.split(';').next().unwrap()).unwrap();
        assert!(people.session(&headers(&[kept]), NOW + 2_699).is_ok());
        let of_the_old_key = open(1, NOW).unwrap();
        assert!(of_the_old_key.renewed.is_some());
        for (n, now, why) in [
            (2, NOW + 1_800, CookieError::Expired),
            (3, NOW, CookieError::UnknownKey),
        ] {
            assert_eq!(open(n, now).err(), Some(NotSignedIn::Cookie(why)));
        }
        let two = people.session(&headers(&[cookie(2), cookie(2)]), NOW);
        assert_eq!(two.err(), Some(NotSignedIn::NoCookie));
        assert!(People::of(&State::default()).is_none());
    }

    #[test]
    fn who_signed_out_everywhere_or_is_over_the_life_of_now_is_out() {
        let mut ended = state(&[2]);
        ended.ended = Arc::new(Ended {
            floor_unix_ms: 0,
            subjects: [("ana".into(), NOW * 1000)].into(),
        });
        let people = People::of(&ended).unwrap();
        let seen = people.session(&headers(&[cookie(2)]), NOW).err();
        assert_eq!(seen, Some(NotSignedIn::Cookie(CookieError::SignedOut)));
        let mut short = state(&[2]);
        let sign_in = short.settings.sign_in.as_mut().unwrap();
        Arc::make_mut(sign_in).life_s = 60;
        let people = People::of(&short).unwrap();
        let seen = people.session(&headers(&[cookie(2)]), NOW + 60).err();
        assert_eq!(seen, Some(NotSignedIn::Cookie(CookieError::Expired)));
    }

    #[test]
    fn a_request_is_for_one_of_our_names_by_whatever_port() {
        let people = People::of(&state(&[2])).unwrap();
        let own = |uri: &'static str, host: &'static str| {
            let mut headers = HeaderMap::new();
            if !host.is_empty() {
                headers.insert(HOST, HeaderValue::from_static(host));
            }
            people.is_own_name(&Uri::from_static(uri), &headers)
        };
        for (uri, host) in [
            ("/c/a/", "hub.test"),
            ("/c/a/", "HUB.test:8443"),
            ("https://hub.test/c/a/", ""),
        ] {
            assert!(own(uri, host), "{uri} {host}");
        }
        for (uri, host) in [
            ("/c/a/", ""),
            ("/c/a/", "evil.test"),
            ("/c/a/", "hub.test.evil.test"),
            ("/c/a/", "127.0.0.1:8443"),
            ("/c/a/", "hub.test@evil.test"),
            ("https://evil.test/c/a/", ""),
        ] {
            assert!(!own(uri, host), "{uri} {host}");
        }
        let mut nameless = state(&[2]);
        let sign_in = nameless.settings.sign_in.as_mut().unwrap();
        Arc::make_mut(sign_in).origins.clear();
        let people = People::of(&nameless).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("10.0.0.1"));
        assert!(people.is_own_name(&Uri::from_static("/"), &headers));
    }

    #[test]
    fn our_own_pages_say_so_once_and_exactly() {
        let people = People::of(&state(&[2])).unwrap();
        let own = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            people.is_own_page(&headers)
        };
        assert!(own(&[("origin", "https://hub.test")]));
        let same = [
            ("origin", "https://hub.test"),
            ("sec-fetch-site", "same-origin"),
        ];
        assert!(own(&same));
        for lines in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "http://hub.test")],
            &[("origin", "https://hub.test:8443")],
            &[("origin", "https://hub.test.evil.test")],
            &[
                ("origin", "https://hub.test"),
                ("origin", "https://hub.test"),
            ],
            &[
                ("origin", "https://hub.test"),
                ("sec-fetch-site", "cross-site"),
            ],
        ] {
            assert!(!own(lines), "{lines:?}");
        }
    }
}

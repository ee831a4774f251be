//! Who asks control: sessions in sealed cookies, the break-glass administrator,
//! and API tokens of machines.

mod admin;
mod attempts;
mod scope;

use std::collections::BTreeSet;

use culvert_identity::{
    Key, LOGIN_COOKIE, Life, Ring, SESSION_COOKIE, Session, WeakPassword, check_password,
};
use culvert_net::crypto;
use culvert_proto::token::Digest;
use culvert_proto::update;

pub use admin::{Admin, BadHash, hash};
pub use attempts::Attempts;
pub use scope::Scope;

/// API tokens at most.
pub const API_TOKENS_MAX: u64 = 1_000;
/// The name of the provider that needs none.
pub const BREAK_GLASS: &str = "break-glass";
const KEY_INFO: &[u8] = b"culvert/session/1 key";
const KEY_ID_INFO: &[u8] = b"culvert/session/1 id";

/// A token of a machine, as it is stored: never its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiToken {
    /// The part that may be shown.
    pub id: String,
    /// SHA-256 of its text.
    pub digest: Digest,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Good until then, milliseconds since 1970.
    pub not_after_unix_ms: u64,
}

/// How people sign in.
pub struct SignIn {
    ring: Ring,
    life: Life,
    /// Whom the break-glass login lets in; `None` = nobody.
    pub admin: Option<Admin>,
    /// `Origin` values that may change something with a cookie.
    pub origins: Vec<String>,
    /// How often logins are tried.
    pub attempts: Attempts,
}

impl SignIn {
    /// Sessions are sealed with the key that `password` gives; those of `previous` are opened too.
    ///
    /// # Errors
    /// [`WeakPassword`].
    pub fn new(
        password: &str,
        previous: Option<&str>,
        life: Life,
        admin: Option<Admin>,
        origins: Vec<String>,
    ) -> Result<Self, WeakPassword> {
        check_password(password)?;
        Ok(Self {
            ring: Ring {
                current: key(password),
                previous: previous.map(key),
            },
            life,
            admin,
            origins,
            attempts: Attempts::default(),
        })
    }

    /// What data planes have to know of it.
    #[must_use]
    pub fn published(&self) -> update::SignIn {
        let keys = [&self.ring.current].into_iter().chain(&self.ring.previous);
        let seconds = |life: u64| u32::try_from(life).unwrap_or(u32::MAX);
        update::SignIn {
            keys: keys.map(Key::published).collect(),
            idle_s: seconds(self.life.idle_s),
            life_s: seconds(self.life.absolute_s),
            origins: self.origins.iter().map(|it| it.as_str().into()).collect(),
        }
    }

    /// The session that a `Cookie` header holds, if it holds one that is good now. Whether its
    /// subject signed out everywhere is for the caller to ask.
    ///
    /// # Errors
    /// Why a cookie is not good.
    pub fn session(
        &self,
        header: &str,
        now_unix_s: u64,
    ) -> Option<Result<Session, culvert_identity::CookieError>> {
        let text = culvert_identity::find(header, SESSION_COOKIE)?;
        Some(self.ring.open(SESSION_COOKIE, text, now_unix_s))
    }

    /// Begins a session: the value of `Set-Cookie`.
    ///
    /// # Errors
    /// When it does not fit into a cookie.
    pub fn begin(
        &self,
        session: Session,
        now_unix_s: u64,
    ) -> Result<(Session, String), culvert_identity::SealError> {
        let session = session.begin(self.life, now_unix_s);
        let cookie = self.sealed(&session, now_unix_s)?;
        Ok((session, cookie))
    }

    /// A `Set-Cookie` for a session that was used and is half idle, or sealed with the old key.
    #[must_use]
    pub fn renewed(&self, header: &str, session: &Session, now_unix_s: u64) -> Option<String> {
        let text = culvert_identity::find(header, SESSION_COOKIE)?;
        let is_due = session.wants_renewal(self.life, now_unix_s);
        if !is_due && !self.ring.is_of_previous(text) {
            return None;
        }
        let session = session.clone().renewed(self.life, now_unix_s);
        self.sealed(&session, now_unix_s).ok()
    }

    fn sealed(
        &self,
        session: &Session,
        now_unix_s: u64,
    ) -> Result<String, culvert_identity::SealError> {
        let nonce = crypto::random_bytes();
        self.ring.set_cookie(session, nonce, now_unix_s)
    }

    /// `Set-Cookie` values that take our cookies from the browser.
    #[must_use]
    pub fn taken() -> [String; 2] {
        [SESSION_COOKIE, LOGIN_COOKIE]
            .map(|name| format!("{name}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"))
    }
}

fn key(password: &str) -> Key {
    let id = crypto::hkdf_sha256(password.as_bytes(), KEY_ID_INFO);
    let mut short = [0; 8];
    short.copy_from_slice(&id[..8]);
    Key::new(short, crypto::hkdf_sha256(password.as_bytes(), KEY_INFO))
}

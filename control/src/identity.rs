//! Who asks control: sessions in sealed cookies, the break-glass administrator,
//! and API tokens of machines.

mod admin;
mod attempts;
mod oidc;
mod scope;
mod tiers;

use std::collections::BTreeSet;

use culvert_identity::{
    CookieError, Key, LOGIN_COOKIE, LOGIN_S_MAX, Life, Login, Ring, SESSION_COOKIE, SealError,
    Session, WeakPassword, check_password,
};
use culvert_net::crypto;
use culvert_proto::token::Digest;
use culvert_proto::update;

pub use admin::{Admin, BadHash, hash};
pub use attempts::Attempts;
pub use oidc::{
    Came, Client, Mapping, Oidc, OidcError, PROVIDERS_MAX, Person, Provider, is_reserved,
};
pub use scope::Scope;
pub use tiers::{TIERED_GROUPS_MAX, Tiers};

/// API tokens at most.
pub const API_TOKENS_MAX: u64 = 1_000;
/// The name of the provider that needs none.
pub const BREAK_GLASS: &str = "break-glass";
/// Tries of an address to be the administrator, in a minute.
const ADMIN_ADDRESS_MAX: u32 = 5;
/// Tries of everybody in a minute: each costs the work of a password hash.
const ADMIN_ALL_MAX: u32 = 60;
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
    /// How often the administrator's login is tried.
    pub attempts: Attempts,
    /// OpenID providers; none unless they are set.
    pub oidc: Oidc,
    /// What groups may do here; nothing unless it is set.
    pub tiers: Tiers,
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
            attempts: Attempts::new(ADMIN_ADDRESS_MAX, ADMIN_ALL_MAX),
            oidc: Oidc::new(Vec::new()),
            tiers: Tiers::default(),
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
    pub fn session(&self, header: &str, now_unix_s: u64) -> Option<Result<Session, CookieError>> {
        let text = culvert_identity::find(header, SESSION_COOKIE)?;
        Some(self.ring.open(SESSION_COOKIE, text, now_unix_s))
    }

    /// Begins a session: the value of `Set-Cookie`.
    ///
    /// # Errors
    /// When it does not fit into a cookie.
    pub fn begin(&self, session: Session, now_unix_s: u64) -> Result<(Session, String), SealError> {
        let session = session.begin(self.life, now_unix_s);
        let cookie = self.sealed(&session, now_unix_s)?;
        Ok((session, cookie))
    }

    /// The `Set-Cookie` of a sign-in on its way.
    ///
    /// # Errors
    /// When it does not fit into a cookie.
    pub fn login_cookie(&self, login: &Login) -> Result<String, SealError> {
        let value = self.ring.seal_login(login, crypto::random_bytes())?;
        // Lax: the provider's redirect is a navigation from another site.
        Ok(format!(
            "{LOGIN_COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={LOGIN_S_MAX}"
        ))
    }

    /// The sign-in that a `Cookie` header holds, if it holds one that is good now.
    ///
    /// # Errors
    /// Why a cookie is not good.
    pub fn login(&self, header: &str, now_unix_s: u64) -> Option<Result<Login, CookieError>> {
        let text = culvert_identity::find(header, LOGIN_COOKIE)?;
        Some(self.ring.open_login(text, now_unix_s))
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

    fn sealed(&self, session: &Session, now_unix_s: u64) -> Result<String, SealError> {
        let nonce = crypto::random_bytes();
        self.ring.set_cookie(session, nonce, now_unix_s)
    }

    /// `Set-Cookie` values that take our cookies from the browser.
    #[must_use]
    pub fn taken() -> [String; 2] {
        [SESSION_COOKIE, LOGIN_COOKIE].map(taken)
    }

    /// The one that takes a sign-in that came back.
    #[must_use]
    pub fn taken_login() -> String {
        taken(LOGIN_COOKIE)
    }
}

fn taken(name: &str) -> String {
    format!("{name}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0")
}

fn key(password: &str) -> Key {
    let id = crypto::hkdf_sha256(password.as_bytes(), KEY_ID_INFO);
    let mut short = [0; 8];
    short.copy_from_slice(&id[..8]);
    Key::new(short, crypto::hkdf_sha256(password.as_bytes(), KEY_INFO))
}

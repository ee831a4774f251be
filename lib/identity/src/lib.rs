//! Who somebody is, and as whom they act upstream.
//!
//! Control seals a session into a cookie; whoever holds the key ring opens it
//! without asking. The policy of a cluster then says which identity goes with the
//! request. Pure: time, keys and nonces are arguments.
#![forbid(unsafe_code)]

mod login;
mod password;
mod policy;
mod session;
mod word;

pub use culvert_proto::update::{Mode, Tier, UserClaim};
pub use login::{LOGIN_S_MAX, Login, PATH_BYTES_MAX, local_path};
pub use password::{PASSWORD_BYTES_MIN, WeakPassword, check_password};
pub use policy::{Denied, GROUPS_MAX, Grant, Identity, Person, Policy, PolicyError, USER_GRANT};
pub use session::{
    COOKIE_BYTES_MAX, COOKIES_MAX, CookieError, KEY_BYTES, Key, Life, NONCE_BYTES, Ring, SealError,
    Session, find, find_among,
};

/// The cookie of a session.
pub const SESSION_COOKIE: &str = "__Host-culvert_session";
/// The cookie of a sign-in on its way.
pub const LOGIN_COOKIE: &str = "__Host-culvert_login";

//! Signing in at OpenID providers: authorization code with PKCE.
//!
//! `claims`, `gate`, `used` and `verify` are pure; `provider` alone asks the provider,
//! and never for somebody who is signed in: when it is down, only new sign-ins fail (C-29).

mod claims;
mod error;
mod gate;
mod provider;
mod used;
mod verify;

use tokio::sync::{Semaphore, SemaphorePermit};

pub use claims::{Mapping, Person, is_reserved};
pub use error::OidcError;
pub use provider::{Came, Client, Provider};

use super::Attempts;
use used::Used;

/// Providers at most.
pub const PROVIDERS_MAX: usize = 16;
/// Sign-ins of an address in a minute; each counts when it begins and when it comes back.
const ADDRESS_MAX: u32 = 30;
/// Sign-ins of everybody in a minute, counted alike.
const ALL_MAX: u32 = 600;
/// Conversations with providers at once: one that hangs leaves connections for everything else.
const ASKED_MAX: usize = 32;

/// Every provider, and the limits of signing in at them.
pub struct Oidc {
    providers: Vec<Provider>,
    /// How often somebody tries.
    pub attempts: Attempts,
    used: Used,
    slots: Semaphore,
}

impl Oidc {
    /// Signs in at these; the names differ.
    #[must_use]
    pub fn new(providers: Vec<Provider>) -> Self {
        Self {
            providers,
            attempts: Attempts::new(ADDRESS_MAX, ALL_MAX),
            used: Used::default(),
            slots: Semaphore::new(ASKED_MAX),
        }
    }

    /// All of them, in the order of the configuration.
    #[must_use]
    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// The one of this name; without a name the only one.
    #[must_use]
    pub fn find(&self, name: Option<&str>) -> Option<&Provider> {
        match (name, &self.providers[..]) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(name), all) => all.iter().find(|it| it.client.name == name),
        }
    }

    /// Takes the state of a sign-in that came back, once.
    #[must_use]
    pub fn take(&self, state: &str, expires_unix_s: u64, now_unix_s: u64) -> bool {
        self.used.take(state, expires_unix_s, now_unix_s)
    }

    /// A turn to ask a provider.
    ///
    /// # Errors
    /// [`OidcError::Busy`]: as many as allowed are asked now.
    pub fn turn(&self) -> Result<SemaphorePermit<'_>, OidcError> {
        self.slots.try_acquire().map_err(|_| OidcError::Busy)
    }
}

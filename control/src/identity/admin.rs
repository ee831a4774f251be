//! The break-glass administrator: a password that works whatever the state of
//! identity provider and licence (L-35).

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use culvert_net::crypto;
use tokio::sync::Semaphore;

/// Longest password that is looked at, in bytes.
const PASSWORD_BYTES_MAX: usize = 1_024;
/// Shortest password that [`hash`] takes, in characters.
const PASSWORD_CHARS_MIN: usize = 12;
/// Least memory of a hash, in KiB: the recommendation of OWASP.
const MEMORY_KIB_MIN: u32 = 19 * 1024;
/// Most memory of a hash, in KiB: each try takes so much.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
/// Most passes over it.
const PASSES_MAX: u32 = 16;

/// Who is let in, and the work of looking.
pub struct Admin {
    email: String,
    hash: String,
    /// One at a time: the work of a try is bounded, the memory too.
    one: Semaphore,
}

/// Why a hash cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no argon2id hash of the form $argon2id$v=19$m=..,t=..,p=..$..$.. with m of {MEMORY_KIB_MIN} to {MEMORY_KIB_MAX} and t of 1 to {PASSES_MAX}: {0}; make one with: culvert-control hash-password"
)]
pub struct BadHash(String);

impl Admin {
    /// An administrator by their hash in PHC form.
    ///
    /// # Errors
    /// [`BadHash`]: another algorithm, or too little or too much work.
    pub fn new(email: &str, hash: &str) -> Result<Self, BadHash> {
        let wrong = |why: &str| BadHash(why.to_owned());
        let parsed = PasswordHash::new(hash).map_err(|why| BadHash(why.to_string()))?;
        if parsed.algorithm.as_str() != "argon2id" || parsed.version != Some(19) {
            return Err(wrong("another algorithm or version"));
        }
        if parsed.hash.is_none() || parsed.salt.is_none() {
            return Err(wrong("salt or hash is missing"));
        }
        let params = Params::try_from(&parsed).map_err(|why| BadHash(why.to_string()))?;
        let memory = params.m_cost();
        if !(MEMORY_KIB_MIN..=MEMORY_KIB_MAX).contains(&memory) || params.t_cost() > PASSES_MAX {
            return Err(wrong("its work is out of bounds"));
        }
        Ok(Self {
            email: email.to_owned(),
            hash: hash.to_owned(),
            one: Semaphore::new(1),
        })
    }

    /// Who it is.
    #[must_use]
    pub fn email(&self) -> &str {
        &self.email
    }

    /// Whether it is them. A wrong name costs the same work as a wrong password.
    pub async fn is(&self, email: &str, password: String) -> bool {
        let Ok(_turn) = self.one.acquire().await else {
            return false;
        };
        let is_name = crypto::constant_time_eq(email.as_bytes(), self.email.as_bytes());
        let hash = self.hash.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let parsed = PasswordHash::new(&hash).ok();
            password.len() <= PASSWORD_BYTES_MAX
                && parsed.is_some_and(|parsed| {
                    let argon2 = Argon2::default();
                    argon2.verify_password(password.as_bytes(), &parsed).is_ok()
                })
        });
        checked.await.unwrap_or(false) && is_name
    }
}

/// The hash of a password, for `--admin-password-hash`.
///
/// # Errors
/// What is wrong with the password.
pub fn hash(password: &str) -> Result<String, String> {
    if password.chars().count() < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
        return Err(format!(
            "a password wants {PASSWORD_CHARS_MIN} characters to {PASSWORD_BYTES_MAX} bytes"
        ));
    }
    let params = Params::new(MEMORY_KIB_MIN, 2, 1, None).map_err(|why| why.to_string())?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let salt = crypto::random_bytes::<16>();
    let made: Result<PasswordHash, _> = argon2.hash_password_with_salt(password.as_bytes(), &salt);
    made.map(|made| made.to_string())
        .map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_password_and_the_name_have_to_be_right() {
        let made = hash("correct horse battery").unwrap();
        assert!(
            made.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{made}"
        );
        assert_ne!(made, hash("correct horse battery").unwrap());
        let admin = Admin::new("root@example.test", &made).unwrap();
        for (email, password, lets_in) in [
            ("root@example.test", "correct horse battery", true),
            ("root@example.test", "correct horse batterz", false),
            ("root@example.test", "", false),
            ("ROOT@example.test", "correct horse battery", false),
            ("", "correct horse battery", false),
        ] {
            assert_eq!(
                admin.is(email, password.to_owned()).await,
                lets_in,
                "{email} {password}"
            );
        }
        let long = "correct horse battery".repeat(60);
        assert!(!admin.is("root@example.test", long).await);
        assert!(hash("short").is_err());
    }

    #[test]
    fn hashes_of_other_kinds_and_of_no_work_are_refused() {
        let good = hash("correct horse battery").unwrap();
        for bad in [
            String::new(),
            "plain".to_owned(),
            "$2b$10$abcdefghijklmnopqrstuv".to_owned(),
            good.replace("argon2id", "argon2i"),
            good.replace("argon2id", "argon2d"),
            good.replace("m=19456", "m=8"),
            good.replace("m=19456", "m=4000000"),
            good.replace("t=2", "t=1000"),
            good.rsplit_once('$').unwrap().0.to_owned(),
        ] {
            assert!(Admin::new("a", &bad).is_err(), "{bad}");
        }
    }
}

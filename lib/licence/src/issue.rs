//! Licences for tests, signed with a key that no build believes.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use crate::keys::KeySet;
use crate::vendor;

/// What a test licence says.
pub struct Terms<'a> {
    /// Claims `sub` and `license_id`.
    pub id: &'a str,
    /// Claim `org`.
    pub org: &'a str,
    /// Claim `tier`.
    pub tier: Option<&'a str>,
    /// Claim `max_clusters`.
    pub max_clusters: Option<u64>,
    /// Claim `iat`, seconds since 1970.
    pub issued_unix_s: u64,
    /// Claim `exp`, seconds since 1970.
    pub expires_unix_s: u64,
    /// Id of the key, for the header.
    pub kid: Option<&'a str>,
}

/// Why there is no licence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The vendor's own key signs elsewhere.
    #[error("this is one of the keys embedded in this build; test licences want a test key")]
    Embedded,
    /// No Ed25519 key in PKCS#8.
    #[error("the key does not sign: an Ed25519 key in PKCS#8 is wanted")]
    Key,
}

/// Signs `terms` with the private key `pkcs8`, whose public half is `public`.
///
/// # Errors
/// [`IssueError`].
pub fn issue(terms: &Terms<'_>, pkcs8: &[u8], public: &[u8; 32]) -> Result<String, IssueError> {
    if KeySet::embedded().contains(public) {
        return Err(IssueError::Embedded);
    }
    let mut claims = json!({
        "iss": vendor::ISSUER,
        "aud": [vendor::AUDIENCE],
        "sub": terms.id,
        "license_id": terms.id,
        "org": terms.org,
        "iat": terms.issued_unix_s,
        "exp": terms.expires_unix_s,
    });
    if let Some(tier) = terms.tier {
        claims["tier"] = json!(tier);
    }
    if let Some(most) = terms.max_clusters {
        claims["max_clusters"] = json!(most);
    }
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = terms.kid.map(str::to_owned);
    let key = EncodingKey::from_ed_der(pkcs8);
    jsonwebtoken::encode(&header, &claims, &key).map_err(|_| IssueError::Key)
}

//! Why nobody is signed in.

use super::claims::ClaimsError;
use super::verify::TokenError;

/// Why a provider's answer signs nobody in.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// It does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// It answers something else.
    #[error("{0}")]
    Broken(String),
    /// As many sign-ins as allowed ask providers now.
    #[error("too many sign-ins at once")]
    Busy,
    /// It does not take the code: used before, expired, or of somebody else.
    #[error("the provider does not take the code: {0}")]
    Code(String),
    /// Its answer came from another issuer.
    #[error("the answer names the issuer {found:?}, not {wanted:?}")]
    OtherIssuer {
        /// What the answer names.
        found: String,
        /// Whom we asked.
        wanted: String,
    },
    /// Its ID token is not believed.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Its claims make nobody whom we know.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
}

/// What a provider wrote, cut and without what would break a line.
pub(super) fn quoted(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(200).collect()
}

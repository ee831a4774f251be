//! Whether an ID token is believed. Pure: keys and clock are arguments.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use openidconnect::core::{
    CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJwsSigningAlgorithm,
};
use openidconnect::{
    ClaimsVerificationError, ClientId, IssuerUrl, Nonce, SignatureVerificationError,
};
use serde_json::{Map, Value};

use super::claims;
use super::error::quoted;

/// A provider's clock may differ by so much, in seconds.
const SKEW_S: u64 = 60;
/// Longest ID token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 128 << 10;

/// Whose token is wanted.
pub struct Expected<'a> {
    /// Who signs.
    pub issuer: &'a IssuerUrl,
    /// For whom.
    pub client: &'a ClientId,
    /// For which sign-in.
    pub nonce: &'a Nonce,
    /// Now, seconds since 1970.
    pub now_unix_s: u64,
}

/// Why an ID token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// None of the keys at hand signed it: newer ones may have.
    #[error("no key of the provider signed the ID token: {0}")]
    Key(String),
    /// It is longer than any that is meant.
    #[error("the ID token has {0} bytes, more than {TOKEN_BYTES_MAX}")]
    Long(usize),
    /// Something in it is not as it has to be.
    #[error("the ID token is not believed: {0}")]
    Wrong(String),
}

/// The claims of a token that is believed.
///
/// # Errors
/// [`TokenError`], the first thing that is wrong with it.
pub fn verify(
    token: &CoreIdToken,
    keys: CoreJsonWebKeySet,
    expected: &Expected<'_>,
) -> Result<Map<String, Value>, TokenError> {
    let text = token.to_string();
    if text.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Long(text.len()));
    }
    let skew = i64::try_from(SKEW_S).unwrap_or_default();
    let now = time(expected.now_unix_s);
    // Without a secret: a symmetric algorithm cannot be meant, whatever the token says.
    let (client, issuer) = (expected.client.clone(), expected.issuer.clone());
    let verifier = CoreIdTokenVerifier::new_public_client(client, issuer, keys)
        .set_allowed_algs([
            CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
            CoreJwsSigningAlgorithm::RsaSsaPssSha256,
            CoreJwsSigningAlgorithm::EcdsaP256Sha256,
            CoreJwsSigningAlgorithm::EdDsa,
        ])
        .set_time_fn(|| time(expected.now_unix_s.saturating_sub(SKEW_S)))
        .set_issue_time_verifier_fn(|issued| match (issued - now).num_seconds() > skew {
            true => Err("issued in the future".to_owned()),
            false => Ok(()),
        });
    token.claims(&verifier, expected.nonce).map_err(refusal)?;
    let claims = claims_of(&text)?;
    narrower(&claims, expected)?;
    Ok(claims)
}

/// What the library leaves to whoever uses it.
fn narrower(claims: &Map<String, Value>, expected: &Expected<'_>) -> Result<(), TokenError> {
    let wrong = |why: &str| Err(TokenError::Wrong(why.to_owned()));
    // The library compares URLs; an issuer is a text.
    if claims.get("iss").and_then(Value::as_str) != Some(expected.issuer.as_str()) {
        return wrong("iss is spelt differently");
    }
    match claims.get("azp") {
        Some(azp) if azp.as_str() != Some(expected.client.as_str()) => {
            return wrong("azp names another client");
        }
        _ => {}
    }
    let Some(from) = claims.get("nbf") else {
        return Ok(());
    };
    match from.as_f64() {
        Some(from) if from <= (expected.now_unix_s + SKEW_S) as f64 => Ok(()),
        _ => wrong("nbf is in the future, or no number"),
    }
}

/// Head and claims of the text that was verified, read strictly.
fn claims_of(text: &str) -> Result<Map<String, Value>, TokenError> {
    let mut parts = text.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part);
        let bytes = bytes.map_err(|why| TokenError::Wrong(why.to_string()))?;
        claims::object(&bytes).map_err(|why| TokenError::Wrong(why.to_string()))
    });
    let missing = || TokenError::Wrong("a part is missing".to_owned());
    parts.next().ok_or_else(missing)??;
    parts.next().ok_or_else(missing)?
}

fn refusal(why: ClaimsVerificationError) -> TokenError {
    use SignatureVerificationError::{AmbiguousKeyId, CryptoError, NoMatchingKey};
    match why {
        ClaimsVerificationError::SignatureVerification(why) => {
            let text = quoted(&why.to_string());
            match why {
                NoMatchingKey | AmbiguousKeyId(_) | CryptoError(_) => TokenError::Key(text),
                _ => TokenError::Wrong(text),
            }
        }
        why => TokenError::Wrong(quoted(&why.to_string())),
    }
}

fn time(unix_s: u64) -> DateTime<Utc> {
    let seconds = i64::try_from(unix_s).unwrap_or(i64::MAX);
    DateTime::from_timestamp(seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

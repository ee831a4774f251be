//! A licence as text, and what it says if it can be believed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;

use crate::keys::KeySet;
use crate::vendor;

/// Longest licence that is read, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Longest text of a claim that is kept, in characters.
const TEXT_CHARS_MAX: usize = 256;
/// End of the year 9999: a later end is not a time.
const UNIX_S_MAX: u64 = 253_402_300_799;

/// A licence that the vendor signed. It may be past its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct License {
    /// Claim `license_id`, else `jti`, else `sub`.
    pub id: String,
    /// Claim `sub`.
    pub subject: String,
    /// Claim `org`.
    pub org: String,
    /// Claim `tier`, if it has one.
    pub tier: Option<String>,
    /// Claim `max_clusters`, if it has one.
    pub max_clusters: Option<u64>,
    /// Claim `exp`, seconds since 1970.
    pub expires_unix_s: u64,
    /// Id of the key that signed it; empty where that has none.
    pub kid: String,
}

/// Why a text is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It is longer than any licence.
    #[error("longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// It is no JWT, or a claim stands in it twice.
    #[error("not a JWT: three parts of base64url, JSON in the first two, each name once")]
    Malformed,
    /// Another algorithm, or none.
    #[error("its algorithm is not EdDSA")]
    Algorithm,
    /// It demands an extension.
    #[error("it has a critical header (crit), and none is known")]
    Critical,
    /// It names a key that this build does not know, or this build knows none.
    #[error("no embedded key has the id it names")]
    UnknownKey,
    /// No key made this signature.
    #[error("the signature is of none of the embedded keys")]
    Signature,
    /// Another issuer.
    #[error("claim iss is not the vendor's")]
    Issuer,
    /// Another product.
    #[error("claim aud does not include this product")]
    Audience,
    /// A claim that must be there is missing or of the wrong type.
    #[error("claim {0} is missing or of the wrong type")]
    Missing(&'static str),
    /// Its time has not come.
    #[error("not valid yet (claim nbf)")]
    Early,
}

/// Claims as they stand: of any type, each once.
#[derive(Deserialize)]
struct Claims {
    iss: Option<Value>,
    aud: Option<Value>,
    sub: Option<Value>,
    org: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    jti: Option<Value>,
    license_id: Option<Value>,
    tier: Option<Value>,
    max_clusters: Option<Value>,
}

/// What `text` says, if one of `keys` signed it. An end that has passed is not looked at here.
///
/// # Errors
/// [`Invalid`], the first thing that is wrong with it.
pub fn verify(text: &str, keys: &KeySet, now_unix_s: u64) -> Result<License, Invalid> {
    let text = text.trim();
    if text.len() > TOKEN_BYTES_MAX {
        return Err(Invalid::TooLong);
    }
    let header = jsonwebtoken::decode_header(text).map_err(|why| match why.kind() {
        jsonwebtoken::errors::ErrorKind::InvalidAlgorithmName => Invalid::Algorithm,
        _ if names_another_algorithm(text) => Invalid::Algorithm,
        _ => Invalid::Malformed,
    })?;
    if header.alg != Algorithm::EdDSA {
        return Err(Invalid::Algorithm);
    }
    if header.crit.is_some() {
        return Err(Invalid::Critical);
    }
    // Signature alone: claims are judged below, by our clock and our rules.
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let mut refused = Invalid::UnknownKey;
    for key in keys.selected(header.kid.as_deref()) {
        let decoding = DecodingKey::from_ed_der(&key.public);
        match jsonwebtoken::decode::<Claims>(text, &decoding, &validation) {
            Ok(token) => return judged(&token.claims, &key.kid, now_unix_s),
            Err(why) => {
                refused = match why.kind() {
                    jsonwebtoken::errors::ErrorKind::InvalidSignature => Invalid::Signature,
                    _ => Invalid::Malformed,
                }
            }
        }
    }
    Err(refused)
}

fn judged(claims: &Claims, kid: &str, now_unix_s: u64) -> Result<License, Invalid> {
    if text(claims.iss.as_ref()).as_deref() != Some(vendor::ISSUER) {
        return Err(Invalid::Issuer);
    }
    if !includes(claims.aud.as_ref(), vendor::AUDIENCE) {
        return Err(Invalid::Audience);
    }
    let subject = text(claims.sub.as_ref()).ok_or(Invalid::Missing("sub"))?;
    let org = text(claims.org.as_ref()).ok_or(Invalid::Missing("org"))?;
    let expires_unix_s = time(claims.exp.as_ref()).ok_or(Invalid::Missing("exp"))?;
    if claims.nbf.is_some() && time(claims.nbf.as_ref()).is_none_or(|nbf| nbf > now_unix_s) {
        return Err(Invalid::Early);
    }
    let id = text(claims.license_id.as_ref()).or_else(|| text(claims.jti.as_ref()));
    Ok(License {
        id: id.unwrap_or_else(|| subject.clone()),
        subject,
        org,
        tier: text(claims.tier.as_ref()),
        max_clusters: claims.max_clusters.as_ref().and_then(Value::as_u64),
        expires_unix_s,
        kid: kid.to_owned(),
    })
}

/// The id that a text claims, whether it is believed or not; empty if it claims none.
pub(crate) fn claimed_id(text: &str) -> String {
    let claims = jsonwebtoken::dangerous::insecure_decode::<Claims>(text.trim());
    let Some(claims) = claims.ok().map(|token| token.claims) else {
        return String::new();
    };
    let named = [claims.license_id, claims.jti, claims.sub];
    let first = named.iter().find_map(|claim| self::text(claim.as_ref()));
    first.unwrap_or_default()
}

/// A text without control characters, cut to a bound; nothing where it is empty.
fn text(claim: Option<&Value>) -> Option<String> {
    let text = claim?.as_str()?;
    let kept: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(TEXT_CHARS_MAX)
        .collect();
    (!kept.is_empty()).then_some(kept)
}

/// Seconds since 1970: a NumericDate, whole or with a fraction.
fn time(claim: Option<&Value>) -> Option<u64> {
    let number = claim?.as_number()?;
    let whole = number.as_u64().or_else(|| {
        let float = number.as_f64()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the bounds that were just checked"
        )]
        (0.0..=253_402_300_799.0)
            .contains(&float)
            .then_some(float as u64)
    });
    whole.filter(|seconds| *seconds <= UNIX_S_MAX)
}

fn includes(claim: Option<&Value>, wanted: &str) -> bool {
    match claim {
        Some(Value::String(one)) => one == wanted,
        Some(Value::Array(all)) => all.iter().any(|one| one == wanted),
        _ => false,
    }
}

/// A header that is sound but for an algorithm that the library does not know, `none` first.
fn names_another_algorithm(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
    }
    let first = text.split('.').next().unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(first).ok();
    let header: Option<Header> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    header.is_some_and(|header| header.alg != "EdDSA")
}

//! What a provider says of itself: its discovery document and its keys.

use std::sync::Arc;

use http::Uri;
use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClient, CoreClientAuthMethod, CoreGrantType,
    CoreJsonWebKey, CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm, CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{
    AdditionalProviderMetadata, AuthType, DiscoveryError, EndSessionUrl, EndpointMaybeSet,
    EndpointNotSet, EndpointSet, IssuerUrl, LogoutProviderMetadata, ProviderMetadata,
};
use serde::{Deserialize, Serialize};

use super::{Asker, Client};
use crate::identity::oidc::error::{OidcError, quoted};
use crate::identity::oidc::gate::Gate;

/// A discovery document is fetched anew after this time; one that cannot be fetched stays.
const FRESH_MS: u64 = 3_600_000;
/// A provider that did not answer is not asked again before, so that a crowd does not wait.
const PAUSE_MS: u64 = 3_000;

/// Whether answers name their issuer (RFC 9207).
#[derive(Clone, Debug, Deserialize, Serialize)]
struct IssuerInAnswers {
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for IssuerInAnswers {}

type Document = ProviderMetadata<
    LogoutProviderMetadata<IssuerInAnswers>,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

type Oidc = CoreClient<
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// A provider that has answered.
pub struct Known(Document);

/// What is known of a provider, and since when.
#[derive(Default)]
pub struct State {
    known: Option<(Arc<Known>, u64)>,
    keys: Gate,
    /// Not asked before this time, and why.
    pause: Option<(u64, String)>,
}

impl State {
    /// What was known last.
    pub fn known(&self) -> Option<Arc<Known>> {
        self.known.as_ref().map(|(known, _)| known.clone())
    }

    /// What the provider says of itself, fetched if it has to be.
    ///
    /// # Errors
    /// When it is not known and cannot be asked.
    pub async fn known_at(
        &mut self,
        issuer: &IssuerUrl,
        http: &Asker<'_>,
        now_ms: u64,
    ) -> Result<Arc<Known>, OidcError> {
        let age = |at: u64| now_ms.saturating_sub(at);
        if let Some((known, _)) = self.known.as_ref().filter(|(_, at)| age(*at) < FRESH_MS) {
            return Ok(known.clone());
        }
        let old = self.known();
        let is_waiting = |(until, _): &&(u64, String)| (now_ms..=now_ms + PAUSE_MS).contains(until);
        let fetched = match self.pause.as_ref().filter(is_waiting) {
            Some((_, why)) => Err(OidcError::Unreachable(why.clone())),
            None => {
                // Keys come with it: their minute begins too.
                self.keys.opens(now_ms);
                let fetched = Document::discover_async(issuer.clone(), http).await;
                fetched
                    .map_err(refusal)
                    .and_then(|document| Known::checked(document, issuer))
            }
        };
        match (fetched, old) {
            (Ok(known), _) => {
                let known = Arc::new(known);
                self.known = Some((known.clone(), now_ms));
                self.pause = None;
                Ok(known)
            }
            (Err(why), old) => {
                if self.pause.as_ref().filter(is_waiting).is_none() {
                    self.pause = Some((now_ms + PAUSE_MS, why.to_string()));
                }
                old.ok_or(why)
            }
        }
    }

    /// The same with keys that are newer than those of `old`; nothing when it is too early.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn newer(
        &mut self,
        old: &Arc<Known>,
        http: &Asker<'_>,
        now_ms: u64,
    ) -> Result<Option<Arc<Known>>, OidcError> {
        let Some((known, at)) = &self.known else {
            return Ok(None);
        };
        if !Arc::ptr_eq(known, old) {
            return Ok(Some(known.clone()));
        }
        if !self.keys.opens(now_ms) {
            return Ok(None);
        }
        let (document, at) = (known.0.clone(), *at);
        let keys = CoreJsonWebKeySet::fetch_async(document.jwks_uri(), http).await;
        let known = Arc::new(Known(document.set_jwks(keys.map_err(refusal)?)));
        self.known = Some((known.clone(), at));
        Ok(Some(known))
    }
}

impl Known {
    fn checked(document: Document, issuer: &IssuerUrl) -> Result<Self, OidcError> {
        let token = document.token_endpoint().map(|it| it.url());
        let userinfo = document.userinfo_endpoint().map(|it| it.url());
        let end = document.additional_metadata().end_session_endpoint.as_ref();
        let all = [document.authorization_endpoint().url()].into_iter();
        for url in all
            .chain(token)
            .chain(userinfo)
            .chain(end.map(|it| it.url()))
        {
            let uri = url.as_str().parse::<Uri>();
            reachable(
                issuer,
                &uri.map_err(|why| OidcError::Broken(why.to_string()))?,
            )?;
        }
        Ok(Self(document))
    }

    /// The keys.
    pub fn keys(&self) -> &CoreJsonWebKeySet {
        self.0.jwks()
    }

    /// Where further claims are.
    pub fn userinfo(&self) -> Option<&str> {
        self.0.userinfo_endpoint().map(|url| url.as_str())
    }

    /// Where sessions at the provider end.
    pub fn end_session(&self) -> Option<EndSessionUrl> {
        self.0.additional_metadata().end_session_endpoint.clone()
    }

    /// Refuses an answer of another issuer, and one that does not say whose it is although
    /// those of this provider do (RFC 9207).
    pub fn check_issuer(&self, given: Option<&str>) -> Result<(), OidcError> {
        let extra = &self.0.additional_metadata().additional_metadata;
        let wanted = self.0.issuer().as_str();
        let is_right = match given {
            Some(given) => given == wanted,
            None => !extra.authorization_response_iss_parameter_supported,
        };
        if is_right {
            return Ok(());
        }
        Err(OidcError::OtherIssuer {
            found: quoted(given.unwrap_or_default()),
            wanted: wanted.to_owned(),
        })
    }

    /// The library's client of it.
    pub fn client(&self, us: &Client) -> Oidc {
        let document = self.0.clone();
        let methods = document.token_endpoint_auth_methods_supported();
        // Without a list it is Basic, says the specification.
        let takes = |method| methods.is_none_or(|all| all.contains(&method));
        let auth = match takes(CoreClientAuthMethod::ClientSecretBasic) {
            true => AuthType::BasicAuth,
            false => AuthType::RequestBody,
        };
        CoreClient::from_provider_metadata(document, us.id.clone(), us.secret.clone())
            .set_redirect_uri(us.callback.clone())
            .set_auth_type(auth)
    }
}

/// Whether a provider may send us there: over TLS, or, as its issuer itself, on this machine.
///
/// # Errors
/// [`OidcError::Broken`], which names the URL.
pub fn reachable(issuer: &IssuerUrl, uri: &Uri) -> Result<(), OidcError> {
    let is_tls = uri.scheme_str() == Some("https");
    if uri.host().is_some() && (is_tls || issuer.url().scheme() == "http") {
        return Ok(());
    }
    let uri = quoted(&uri.to_string());
    Err(OidcError::Broken(format!(
        "it names {uri:?}, which is no https:// URL"
    )))
}

fn refusal(why: DiscoveryError<OidcError>) -> OidcError {
    match why {
        DiscoveryError::Request(why) => why,
        DiscoveryError::Parse(why) => OidcError::Broken(format!(
            "what it says of itself: {}",
            quoted(&why.to_string())
        )),
        why => OidcError::Broken(format!(
            "what it says of itself: {}",
            quoted(&why.to_string())
        )),
    }
}

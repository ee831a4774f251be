//! One OpenID provider: what it says of itself, fetched when somebody first signs in, and the
//! conversation of a sign-in.

mod known;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_identity::{LOGIN_S_MAX, Login};
use culvert_net::crypto;
use http::{Request, Response, StatusCode, header};
use openidconnect::core::{CoreAuthenticationFlow, CoreIdToken};
use openidconnect::{
    AccessToken, AsyncHttpClient, AuthorizationCode, ClientId, ClientSecret, CsrfToken,
    HttpRequest, HttpResponse, IssuerUrl, LogoutRequest, Nonce, OAuth2TokenResponse as _,
    PkceCodeChallenge, PkceCodeVerifier, PostLogoutRedirectUrl, RedirectUrl, RequestTokenError,
    Scope, TokenResponse as _,
};
use serde_json::{Map, Value};

use super::claims::{self, Mapping, Person};
use super::error::{OidcError, quoted};
use super::verify::{Expected, TokenError, verify};
use crate::metrics::Metrics;
use crate::outbound::{Outbound, OutboundError};
use known::{Known, State};

/// One request to a provider takes no longer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(4);
/// All requests of one answer together: the API's own deadline is 10 s.
const WHOLE_DEADLINE: Duration = Duration::from_secs(8);
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 512 << 10;

/// How this hub is known to a provider.
pub struct Client {
    /// The provider's name here, for URLs and settings.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// Who it says it is.
    pub issuer: IssuerUrl,
    /// Who we are there.
    pub id: ClientId,
    /// Without one the client is a public one: PKCE alone holds.
    pub secret: Option<ClientSecret>,
    /// What is asked for beside `openid`.
    pub scopes: Vec<Scope>,
    /// Where browsers come back.
    pub callback: RedirectUrl,
    /// What its claims mean.
    pub mapping: Mapping,
}

/// A provider.
pub struct Provider {
    /// How it knows us.
    pub client: Client,
    outbound: Outbound,
    /// Held while something is fetched: whoever comes meanwhile waits for the same answer.
    state: tokio::sync::Mutex<State>,
}

/// What came back in the URL.
pub struct Came<'a> {
    /// The code.
    pub code: &'a str,
    /// `iss` of RFC 9207, where it was given.
    pub issuer: Option<&'a str>,
}

impl Provider {
    /// Asks through `outbound`; nothing is asked yet.
    #[must_use]
    pub fn new(client: Client, outbound: Outbound) -> Self {
        Self {
            client,
            outbound,
            state: tokio::sync::Mutex::default(),
        }
    }

    /// Begins a sign-in that leads to `path`: where to send the browser, and what to seal.
    ///
    /// # Errors
    /// When the provider is not known and cannot be asked.
    pub async fn start(
        &self,
        path: &str,
        metrics: &Metrics,
        now_ms: u64,
    ) -> Result<(String, Login), OidcError> {
        let known = within(self.known(metrics, now_ms)).await?;
        let [state, nonce, verifier] = [(); 3].map(|()| secret());
        let challenge = PkceCodeVerifier::new(verifier.clone());
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&challenge);
        let oidc = known.client(&self.client);
        let (csrf, once) = (CsrfToken::new(state.clone()), Nonce::new(nonce.clone()));
        let flow = CoreAuthenticationFlow::AuthorizationCode;
        let request = oidc.authorize_url(flow, move || csrf, move || once);
        let request = request.add_scopes(self.client.scopes.iter().cloned());
        let (url, ..) = request.set_pkce_challenge(challenge).url();
        let login = Login {
            provider: self.client.name.clone(),
            state,
            nonce,
            verifier,
            path: path.to_owned(),
            expires_unix_s: now_ms / 1000 + LOGIN_S_MAX,
        };
        Ok((url.into(), login))
    }

    /// Ends a sign-in whose state was checked: who it is.
    ///
    /// # Errors
    /// [`OidcError`].
    pub async fn finish(
        &self,
        login: &Login,
        came: Came<'_>,
        metrics: &Metrics,
        now_ms: u64,
    ) -> Result<Person, OidcError> {
        let claims = within(async {
            let known = self.known(metrics, now_ms).await?;
            // Before the code is shown to anybody: a mixed-up issuer must not get it.
            known.check_issuer(came.issuer)?;
            let (token, access) = self.redeem(&known, login, came.code, metrics).await?;
            let claims = self.believe(&token, login, metrics, now_ms).await?;
            self.completed(&known, claims, &access, metrics).await
        });
        Ok(self.client.mapping.person(&claims.await?)?)
    }

    /// Where a browser ends its session at the provider too, if that is possible. Signing out
    /// waits for no provider: one that is not known yet is not asked.
    pub async fn logout_url(&self, then: &str) -> Option<String> {
        let known = self.state.try_lock().ok()?.known()?;
        let url = known.end_session()?;
        let request = LogoutRequest::from(url).set_client_id(self.client.id.clone());
        let then = PostLogoutRedirectUrl::new(then.to_owned()).ok()?;
        let request = request.set_post_logout_redirect_uri(then);
        Some(request.http_get_url().into())
    }

    async fn redeem(
        &self,
        known: &Known,
        login: &Login,
        code: &str,
        metrics: &Metrics,
    ) -> Result<(CoreIdToken, AccessToken), OidcError> {
        let oidc = known.client(&self.client);
        let request = oidc.exchange_code(AuthorizationCode::new(code.to_owned()));
        let request = request.map_err(|_| broken("it names no token endpoint"))?;
        let request = request.set_pkce_verifier(PkceCodeVerifier::new(login.verifier.clone()));
        let http = self.asker("token", metrics);
        let answer = request.request_async(&http).await;
        let answer = answer.map_err(|why| match why {
            RequestTokenError::ServerResponse(said) => {
                let text = quoted(&said.to_string());
                match said.error().as_ref() {
                    "invalid_grant" => OidcError::Code(text),
                    _ => OidcError::Broken(format!("the token endpoint says {text}")),
                }
            }
            RequestTokenError::Request(why) => why,
            RequestTokenError::Parse(why, _) => broken(&format!(
                "the token endpoint's answer: {}",
                quoted(&why.to_string())
            )),
            RequestTokenError::Other(why) => broken(&quoted(&why)),
        })?;
        let token = answer.id_token().cloned();
        let token = token.ok_or_else(|| broken("the token endpoint gave no ID token"))?;
        Ok((token, answer.access_token().clone()))
    }

    /// The claims of the ID token. Keys are fetched anew when none of those at hand signed it,
    /// at most once a minute.
    async fn believe(
        &self,
        token: &CoreIdToken,
        login: &Login,
        metrics: &Metrics,
        now_ms: u64,
    ) -> Result<Map<String, Value>, OidcError> {
        let nonce = Nonce::new(login.nonce.clone());
        let expected = Expected {
            issuer: &self.client.issuer,
            client: &self.client.id,
            nonce: &nonce,
            now_unix_s: now_ms / 1000,
        };
        let known = self.known(metrics, now_ms).await?;
        match verify(token, known.keys().clone(), &expected) {
            Err(why @ TokenError::Key(_)) => {
                let newer = self.newer(&known, metrics, now_ms).await?;
                let newer = newer.ok_or(why)?;
                Ok(verify(token, newer.keys().clone(), &expected)?)
            }
            other => Ok(other?),
        }
    }

    /// Claims that the provider keeps out of the ID token, from its userinfo endpoint. Those
    /// that the token has stay.
    async fn completed(
        &self,
        known: &Known,
        mut claims: Map<String, Value>,
        access: &AccessToken,
        metrics: &Metrics,
    ) -> Result<Map<String, Value>, OidcError> {
        let Some(url) = known
            .userinfo()
            .filter(|_| self.client.mapping.wants_more(&claims))
        else {
            return Ok(claims);
        };
        let request = Request::get(url)
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", access.secret()))
            .body(Vec::new());
        let request = request.map_err(|why| broken(&why.to_string()))?;
        let answer = self.asker("userinfo", metrics).ask(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(broken(&format!("userinfo answers {}", answer.status())));
        }
        let more = claims::object(answer.body());
        let more =
            more.map_err(|why| broken(&format!("userinfo: {}", quoted(&why.to_string()))))?;
        if more.get("sub") != claims.get("sub") {
            return Err(broken("userinfo speaks of another subject"));
        }
        for (name, value) in more {
            claims.entry(name).or_insert(value);
        }
        Ok(claims)
    }

    fn asker<'a>(&'a self, what: &'static str, metrics: &'a Metrics) -> Asker<'a> {
        Asker {
            provider: self,
            what,
            metrics,
        }
    }

    async fn known(&self, metrics: &Metrics, now_ms: u64) -> Result<Arc<Known>, OidcError> {
        let http = self.asker("discovery", metrics);
        let mut state = self.state.lock().await;
        state.known_at(&self.client.issuer, &http, now_ms).await
    }

    async fn newer(
        &self,
        old: &Arc<Known>,
        metrics: &Metrics,
        now_ms: u64,
    ) -> Result<Option<Arc<Known>>, OidcError> {
        let http = self.asker("keys", metrics);
        let mut state = self.state.lock().await;
        state.newer(old, &http, now_ms).await
    }
}

/// Sends the library's requests to a provider.
struct Asker<'a> {
    provider: &'a Provider,
    /// The label of its count.
    what: &'static str,
    metrics: &'a Metrics,
}

impl Asker<'_> {
    /// One request, counted.
    async fn ask(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, OidcError> {
        known::reachable(&self.provider.client.issuer, request.uri())?;
        let answer =
            tokio::time::timeout(REQUEST_DEADLINE, self.provider.outbound.send(request)).await;
        let answer = match answer {
            Err(_) => Err(OidcError::Unreachable(format!(
                "no answer within {REQUEST_DEADLINE:?}"
            ))),
            Ok(Err(why @ (OutboundError::Url(_) | OutboundError::TooLong { .. }))) => {
                Err(OidcError::Broken(why.to_string()))
            }
            Ok(Err(why)) => Err(OidcError::Unreachable(why.to_string())),
            Ok(Ok(answer)) if answer.body().len() > ANSWER_BYTES_MAX => Err(OidcError::Broken(
                format!("an answer of over {ANSWER_BYTES_MAX} bytes"),
            )),
            Ok(Ok(answer)) if answer.status().is_server_error() => Err(OidcError::Unreachable(
                format!("it answers {}", answer.status()),
            )),
            Ok(Ok(answer)) => Ok(answer),
        };
        self.metrics
            .idp_request(&self.provider.client.name, self.what, answer.is_ok());
        answer
    }
}

impl<'c> AsyncHttpClient<'c> for Asker<'_> {
    type Error = OidcError;
    // Named: the compiler does not see through the library's future that it may be sent.
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, OidcError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.ask(request))
    }
}

async fn within<T>(work: impl Future<Output = Result<T, OidcError>>) -> Result<T, OidcError> {
    let done = tokio::time::timeout(WHOLE_DEADLINE, work).await;
    done.unwrap_or_else(|_| {
        Err(OidcError::Unreachable(format!(
            "no answer within {WHOLE_DEADLINE:?}"
        )))
    })
}

fn broken(why: &str) -> OidcError {
    OidcError::Broken(why.to_owned())
}

/// 256 random bits.
fn secret() -> String {
    URL_SAFE_NO_PAD.encode(crypto::random_bytes::<32>())
}

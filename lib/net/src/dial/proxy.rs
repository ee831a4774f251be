//! The outbound proxy: which one applies, and how to get through it (C-17).

use std::sync::Arc;

use culvert_proto::close::CloseReason;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::connect::proxy::SocksV5;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tower::Service as _;

use super::race::Failed;
use super::url::{HubUrl, redact};
use crate::tls::ClientTls;
use crate::transport::{Transport, rewound};

/// Which proxy stands between us and a hub.
#[derive(Clone)]
pub struct ProxyConfig {
    matcher: Arc<Matcher>,
    /// Trust for `https://` proxies; the dialler's own where `None`.
    tls: Option<Arc<ClientTls>>,
}

/// A proxy setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {value:?} is no proxy address: {problem}")]
pub struct ProxyConfigError {
    setting: String,
    value: String,
    problem: &'static str,
}

impl ProxyConfig {
    /// No proxy, whatever the environment says.
    #[must_use]
    pub fn direct() -> ProxyConfig {
        ProxyConfig {
            matcher: Arc::new(Matcher::builder().build()),
            tls: None,
        }
    }

    /// `explicit` (`--proxy`) goes before `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY`, each in both
    /// cases (lower case first, as in curl); `NO_PROXY` applies to all of them. `env` reads one
    /// variable.
    ///
    /// # Errors
    /// When a setting is no `http`, `https`, `socks5` or `socks5h` address: a proxy that is
    /// misspelt must not mean no proxy.
    pub fn new(
        explicit: Option<&str>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<ProxyConfig, ProxyConfigError> {
        let either = |lower: &str| {
            [lower.to_owned(), lower.to_ascii_uppercase()]
                .into_iter()
                .find_map(|name| {
                    env(&name)
                        .filter(|v| !v.trim().is_empty())
                        .map(|v| (name, v))
                })
        };
        let mut builder = Matcher::builder();
        if let Some(proxy) = explicit {
            builder = builder.all(checked("--proxy", proxy)?);
        } else {
            if let Some((name, value)) = either("https_proxy") {
                builder = builder.https(checked(&name, &value)?);
            }
            if let Some((name, value)) = either("http_proxy") {
                builder = builder.http(checked(&name, &value)?);
            }
            if let Some((name, value)) = either("all_proxy") {
                builder = builder.all(checked(&name, &value)?);
            }
        }
        if let Some((_, value)) = either("no_proxy") {
            builder = builder.no(value);
        }
        Ok(ProxyConfig {
            matcher: Arc::new(builder.build()),
            tls: None,
        })
    }

    /// Trusts what `tls` trusts when the proxy itself is an `https://` one (`--proxy-ca`).
    #[must_use]
    pub fn with_tls(mut self, tls: Arc<ClientTls>) -> ProxyConfig {
        self.tls = Some(tls);
        self
    }

    /// The proxy for `url`, if one applies.
    pub(super) fn for_url(&self, url: &HubUrl) -> Option<Proxy> {
        let intercept = self.matcher.intercept(&url.origin())?;
        Some(Proxy {
            intercept,
            tls: self.tls.clone(),
        })
    }
}

fn checked(setting: &str, value: &str) -> Result<String, ProxyConfigError> {
    let value = value.trim();
    let fail = |problem| ProxyConfigError {
        setting: setting.to_owned(),
        value: redact(value),
        problem,
    };
    let uri: Uri = value.parse().map_err(|_| fail("not a URL"))?;
    match uri.scheme_str() {
        None | Some("http" | "https" | "socks5" | "socks5h") => {}
        Some(_) => return Err(fail("the scheme is none of http, https, socks5, socks5h")),
    }
    match uri.authority() {
        Some(authority) if !authority.host().is_empty() => Ok(value.to_owned()),
        _ => Err(fail("the host is missing")),
    }
}

/// One proxy, chosen for one hub.
pub(super) struct Proxy {
    intercept: Intercept,
    tls: Option<Arc<ClientTls>>,
}

impl Proxy {
    /// Where to connect to.
    pub(super) fn host_and_port(&self) -> (String, u16) {
        let uri = self.intercept.uri();
        let host = uri.host().unwrap_or_default();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = uri.port_u16().unwrap_or(match uri.scheme_str() {
            Some("https") => 443,
            Some("socks5" | "socks5h") => 1080,
            _ => 80,
        });
        (host, port)
    }

    /// Scheme, host and port, without credentials.
    pub(super) fn name(&self) -> String {
        let (host, port) = self.host_and_port();
        format!(
            "{}://{host}:{port}",
            self.intercept.uri().scheme_str().unwrap_or("http")
        )
    }

    /// Asks the proxy, over `io`, for a connection to `url`.
    pub(super) async fn pass(
        &self,
        io: Box<dyn Transport>,
        url: &HubUrl,
        default_tls: &ClientTls,
    ) -> Result<Box<dyn Transport>, Failed> {
        match self.intercept.uri().scheme_str() {
            Some("socks5" | "socks5h") => self.socks(io, url).await,
            Some("https") => {
                let (host, _) = self.host_and_port();
                let tls = self.tls.as_deref().unwrap_or(default_tls);
                let io = tls
                    .connect(&host, io)
                    .await
                    .map_err(|e| (e.close_reason(), e.to_string()))?;
                self.connect(Box::new(io), url).await
            }
            _ => self.connect(io, url).await,
        }
    }

    async fn socks(
        &self,
        io: Box<dyn Transport>,
        url: &HubUrl,
    ) -> Result<Box<dyn Transport>, Failed> {
        // The connection exists already: the "connector" hands it out, once.
        let mut io = Some(TokioIo::new(io));
        let connector = tower::service_fn(move |_: Uri| {
            let io = io
                .take()
                .ok_or_else(|| std::io::Error::other("asked twice"));
            std::future::ready(io)
        });
        let mut socks = SocksV5::new(self.intercept.uri().clone(), connector);
        if let Some((user, password)) = self.intercept.raw_auth() {
            socks = socks.with_auth(user.to_owned(), password.to_owned());
        }
        let io = socks.call(url.origin()).await.map_err(failed)?;
        Ok(io.into_inner())
    }

    async fn connect(
        &self,
        io: Box<dyn Transport>,
        url: &HubUrl,
    ) -> Result<Box<dyn Transport>, Failed> {
        let authority = url.authority();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
            .await
            .map_err(failed)?;
        let connection = tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(&authority)
            .header(HOST, &authority)
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .map_err(failed)?;
        if let Some(auth) = self.intercept.basic_auth() {
            let mut auth: HeaderValue = auth.clone();
            auth.set_sensitive(true);
            request.headers_mut().insert(PROXY_AUTHORIZATION, auth);
        }
        let response = sender.send_request(request).await.map_err(failed)?;
        if !response.status().is_success() {
            connection.abort();
            return Err(refusal(
                response.status(),
                self.intercept.basic_auth().is_some(),
            ));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(failed)?;
        let parts = upgraded
            .downcast::<TokioIo<Box<dyn Transport>>>()
            .map_err(|_| {
                (
                    CloseReason::ProxyRefused,
                    "the connection changed its type".to_owned(),
                )
            })?;
        Ok(rewound(parts.read_buf, parts.io.into_inner()))
    }
}

fn failed(error: impl std::error::Error) -> Failed {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        out = format!("{out}: {inner}");
        source = inner.source();
    }
    (CloseReason::ProxyRefused, out)
}

fn refusal(status: StatusCode, with_credentials: bool) -> Failed {
    let text = match (status, with_credentials) {
        (StatusCode::PROXY_AUTHENTICATION_REQUIRED, false) => {
            "the proxy wants credentials (407): write them into the proxy URL, \
             http://user:password@host:port"
                .to_owned()
        }
        (StatusCode::PROXY_AUTHENTICATION_REQUIRED, true) => {
            "the proxy refused the credentials (407): check user and password in the proxy URL; \
             only Basic is spoken"
                .to_owned()
        }
        (StatusCode::FORBIDDEN, _) => {
            "the proxy forbids this host or port (403): ask its operator to allow CONNECT to it"
                .to_owned()
        }
        (status, _) => format!("the proxy answered {status} to CONNECT"),
    };
    let reason = match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => CloseReason::ProxyAuth,
        _ => CloseReason::ProxyRefused,
    };
    (reason, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        }
    }

    fn chosen(config: &ProxyConfig, url: &str) -> Option<String> {
        config.for_url(&url.parse().unwrap()).map(|p| p.name())
    }

    #[test]
    fn variables_in_both_cases() {
        let config = ProxyConfig::new(None, env(&[("HTTPS_PROXY", "http://up:3128")])).unwrap();
        assert_eq!(
            chosen(&config, "wss://hub/").as_deref(),
            Some("http://up:3128")
        );
        assert_eq!(chosen(&config, "ws://hub/"), None);
        let both = [
            ("HTTPS_PROXY", "http://up:3128"),
            ("https_proxy", "low:3128"),
        ];
        let config = ProxyConfig::new(None, env(&both)).unwrap();
        assert_eq!(
            chosen(&config, "wss://hub/").as_deref(),
            Some("http://low:3128")
        );
        let config = ProxyConfig::new(None, env(&[("all_proxy", "socks5://s")])).unwrap();
        assert_eq!(
            chosen(&config, "ws://hub/").as_deref(),
            Some("socks5://s:1080")
        );
    }

    #[test]
    fn no_proxy_excepts_hosts_domains_and_networks() {
        for name in ["NO_PROXY", "no_proxy"] {
            let vars = [
                (name, "example.org, 10.0.0.0/8"),
                ("ALL_PROXY", "http://p:1"),
            ];
            let config = ProxyConfig::new(None, env(&vars)).unwrap();
            assert_eq!(chosen(&config, "wss://hub.Example.org/"), None);
            assert_eq!(chosen(&config, "wss://10.1.2.3/"), None);
            assert!(chosen(&config, "wss://example.com/").is_some());
            let config = ProxyConfig::new(Some("http://x:1"), env(&vars)).unwrap();
            assert_eq!(chosen(&config, "wss://example.org/"), None);
        }
    }

    #[test]
    fn the_flag_goes_first_and_errors_hide_passwords() {
        let vars = [("HTTPS_PROXY", "http://env:1")];
        let config = ProxyConfig::new(Some("https://flag"), env(&vars)).unwrap();
        assert_eq!(
            chosen(&config, "wss://hub/").as_deref(),
            Some("https://flag:443")
        );
        for bad in [
            "ftp://me:secret@p",
            "socks4://me:secret@p",
            "http://me:secret@ p",
        ] {
            let error = ProxyConfig::new(Some(bad), |_| None)
                .err()
                .unwrap()
                .to_string();
            assert!(
                error.starts_with("--proxy") && !error.contains("secret"),
                "{error}"
            );
        }
    }
}

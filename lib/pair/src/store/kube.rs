//! The few words of the Kubernetes API that a store needs: HTTP/1.1 over TLS, one connection each.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::StoreError;

/// The whole of one request, from the dial to the last byte.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest answer: a page of Secrets, each with a registration.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest token file.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Longest message of the API that is passed on to a person.
const MESSAGE_CHARACTERS_MAX: usize = 300;
/// Where Kubernetes puts what a pod's account needs.
const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the Kubernetes API is, whom to trust there, and what to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeAccess {
    /// `https://host:port`.
    pub server: String,
    /// The CA of the API server, PEM.
    pub ca_file: PathBuf,
    /// The token; read for every request, for it rotates.
    pub token_file: PathBuf,
}

impl KubeAccess {
    /// What every pod with a service account has.
    #[must_use]
    pub fn in_cluster() -> KubeAccess {
        let dir = PathBuf::from(ACCOUNT_DIR);
        KubeAccess {
            server: "https://kubernetes.default.svc:443".to_owned(),
            ca_file: dir.join("ca.crt"),
            token_file: dir.join("token"),
        }
    }
}

/// A client of the API.
pub(super) struct Api {
    access: KubeAccess,
    host: String,
    port: u16,
    tls: ClientTls,
}

/// An answer, read to its end. The body may hold secrets.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Api {
    pub(super) fn new(access: &KubeAccess) -> Result<Api, StoreError> {
        let unreachable = |problem: String| StoreError::Unreachable {
            place: access.server.clone(),
            problem,
        };
        let (host, port) = authority(&access.server).ok_or_else(|| {
            unreachable("not the address of a Kubernetes API: write https://host:port".to_owned())
        })?;
        let tls = ClientTls::load(ClientTlsOptions {
            roots: Roots::File(access.ca_file.clone()),
            ..ClientTlsOptions::default()
        });
        let tls = tls.map_err(|why| {
            unreachable(format!(
                "{why}; outside of a cluster name the API and its files"
            ))
        })?;
        Ok(Api {
            access: access.clone(),
            host,
            port,
            tls,
        })
    }

    /// One request and its answer, whatever its status.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Answer, StoreError> {
        let asked = self.exchange(method, path, body);
        match tokio::time::timeout(ANSWER_MAX, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(self.broken("no answer within 5 s")),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Answer, StoreError> {
        let bearer = self.bearer().await?;
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
        let tcp = tcp.map_err(|why| self.broken(why))?;
        let tls = self.tls.connect(&self.host, tcp).await;
        let tls = tls.map_err(|why| self.broken(why))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|why| self.broken(why))?;
        // Ends with the sender: when the answer is there, or the time is over.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.host_header())
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Bytes::from_owner(body.unwrap_or_default());
        let request = request
            .body(Full::new(body))
            .map_err(|why| self.broken(why))?;
        let answer = sender.send_request(request).await;
        let (head, body) = answer.map_err(|why| self.broken(why))?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|why| self.broken(format!("the answer: {why}")))?;
        Ok(Answer {
            status: head.status,
            body: Zeroizing::new(body.to_bytes().into()),
        })
    }

    /// What the API says about a request that it does not fulfil.
    pub(super) fn refused(&self, what: String, answer: &Answer) -> StoreError {
        #[derive(serde::Deserialize)]
        struct Status {
            message: String,
        }
        let message = serde_json::from_slice(&answer.body).map(|status: Status| status.message);
        let message = message.unwrap_or_default();
        let fix = match answer.status.as_u16() {
            401 => "the token is not valid here",
            403 => "give the account a role with get, list, create, update and delete on secrets",
            404 => "is the namespace there?",
            _ => "see the API server's log",
        };
        StoreError::Refused {
            place: self.access.server.clone(),
            what,
            status: answer.status.as_u16(),
            message: message.chars().take(MESSAGE_CHARACTERS_MAX).collect(),
            fix,
        }
    }

    pub(super) fn broken(&self, why: impl std::fmt::Display) -> StoreError {
        StoreError::Unreachable {
            place: self.access.server.clone(),
            problem: why.to_string(),
        }
    }

    async fn bearer(&self) -> Result<HeaderValue, StoreError> {
        use tokio::io::AsyncReadExt as _;
        let path = &self.access.token_file;
        let io = |source| StoreError::Io {
            path: path.clone(),
            source,
        };
        let file = tokio::fs::File::open(path).await.map_err(io)?;
        let mut text = Zeroizing::new(String::from("Bearer "));
        let read = file.take(TOKEN_BYTES_MAX).read_to_string(&mut text).await;
        read.map_err(io)?;
        let value = HeaderValue::try_from(text.trim_end()).ok();
        let value = value.filter(|_| text.trim_end() != "Bearer");
        let mut bearer = value.ok_or_else(|| self.broken("the token file holds no token"))?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }

    fn host_header(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Host and port of `https://host[:port]`; an IPv6 address loses its brackets.
fn authority(server: &str) -> Option<(String, u16)> {
    let rest = server.strip_prefix("https://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let bare = rest.ends_with(']') || !rest.contains(':');
    let full = if bare {
        format!("{rest}:443")
    } else {
        rest.to_owned()
    };
    let (host, port) = crate::name::check_relay(&full).ok()?;
    Some((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_named_by_an_https_address() {
        let of = |server: &str| authority(server);
        assert_eq!(
            of("https://api.example"),
            Some(("api.example".to_owned(), 443))
        );
        assert_eq!(
            of("https://10.0.0.1:6443/"),
            Some(("10.0.0.1".to_owned(), 6443))
        );
        assert_eq!(of("https://[::1]"), Some(("::1".to_owned(), 443)));
        for bad in [
            "http://api.example",
            "api.example",
            "https://",
            "https://a/b",
            "https://a:0",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}

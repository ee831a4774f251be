//! An issuer over real TLS that says whatever the test wants, and remembers what it was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use culvert_control::outbound::Outbound;
use culvert_net::dial::ProxyConfig;
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{
    ClientTls, ClientTlsOptions, MinVersion, Roots, ServerTls, ServerTlsOptions,
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How it behaves.
pub struct Behaviour {
    /// Answers by path: status and body. Others are not found.
    pub answers: HashMap<&'static str, (u16, Value)>,
    /// Accepts and never answers.
    pub is_silent: bool,
    /// What it was asked: path, `Authorization`, body.
    pub asked: Vec<(String, String, String)>,
}

pub struct Issuer {
    dir: tempfile::TempDir,
    pub url: String,
    pub behaviour: Arc<Mutex<Behaviour>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Issuer {
    pub async fn start(jwks: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::new("issuer").unwrap();
        ca.write(dir.path()).unwrap();
        let cert = ca.server(&["127.0.0.1"]).unwrap();
        let (cert, key) = cert.write(dir.path(), "issuer").unwrap();
        let tls = tls(cert, key);
        let answers = HashMap::from([
            (
                "/.well-known/openid-configuration",
                (200, Self::document(&url)),
            ),
            ("/jwks", (200, jwks)),
        ]);
        let behaviour = Behaviour {
            answers,
            is_silent: false,
            asked: Vec::new(),
        };
        let behaviour = Arc::new(Mutex::new(behaviour));
        let serving = tokio::spawn(serve(listener, tls, behaviour.clone()));
        Self {
            dir,
            url,
            behaviour,
            serving,
        }
    }

    /// What it says of itself.
    pub fn document(url: &str) -> Value {
        json!({
            "issuer": url,
            "authorization_endpoint": format!("{url}/authorize"),
            "token_endpoint": format!("{url}/token"),
            "jwks_uri": format!("{url}/jwks"),
            "end_session_endpoint": format!("{url}/end"),
            "authorization_response_iss_parameter_supported": true,
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "PS256", "ES256", "EdDSA", "HS256", "none"],
        })
    }

    /// Asks it and nobody else over TLS.
    pub fn outbound(&self) -> Outbound {
        let options = ClientTlsOptions {
            roots: Roots::File(self.dir.path().join("ca.crt")),
            ..ClientTlsOptions::default()
        };
        let tls = Arc::new(ClientTls::load(options).unwrap());
        Outbound::new(tls, ProxyConfig::direct())
    }

    pub fn says(&self, path: &'static str, status: u16, body: Value) {
        self.behaviour.lock().answers.insert(path, (status, body));
    }

    /// The next code is worth this token.
    pub fn gives(&self, id_token: &str) {
        let body = json!({"access_token": "at-1", "token_type": "Bearer", "id_token": id_token});
        self.says("/token", 200, body);
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        let behaviour = self.behaviour.lock();
        behaviour
            .asked
            .iter()
            .filter(|(asked, ..)| asked == path)
            .count()
    }

    pub fn ends(&self) {
        self.serving.abort();
    }
}

fn tls(cert: PathBuf, key: PathBuf) -> Arc<ServerTls> {
    let options = ServerTlsOptions {
        cert,
        key,
        client_auth: None,
        alpn: Vec::new(),
        min_version: MinVersion::Tls13,
    };
    Arc::new(ServerTls::load(options).unwrap())
}

async fn serve(listener: TcpListener, tls: Arc<ServerTls>, behaviour: Arc<Mutex<Behaviour>>) {
    // What is dropped with this task ends with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, behaviour) = (tls.clone(), behaviour.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = service_fn(|request| answer(request, behaviour.clone()));
            let io = TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    behaviour: Arc<Mutex<Behaviour>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let given = request.headers().get("authorization");
    let given = given.map_or("", |it| it.to_str().unwrap()).to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let (is_silent, found) = {
        let mut behaviour = behaviour.lock();
        behaviour.asked.push((path.clone(), given, body));
        (
            behaviour.is_silent,
            behaviour.answers.get(path.as_str()).cloned(),
        )
    };
    if is_silent {
        std::future::pending::<()>().await;
    }
    let (status, body) = found.unwrap_or((404, json!({"error": "not_found"})));
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    // A text is sent as it is: JSON that no writer of JSON makes.
    let text = body
        .as_str()
        .map_or_else(|| body.to_string(), str::to_owned);
    Ok(response.body(Full::new(Bytes::from(text))).unwrap())
}

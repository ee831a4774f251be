//! A stand-in for the Kubernetes API: Secrets of one namespace, their revisions, pages, labels and
//! refusals, as the API's reference describes them. It is no API server, and proves nothing about one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{MinVersion, ServerTls, ServerTlsOptions};
use culvert_pair::KubeAccess;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const SECRETS: &str = "/api/v1/namespaces/pairs/secrets";
pub const TOKEN: &str = "stub-token";

/// How it behaves.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Sound,
    /// No role for the account.
    Forbids,
    /// Accepts and never answers.
    Stalls,
    /// Answers without end.
    Floods,
    /// Answers with something that is no Secret.
    Babbles,
}

#[derive(Default)]
pub struct State {
    pub secrets: BTreeMap<String, Value>,
    pub mood: Mood,
    pub asked: Vec<String>,
    revision: u64,
}

pub struct Stub {
    pub access: KubeAccess,
    pub state: Arc<Mutex<State>>,
    pub dir: tempfile::TempDir,
}

impl Stub {
    pub async fn start() -> Stub {
        let dir = tempfile::tempdir().unwrap();
        let tls = tls(dir.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        tokio::spawn(serve(listener, tls, state.clone()));
        let token_file = dir.path().join("token");
        std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
        let access = KubeAccess {
            server: format!("https://localhost:{port}"),
            ca_file: dir.path().join("ca.crt"),
            token_file,
        };
        Stub { access, state, dir }
    }

    pub fn set(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }
}

fn tls(dir: &Path) -> ServerTls {
    let ca = DevCa::new("stub").unwrap();
    ca.write(dir).unwrap();
    let (cert, key): (PathBuf, PathBuf) = ca
        .server(&["localhost"])
        .unwrap()
        .write(dir, "api")
        .unwrap();
    ServerTls::load(ServerTlsOptions {
        cert,
        key,
        client_auth: None,
        alpn: Vec::new(),
        min_version: MinVersion::Tls12,
    })
    .unwrap()
}

async fn serve(listener: TcpListener, tls: ServerTls, state: Arc<Mutex<State>>) {
    let tls = Arc::new(tls);
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), state.clone());
        tokio::spawn(async move {
            let Ok(io) = tls.accept(tcp).await else {
                return;
            };
            let service = service_fn(move |request| answer(state.clone(), request));
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(io), service).await;
        });
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mood = state.lock().unwrap().mood;
    if mood == Mood::Stalls {
        std::future::pending::<()>().await;
    }
    let (status, said) = {
        let mut state = state.lock().unwrap();
        state.asked.push(format!("{} {}", head.method, head.uri));
        let bearer = head.headers.get(header::AUTHORIZATION);
        match mood {
            _ if bearer.is_none_or(|b| b != &format!("Bearer {TOKEN}")) => {
                refusal(401, "Unauthorized", "Unauthorized")
            }
            Mood::Forbids => refusal(403, "Forbidden", "secrets is forbidden: no role"),
            Mood::Floods => (200, Value::String("x".repeat(2 << 20))),
            Mood::Babbles => (200, json!({"items": "cvf_not-to-be-quoted"})),
            _ => state.handle(&head.method, &head.uri, &body),
        }
    };
    let said = Full::new(Bytes::from(said.to_string()));
    let mut response = Response::new(said);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

impl State {
    fn handle(&mut self, method: &Method, uri: &http::Uri, body: &[u8]) -> (u16, Value) {
        let Some(rest) = uri.path().strip_prefix(SECRETS) else {
            return refusal(
                404,
                "NotFound",
                "the server could not find the requested resource",
            );
        };
        let name = rest.trim_start_matches('/').to_owned();
        match (method.as_str(), name.is_empty()) {
            ("GET", true) => self.page(uri.query().unwrap_or_default()),
            ("GET", false) => match self.secrets.get(&name) {
                Some(secret) => (200, secret.clone()),
                None => missing(&name),
            },
            ("POST", true) => self.create(body),
            ("PUT", false) => self.update(&name, body),
            ("DELETE", false) => self.delete(&name, body),
            _ => refusal(405, "MethodNotAllowed", "not allowed"),
        }
    }

    fn page(&self, query: &str) -> (u16, Value) {
        let value = |key: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(k, _)| *k == key)
                .map(|(_, v)| v.replace("%2F", "/").replace("%3D", "="))
                .next()
        };
        let selector = value("labelSelector").unwrap_or_default();
        let (label, wanted) = selector.split_once('=').unwrap_or_default();
        let limit = value("limit")
            .and_then(|n| n.parse().ok())
            .unwrap_or(usize::MAX);
        let after = value("continue").unwrap_or_default();
        let matching = self.secrets.iter().filter(|(_, secret)| {
            label.is_empty() || secret["metadata"]["labels"][label] == wanted
        });
        let rest: Vec<_> = matching.filter(|(name, _)| **name > after).collect();
        let items: Vec<&Value> = rest.iter().take(limit).map(|(_, secret)| *secret).collect();
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if rest.len() > items.len() {
            metadata["continue"] = items.last().unwrap()["metadata"]["name"].clone();
        }
        (
            200,
            json!({"kind": "SecretList", "apiVersion": "v1", "metadata": metadata, "items": items}),
        )
    }

    fn create(&mut self, body: &[u8]) -> (u16, Value) {
        let secret: Value = serde_json::from_slice(body).unwrap();
        let name = secret["metadata"]["name"].as_str().unwrap().to_owned();
        if self.secrets.contains_key(&name) {
            return refusal(
                409,
                "AlreadyExists",
                &format!("secrets \"{name}\" already exists"),
            );
        }
        if !secret["metadata"]["resourceVersion"].is_null() {
            return refusal(
                400,
                "BadRequest",
                "resourceVersion should not be set on objects to be created",
            );
        }
        (201, self.put(name, secret))
    }

    fn update(&mut self, name: &str, body: &[u8]) -> (u16, Value) {
        let secret: Value = serde_json::from_slice(body).unwrap();
        let Some(now) = self.secrets.get(name) else {
            return missing(name);
        };
        let named = &secret["metadata"]["resourceVersion"];
        if !named.is_null() && *named != now["metadata"]["resourceVersion"] {
            return refusal(409, "Conflict", "the object has been modified");
        }
        (200, self.put(name.to_owned(), secret))
    }

    fn delete(&mut self, name: &str, body: &[u8]) -> (u16, Value) {
        let options: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(now) = self.secrets.get(name) else {
            return missing(name);
        };
        let named = &options["preconditions"]["resourceVersion"];
        if !named.is_null() && *named != now["metadata"]["resourceVersion"] {
            return refusal(
                409,
                "Conflict",
                "the ResourceVersion in the precondition does not match",
            );
        }
        self.secrets.remove(name);
        (
            200,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
        )
    }

    fn put(&mut self, name: String, mut secret: Value) -> Value {
        self.revision += 1;
        secret["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.secrets.insert(name, secret.clone());
        secret
    }
}

fn missing(name: &str) -> (u16, Value) {
    refusal(404, "NotFound", &format!("secrets \"{name}\" not found"))
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": reason, "code": code});
    (code, status)
}

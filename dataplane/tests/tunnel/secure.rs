//! TLS on both ports.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::{Agent, Introduction};
use crate::client::{Answer, connect, exchange, request};
use crate::hub::Hub;

pub struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    pub fn new() -> Pki {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::new("test").unwrap();
        ca.write(dir.path()).unwrap();
        let server = ca.server(&["localhost", "127.0.0.1"]).unwrap();
        server.write(dir.path(), "server").unwrap();
        ca.client("machine")
            .unwrap()
            .write(dir.path(), "client")
            .unwrap();
        Pki { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn identity(&self) -> Option<(PathBuf, PathBuf)> {
        Some((self.path("client.crt"), self.path("client.key")))
    }

    pub fn client(&self, identity: bool, alpn: &str) -> Arc<ClientTls> {
        let options = ClientTlsOptions {
            roots: Roots::File(self.path("ca.crt")),
            identity: if identity { self.identity() } else { None },
            alpn: vec![alpn.as_bytes().to_vec()],
            ..ClientTlsOptions::default()
        };
        Arc::new(ClientTls::load(options).unwrap())
    }

    fn hub(&self, client_ca: bool) -> Hub {
        self.hub_with(&crate::hub::clusters(), client_ca)
    }

    pub fn hub_with(&self, clusters: &str, client_ca: bool) -> Hub {
        let flag = |name: &str, file: &str| format!("--{name}={}", self.path(file).display());
        let mut args = vec![
            flag("tls-cert", "server.crt"),
            flag("tls-key", "server.key"),
        ];
        if client_ca {
            args.push(flag("tls-client-ca", "ca.crt"));
        }
        Hub::with(
            clusters,
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    }
}

/// The whole answer to a GET over TLS.
pub async fn get_over(client: &ClientTls, at: std::net::SocketAddr, target: &str) -> String {
    let stream = client.connect("localhost", connect(at).await).await;
    let mut stream = stream.unwrap();
    let asked = request("GET", target, "");
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn client_certificates_are_required_on_both_ports() {
    let pki = Pki::new();
    let hub = pki.hub(true);
    for at in [hub.at.public, hub.at.internal] {
        let plain = exchange(at, request("GET", "/healthz", "").as_bytes()).await;
        assert_eq!(plain.status, 400, "plain HTTP on a TLS port");
        assert!(plain.text().contains("TLS"));
        let without = pki.client(false, "http/1.1");
        let refused = match without.connect("localhost", connect(at).await).await {
            Err(_) => true,
            // TLS 1.3 tells a client without a certificate only when it reads.
            Ok(mut tls) => {
                let _ = tls
                    .write_all(request("GET", "/healthz", "").as_bytes())
                    .await;
                !matches!(tls.read(&mut [0; 64]).await, Ok(1..))
            }
        };
        assert!(refused, "no certificate, no answer");
        let with = pki.client(true, "http/1.1");
        let mut tls = with.connect("localhost", connect(at).await).await.unwrap();
        tls.write_all(request("GET", "/healthz", "").as_bytes())
            .await
            .unwrap();
        let mut wire = Vec::new();
        let _ = tls.read_to_end(&mut wire).await;
        assert_eq!(Answer::parse(&wire).text(), "ok");
    }
    let intro = Introduction {
        roots: Roots::File(pki.path("ca.crt")),
        identity: pki.identity(),
        scheme: "wss",
        ..Introduction::default()
    };
    let _agent = Agent::with(hub.at.public, intro).await;
    let tls = pki.client(true, "http/1.1");
    let mut tls = tls
        .connect("localhost", connect(hub.at.internal).await)
        .await
        .unwrap();
    tls.write_all(request("GET", "/tunnel/dev/a", "").as_bytes())
        .await
        .unwrap();
    let mut wire = Vec::new();
    let _ = tls.read_to_end(&mut wire).await;
    assert!(Answer::parse(&wire).text().starts_with("GET /a\n"));
}

#[tokio::test]
async fn h2_clients_are_served_and_share_a_connection() {
    let pki = Pki::new();
    let hub = pki.hub(false);
    let intro = Introduction {
        roots: Roots::File(pki.path("ca.crt")),
        scheme: "wss",
        ..Introduction::default()
    };
    let _agent = Agent::with(hub.at.public, intro).await;
    let tls = pki.client(false, "h2");
    let tls = tls
        .connect("localhost", connect(hub.at.internal).await)
        .await
        .unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (client, connection) = builder
        .handshake::<_, Empty<Bytes>>(TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(connection);
    let asks = (0..40).map(|n| {
        let mut client = client.clone();
        async move {
            let uri = format!("https://localhost:{}/tunnel/dev/x/{n}", hub_port());
            let asked = http::Request::get(uri).body(Empty::new()).unwrap();
            let answer = client.send_request(asked).await.unwrap();
            assert_eq!(answer.status(), 200, "request {n}");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(
                body.starts_with(format!("GET /x/{n}\n").as_bytes()),
                "request {n}"
            );
        }
    });
    futures_util::future::join_all(asks).await;
}

/// Any port: the authority is not looked at beyond its form.
fn hub_port() -> u16 {
    443
}

#[tokio::test]
async fn the_internal_port_may_be_plain_beside_a_public_one_with_tls() {
    let pki = Pki::new();
    let cert = format!("--tls-cert={}", pki.path("server.crt").display());
    let key = format!("--tls-key={}", pki.path("server.key").display());
    let hub = Hub::start(&[&cert, &key, "--internal-plain"]);
    let plain = request("GET", "/healthz", "");
    let internal = exchange(hub.at.internal, plain.as_bytes()).await;
    assert_eq!(internal.status, 200);
    let public = exchange(hub.at.public, plain.as_bytes()).await;
    assert_eq!(public.status, 400, "plain HTTP on a TLS port");
}

//! Routes by server name: the client's TLS is not opened.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{
    ClientTls, ClientTlsOptions, MinVersion, Roots, ServerTls, ServerTlsOptions,
};
use culvert_proto::hello::Caps;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;

use crate::agent::{Agent, Introduction};
use crate::client::connect;
use crate::flows::{free, introduction, reach};
use crate::hub::{Hub, TOKEN, soon};
use crate::private::Private;
use crate::secure::{Pki, get_over};

/// The service's own authority: not the hub's.
struct Service {
    dir: tempfile::TempDir,
}

impl Service {
    fn new() -> Service {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::new("service").unwrap();
        ca.write(dir.path()).unwrap();
        let names = ["web.example.com", "a.vault.example.com"];
        ca.server(&names)
            .unwrap()
            .write(dir.path(), "server")
            .unwrap();
        Service { dir }
    }

    fn server(&self) -> Arc<ServerTls> {
        let options = ServerTlsOptions {
            cert: self.dir.path().join("server.crt"),
            key: self.dir.path().join("server.key"),
            client_auth: None,
            alpn: Vec::new(),
            min_version: MinVersion::Tls12,
        };
        Arc::new(ServerTls::load(options).unwrap())
    }

    fn client(&self) -> ClientTls {
        ClientTls::load(ClientTlsOptions {
            roots: Roots::File(self.dir.path().join("ca.crt")),
            ..ClientTlsOptions::default()
        })
        .unwrap()
    }

    async fn answers(&self, name: &str, stream: TcpStream) {
        let tls = soon("TLS with the service", self.client().connect(name, stream)).await;
        let mut tls = tls.unwrap();
        tls.write_all(b"sealed").await.unwrap();
        let mut back = [0; 6];
        soon("the echo", tls.read_exact(&mut back)).await.unwrap();
        assert_eq!(&back, b"sealed");
        tls.shutdown().await.unwrap();
        soon("the end", tls.read_to_end(&mut Vec::new()))
            .await
            .unwrap();
    }
}

fn clusters(own: SocketAddr) -> String {
    format!(
        r#"[{{"id":"dev","token":"{TOKEN}","routes":[
            {{"service":"tls","sealed":"web.example.com"}},
            {{"service":"tls","sealed":"*.vault.example.com","addr":"{own}"}}]}}]"#
    )
}

async fn agent(hub: &Hub, service: &Service, pki: Option<&Pki>) -> (Agent, Arc<Private>) {
    let private = Private::build(hub.at.public, true, None, Some(service.server()));
    let private = Arc::new(private);
    let mut intro = introduction(&private, Caps::CHANNEL);
    if let Some(pki) = pki {
        intro = Introduction {
            scheme: "wss",
            roots: Roots::File(pki.path("ca.crt")),
            identity: pki.identity(),
            ..intro
        };
    }
    (Agent::with(hub.at.public, intro).await, private)
}

const NAME_UNKNOWN: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a client is told that asks for `name`.
async fn told(service: &Service, name: &str, at: SocketAddr) -> Vec<u8> {
    let mut stream = reach(at).await;
    stream.write_all(&hello(service, name).await).await.unwrap();
    let mut told = Vec::new();
    soon("the end", stream.read_to_end(&mut told))
        .await
        .unwrap();
    told
}

/// A ClientHello.
async fn hello(service: &Service, name: &str) -> Vec<u8> {
    let (client, name) = (service.client(), name.to_owned());
    let (near, mut far) = duplex(1 << 16);
    let handshake = tokio::spawn(async move { client.connect(&name, near).await.is_ok() });
    let mut bytes = vec![0; 1 << 16];
    let got = soon("a hello", far.read(&mut bytes)).await.unwrap();
    handshake.abort();
    bytes.truncate(got);
    bytes
}

#[tokio::test]
async fn clients_are_led_by_name_and_answered_by_the_service_alone() {
    let service = Service::new();
    let pki = Pki::new();
    let own = free();
    for with_tls in [false, true] {
        let hub = match with_tls {
            true => pki.hub_with(&clusters(own), true),
            false => Hub::with(&clusters(own), &[]),
        };
        let (_agent, private) = agent(&hub, &service, with_tls.then_some(&pki)).await;
        service
            .answers("web.example.com", connect(hub.at.public).await)
            .await;
        service
            .answers("a.vault.example.com", reach(own).await)
            .await;
        let carried = private.carried.lock().clone();
        assert!(!carried.contains(&"stream"), "{carried:?}");
        // A name of the other listener, one label too many, and an address.
        assert_eq!(told(&service, "web.example.com", own).await, NAME_UNKNOWN);
        assert_eq!(
            told(&service, "a.b.vault.example.com", own).await,
            NAME_UNKNOWN
        );
        assert_eq!(told(&service, "127.0.0.1", own).await, NAME_UNKNOWN);
        match with_tls {
            // Any other name is the hub's own business.
            true => {
                let client = pki.client(true, "http/1.1");
                let healthy = get_over(&client, hub.at.public, "/healthz").await;
                assert!(healthy.contains("200 OK"), "{healthy}");
            }
            false => {
                let told = told(&service, "localhost", hub.at.public).await;
                assert_eq!(told, NAME_UNKNOWN);
            }
        }
    }
}

#[tokio::test]
async fn a_hello_byte_by_byte_is_led_and_an_endless_one_is_not() {
    let service = Service::new();
    let own = free();
    let hub = Hub::with(&clusters(own), &[]);
    let (_agent, private) = agent(&hub, &service, None).await;
    let mut stream = reach(own).await;
    for byte in hello(&service, "x.vault.example.com").await {
        stream.write_all(&[byte]).await.unwrap();
    }
    crate::hub::until("the service hears it", || async {
        (!private.headers.lock().is_empty()).then_some(())
    })
    .await;
    let header = private.headers.lock()[0].clone();
    assert_eq!(header.target.as_deref(), Some("tls"));

    let mut endless = Vec::new();
    for _ in 0..40 {
        endless.extend_from_slice(&[0x16, 3, 1, 4, 0, 1, 0, 0xff, 0xff]);
        endless.resize(endless.len() + 1020, 0);
    }
    for at in [own, hub.at.public] {
        let mut stream = connect(at).await;
        let _ = stream.write_all(&endless).await;
        let mut told = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut told)).await;
        assert!(told.is_empty(), "{told:?}");
    }
}

#[tokio::test]
async fn a_service_that_cannot_be_reached_is_an_alert() {
    let service = Service::new();
    let hub = Hub::with(&clusters(free()), &[]);
    let told = told(&service, "web.example.com", hub.at.public).await;
    assert_eq!(told, [21, 3, 3, 0, 2, 2, 80]);
}

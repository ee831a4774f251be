//! Certificates in a directory, an echo server, deadlines.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{
    ClientAuth, ClientTls, ClientTlsOptions, MinVersion, Roots, ServerTls, ServerTlsOptions,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Nothing in these tests takes longer.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within 20 s"),
    }
}

/// A CA, a server for localhost and a client, as files.
pub struct Pki {
    pub dir: TempDir,
    pub ca: DevCa,
}

impl Pki {
    pub fn new(name: &str) -> Pki {
        let pki = Pki {
            dir: tempfile::tempdir().unwrap(),
            ca: DevCa::new(name).unwrap(),
        };
        pki.ca.write(pki.dir.path()).unwrap();
        pki.write_server();
        let client = pki.ca.client("agent-1").unwrap();
        client.write(pki.dir.path(), "client").unwrap();
        pki
    }

    /// A fresh server certificate in the place of the old one.
    pub fn write_server(&self) {
        let server = self.ca.server(&["localhost", "127.0.0.1"]).unwrap();
        server.write(self.dir.path(), "server").unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn server_options(&self) -> ServerTlsOptions {
        ServerTlsOptions {
            cert: self.path("server.crt"),
            key: self.path("server.key"),
            client_auth: None,
            alpn: Vec::new(),
            min_version: MinVersion::Tls12,
        }
    }

    pub fn mutual_options(&self) -> ServerTlsOptions {
        ServerTlsOptions {
            client_auth: Some(ClientAuth {
                ca: self.path("ca.crt"),
                required: true,
                rsa: false,
            }),
            ..self.server_options()
        }
    }

    pub fn server(&self) -> Arc<ServerTls> {
        Arc::new(ServerTls::load(self.server_options()).unwrap())
    }

    pub fn client_options(&self) -> ClientTlsOptions {
        ClientTlsOptions {
            roots: Roots::File(self.path("ca.crt")),
            ..ClientTlsOptions::default()
        }
    }

    pub fn client(&self) -> Arc<ClientTls> {
        Arc::new(ClientTls::load(self.client_options()).unwrap())
    }
}

pub fn client_of(roots: Roots) -> ClientTls {
    ClientTls::load(ClientTlsOptions {
        roots,
        ..ClientTlsOptions::default()
    })
    .unwrap()
}

/// Sends back whatever comes, until the end.
pub async fn echo(io: impl AsyncRead + AsyncWrite) {
    let (mut read, mut write) = tokio::io::split(io);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

/// An echo server behind TLS.
pub async fn tls_echo(tls: Arc<ServerTls>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                if let Ok(stream) = tls.accept(socket).await {
                    echo(stream).await;
                }
            });
        }
    });
    addr
}

/// One message there and back.
pub async fn round_trip(io: &mut (impl AsyncRead + AsyncWrite + Unpin), text: &[u8]) {
    io.write_all(text).await.unwrap();
    io.flush().await.unwrap();
    let mut back = vec![0; text.len()];
    soon("echo", io.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, text);
}

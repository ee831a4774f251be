//! A relay for one test, and the sides that dial it.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_dataplane::config::RelayConfig;
use culvert_dataplane::relay::{Addresses, Relay};
use culvert_net::introduction::{Credential, IntroduceError, Link, Outer, OuterClient, introduce};
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{ClientTlsOptions, Roots};
use culvert_proto::pair::{ReplyCode, Role};
use culvert_telemetry::lifecycle::Phase;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait for anything that has to happen.
pub const SOON: Duration = Duration::from_secs(20);

pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(SOON, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within 20 s"),
    }
}

pub struct Rig {
    relay: Option<Relay>,
    pub at: Addresses,
    pub client: Arc<OuterClient>,
    _dir: tempfile::TempDir,
}

impl Rig {
    /// TLS that ends with MATCHED.
    pub fn tls(args: &[&str]) -> Rig {
        Rig::outer(Outer::Tls { keep: false }, args)
    }

    pub fn plain(args: &[&str]) -> Rig {
        Rig::outer(Outer::Plain, args)
    }

    pub fn outer(outer: Outer, args: &[&str]) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::new("outer").unwrap();
        let roots = Roots::File(ca.write(dir.path()).unwrap());
        let server = ca.server(&["localhost", "127.0.0.1"]).unwrap();
        let (cert, key) = server.write(dir.path(), "server").unwrap();
        let mut flags = vec!["--addr=127.0.0.1:0".to_owned(), "--threads=2".to_owned()];
        if !args.iter().any(|arg| arg.starts_with("--admin-addr")) {
            flags.push("--admin-addr=127.0.0.1:0".to_owned());
        }
        match outer {
            Outer::Plain => flags.push("--plain".to_owned()),
            Outer::Tls { keep } => flags.extend([
                format!("--tls-cert={}", cert.display()),
                format!("--tls-key={}", key.display()),
                format!("--outer-tls={}", if keep { "keep" } else { "end" }),
            ]),
        }
        flags.extend(args.iter().map(|arg| (*arg).to_owned()));
        let config = RelayConfig::read(flags.into_iter().map(OsString::from), &|_| None).unwrap();
        let relay = Relay::start(config).unwrap();
        let options = ClientTlsOptions {
            roots,
            ..ClientTlsOptions::default()
        };
        Rig {
            at: relay.addresses(),
            relay: Some(relay),
            client: Arc::new(OuterClient::load(outer, options).unwrap()),
            _dir: dir,
        }
    }

    pub fn advance(&self, phase: Phase) {
        self.relay.as_ref().unwrap().shutdown().advance(phase);
    }

    /// Waits for the end of all threads.
    pub async fn ended(&mut self) {
        let relay = self.relay.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || relay.join());
        soon("the relay ends", ended).await.unwrap();
    }

    pub async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.at.public).await.unwrap()
    }

    /// From another address of this host.
    pub async fn dial_from(&self, last: u8) -> TcpStream {
        self.try_dial_from(last).await.unwrap()
    }

    /// As [`Rig::dial_from`], where the relay may reset it before this has seen that it stands.
    pub async fn try_dial_from(&self, last: u8) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
        socket.bind(from)?;
        socket.connect(self.at.public).await
    }

    pub async fn introduce(
        &self,
        stream: TcpStream,
        role: Role,
        credential: &Credential,
    ) -> Result<Link<TcpStream>, IntroduceError> {
        let joined = introduce(stream, &self.client, "localhost", role, credential, || {});
        soon("an introduction", joined).await
    }

    /// A side that is known to wait, and what becomes of it.
    pub async fn waiter(&self, from: u8, role: Role, credential: Credential) -> Waiter {
        let stream = self.dial_from(from).await;
        let (told, waits) = oneshot::channel();
        let client = self.client.clone();
        let task = tokio::spawn(async move {
            let waiting = move || {
                let _ = told.send(());
            };
            introduce(stream, &client, "localhost", role, &credential, waiting).await
        });
        let waits = soon("a first word", waits).await.is_ok();
        Waiter { task, waits }
    }

    pub async fn pair(&self, ca: &PairCa) -> (Link<TcpStream>, Link<TcpStream>) {
        let (bridge, broker) = (ca.credential(Role::Bridge), ca.credential(Role::Broker));
        let (one, other) = (self.dial().await, self.dial().await);
        let (bridge, broker) = tokio::join!(
            self.introduce(one, Role::Bridge, &bridge),
            self.introduce(other, Role::Broker, &broker),
        );
        (bridge.unwrap(), broker.unwrap())
    }

    /// The value of one line of the metrics.
    pub async fn metric(&self, line: &str) -> Option<f64> {
        let text = http(self.at.admin, "GET", "/metrics").await;
        let found = text.lines().find_map(|it| it.strip_prefix(line));
        found.and_then(|value| value.trim().parse().ok())
    }

    pub async fn until(&self, line: &str, wanted: f64) {
        let mut seen = None;
        let reached = tokio::time::timeout(SOON, async {
            while seen != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                seen = self.metric(line).await;
            }
        });
        let is_reached = reached.await.is_ok();
        assert!(is_reached, "{line} is {seen:?}, not {wanted}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.shutdown().advance(Phase::Draining);
            relay.shutdown().advance(Phase::Stopped);
            relay.join();
        }
    }
}

pub struct Waiter {
    pub task: JoinHandle<Result<Link<TcpStream>, IntroduceError>>,
    /// It heard WAIT; else it was joined or refused at once.
    pub waits: bool,
}

impl Waiter {
    pub async fn link(self) -> Link<TcpStream> {
        soon("a match", self.task).await.unwrap().unwrap()
    }

    pub async fn refused(self) -> (ReplyCode, u16) {
        refusal(soon("a refusal", self.task).await.unwrap())
    }
}

pub fn refusal(joined: Result<Link<TcpStream>, IntroduceError>) -> (ReplyCode, u16) {
    match joined.err() {
        Some(IntroduceError::Refused {
            code,
            retry_after_s,
        }) => (code, retry_after_s),
        Some(other) => panic!("{other}"),
        None => panic!("it was joined"),
    }
}

/// One request to an admin listener.
pub async fn http(at: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let asked = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The certificate authority of a pair.
pub struct PairCa {
    pub der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl PairCa {
    pub fn new() -> PairCa {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "pair");
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        PairCa { der, issuer }
    }

    pub fn credential(&self, role: Role) -> Credential {
        self.credential_shown_with(&self.der, role)
    }

    /// With a certificate of this authority beside the CA certificate of any.
    pub fn credential_shown_with(&self, ca: &[u8], role: Role) -> Credential {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![match role {
            Role::Bridge => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Broker => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Credential::certificate(ca, leaf.der(), &key.serialize_der()).unwrap()
    }
}

//! `culvert-agent forward` against a hub that answers as it is told.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use culvert_agent::config::Job;
use culvert_agent::forward;
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{MinVersion, ServerTls, ServerTlsOptions};
use culvert_net::transport::Transport;
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::flow::{broken, ended, expect, reset, whole_conversation};
use crate::hub::job;
use crate::pair::free;
use crate::support::within;

const TOKEN: &str = "cvp_a-token-of-a-person";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: culvert-tcp/1\r\n\r\n";

/// A hub that gives each connection one answer, and keeps the heads it got.
struct Hub {
    listener: TcpListener,
    tls: Option<ServerTls>,
    addr: SocketAddr,
    heads: Mutex<Vec<String>>,
}

impl Hub {
    async fn start(tls: Option<ServerTls>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let heads = Mutex::default();
        Arc::new(Self {
            listener,
            tls,
            addr,
            heads,
        })
    }

    fn url(&self) -> String {
        match self.tls {
            Some(_) => format!("https://localhost:{}", self.addr.port()),
            None => format!("http://{}", self.addr),
        }
    }

    /// Takes a connection, reads its head and answers it with `bytes`.
    async fn answer(&self, bytes: &[u8]) -> Box<dyn Transport> {
        within(async {
            let (tcp, _) = self.listener.accept().await.unwrap();
            let io: Box<dyn Transport> = match &self.tls {
                Some(tls) => Box::new(tls.accept(tcp).await.unwrap()),
                None => Box::new(tcp),
            };
            let mut io = BufReader::new(io);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                io.read_line(&mut head).await.unwrap();
            }
            self.heads.lock().push(head);
            io.write_all(bytes).await.unwrap();
            io.flush().await.unwrap();
            io.into_inner()
        })
        .await
    }
}

struct Forward {
    addr: SocketAddr,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<()>,
}

async fn forward(hub: &str, more: &[&str]) -> Forward {
    let addr = free();
    let listen = addr.to_string();
    let mut args = vec![
        "forward",
        "--hub",
        hub,
        "--token",
        TOKEN,
        "--cluster",
        "prod",
    ];
    args.extend(["--service", "pg", "--listen", &listen]);
    args.extend(more);
    let Ok(Job::Forward(config)) = job(&args, &[]) else {
        panic!("a good configuration is refused");
    };
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    let task = tokio::spawn(async move { forward::run(*config, &told).await.unwrap() });
    Forward {
        addr,
        shutdown,
        task,
    }
}

impl Forward {
    async fn connect(&self) -> TcpStream {
        within(async {
            loop {
                match TcpStream::connect(self.addr).await {
                    Ok(tcp) => return tcp,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                }
            }
        })
        .await
    }
}

fn tls_hub(dir: &std::path::Path) -> ServerTls {
    let ca = DevCa::new("the hub's").unwrap();
    ca.write(dir).unwrap();
    let cert = ca.server(&["localhost"]).unwrap();
    let (cert, key) = cert.write(dir, "hub").unwrap();
    ServerTls::load(ServerTlsOptions {
        cert,
        key,
        client_auth: None,
        alpn: vec![b"http/1.1".to_vec()],
        min_version: MinVersion::Tls12,
    })
    .unwrap()
}

#[tokio::test]
async fn connections_reach_the_service_in_the_clear_and_in_tls() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.crt");
    for tls in [None, Some(tls_hub(dir.path()))] {
        let more: &[&str] = match tls {
            Some(_) => &["--server-ca-cert", ca.to_str().unwrap()],
            None => &["--allow-insecure-server"],
        };
        let hub = Hub::start(tls).await;
        let forward = forward(&hub.url(), more).await;
        for _ in 0..3 {
            let mut local = forward.connect().await;
            local.write_all(b"hello").await.unwrap();
            // The service's first words ride behind the 101.
            let answer = [SWITCHED.as_bytes(), b"banner"].concat();
            let mut far = hub.answer(&answer).await;
            expect(&mut local, b"banner").await;
            expect(&mut far, b"hello").await;
            whole_conversation(local, far).await;
        }
        let head = hub.heads.lock()[0].to_ascii_lowercase();
        assert!(
            head.starts_with("get /forward/prod/pg http/1.1\r\n"),
            "{head}"
        );
        for line in [
            "upgrade: culvert-tcp/1",
            &format!("authorization: bearer {TOKEN}"),
        ] {
            assert!(head.contains(line), "{line} is not in {head}");
        }
    }
}

#[tokio::test]
async fn breaks_pass_both_ways_and_a_stop_lets_connections_finish() {
    let hub = Hub::start(None).await;
    let forward = forward(&hub.url(), &["--allow-insecure-server"]).await;
    let mut local = forward.connect().await;
    let far = hub.answer(SWITCHED.as_bytes()).await;
    let far: Box<dyn std::any::Any> = far;
    reset(*far.downcast().unwrap());
    broken(&mut local).await;
    let local = forward.connect().await;
    let mut far = hub.answer(SWITCHED.as_bytes()).await;
    reset(local);
    broken(&mut far).await;
    let mut local = forward.connect().await;
    let mut far = hub.answer(SWITCHED.as_bytes()).await;
    local.write_all(b"a").await.unwrap();
    expect(&mut far, b"a").await;
    forward.shutdown.advance(Phase::Draining);
    within(async {
        while TcpStream::connect(forward.addr).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    whole_conversation(local, far).await;
    within(forward.task).await.unwrap();
}

#[tokio::test]
async fn each_refusal_resets_the_connection_and_says_what_to_do() {
    let hub = Hub::start(None).await;
    let listen = free().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_culvert-agent"))
        .args(["forward", "--hub", &hub.url(), "--cluster", "prod"])
        .args(["--service", "pg", "--listen", &listen])
        .args(["--allow-insecure-server", "--log-format", "logfmt"])
        .env_clear()
        .env("CULVERT_TOKEN", TOKEN)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = within(out.next_line()).await.unwrap().unwrap();
    let wanted = format!(
        "forwarding {listen} to service pg of cluster prod through {}",
        hub.addr
    );
    assert_eq!(said, wanted);
    for (status, word, words) in [
        ("401 Unauthorized", "unauthenticated", "personal-token mint"),
        (
            "403 Forbidden",
            "target_not_allowed",
            "ask for one that names it",
        ),
        ("404 Not Found", "unknown_cluster", "look at --cluster"),
        (
            "503 Service Unavailable",
            "agent_absent",
            "no agent of the cluster",
        ),
        (
            "504 Gateway Timeout",
            "dial_timeout",
            "did not reach the service",
        ),
        ("200 OK", "", "hub"),
    ] {
        let mut local = TcpStream::connect(&listen).await.unwrap();
        let head =
            format!("HTTP/1.1 {status}\r\nCulvert-Error: {word}\r\nContent-Length: 0\r\n\r\n");
        let _far = hub.answer(head.as_bytes()).await;
        broken(&mut local).await;
        let line = within(async {
            loop {
                let line = log.next_line().await.unwrap().unwrap();
                assert!(!line.contains(TOKEN), "a secret is in the log: {line}");
                if line.contains("connection not forwarded") {
                    return line;
                }
            }
        })
        .await;
        assert!(
            line.contains(words) && line.contains(word),
            "{words}: {line}"
        );
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::TERM).unwrap();
    assert!(within(child.wait()).await.unwrap().success());
}

#[test]
fn what_is_wrong_is_listed_and_nothing_is_opened_to_others_unasked() {
    let refused = |args: &[&str]| {
        let all = [&["forward"], args].concat();
        job(&all, &[]).err().expect("refused").to_string()
    };
    let said = refused(&["--listen", "0.0.0.0:1"]);
    for word in [
        "--server",
        "--token-file",
        "--cluster",
        "--service",
        "other hosts",
    ] {
        assert!(said.contains(word), "{word} is missing: {said}");
    }
    let help = refused(&["--help"]);
    for flag in [
        "--hub",
        "--token-file",
        "--listen-beyond-this-host",
        "--proxy",
    ] {
        assert!(help.contains(flag), "{flag} is not in {help}");
    }
    assert!(!help.contains("--sa-token-path"), "{help}");
    let base = ["--hub", "https://h", "--token", TOKEN, "--cluster", "prod"];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let said = refused(&with(&["--service", "pg=a:1", "--listen", "127.0.0.1:1"]));
    assert!(said.contains("no name of one service"), "{said}");
    let said = refused(&with(&["--service", "pg", "--listen", "15432"]));
    assert!(said.contains("127.0.0.1:15432"), "{said}");
    let open = ["forward"].into_iter().chain(base);
    let open = open.chain([
        "--service",
        "pg",
        "--listen",
        "0.0.0.0:1",
        "--listen-beyond-this-host",
    ]);
    assert!(job(&open.collect::<Vec<_>>(), &[]).is_ok());
}

#[tokio::test]
async fn a_service_that_ends_first_is_an_orderly_end() {
    let hub = Hub::start(None).await;
    let forward = forward(&hub.url(), &["--allow-insecure-server"]).await;
    let mut local = forward.connect().await;
    let mut far = hub.answer(SWITCHED.as_bytes()).await;
    far.write_all(b"bye").await.unwrap();
    far.shutdown().await.unwrap();
    expect(&mut local, b"bye").await;
    ended(&mut local).await;
    local.write_all(b"thanks").await.unwrap();
    local.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(far.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"thanks");
}

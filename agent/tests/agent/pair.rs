//! The roles bridge and broker against each other: real sockets, real TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use culvert_agent::config::Job;
use culvert_agent::pair::{bridge, broker};
use culvert_net::tls::dev::DevCa;
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

use crate::flow::{Service, broken, ended, expect, reset, whole_conversation};
use crate::hub::job;
use crate::support::within;

/// A pair stands again this long after the other side is there again.
pub const BACK_MAX: Duration = Duration::from_secs(5);

/// The certificates of a pair, as files.
pub struct Certs {
    dir: tempfile::TempDir,
}

impl Certs {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::new("the pair's").unwrap();
        ca.write(dir.path()).unwrap();
        let bridge = ca.server(&["bridge"]).unwrap();
        bridge.write(dir.path(), "bridge").unwrap();
        ca.client("broker")
            .unwrap()
            .write(dir.path(), "broker")
            .unwrap();
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn of(&self, role: &str) -> Vec<String> {
        let file = |name: &str| -> String {
            let path: PathBuf = self.path().join(name);
            path.to_str().unwrap().to_owned()
        };
        let (cert, key) = (file(&format!("{role}.crt")), file(&format!("{role}.key")));
        let ca = file("ca.crt");
        ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca]
            .map(str::to_owned)
            .to_vec()
    }
}

/// A role that runs in this process.
pub struct Role {
    pub shutdown: Shutdown,
    pub task: JoinHandle<()>,
}

/// Runs `args`, a role and its flags.
pub fn run(args: &[String]) -> Role {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let job = job(&args, &[]).unwrap_or_else(|why| panic!("{why}"));
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    let task = tokio::spawn(async move {
        match job {
            Job::Bridge(config) => bridge::run(*config, &told).await.unwrap(),
            Job::Broker(config) => broker::run(*config, &told).await.unwrap(),
            _ => panic!("another role"),
        }
    });
    Role { shutdown, task }
}

impl Role {
    /// Ends it, with everything that it carries.
    pub async fn stop(self) {
        self.shutdown.advance(Phase::Stopped);
        within(self.task).await.unwrap();
    }
}

/// A free port of an address that no other test process uses, so that it stays free.
pub fn free() -> SocketAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let own = [127, high | 64, middle, low];
    let probe = std::net::TcpListener::bind((Ipv4Addr::from(own), 0)).unwrap();
    probe.local_addr().unwrap()
}

pub async fn connect(addr: SocketAddr) -> TcpStream {
    within(async {
        loop {
            match TcpStream::connect(addr).await {
                Ok(tcp) => return tcp,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
}

/// How the two are to meet, and how the broker is to use the pair.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub mode: &'static str,
    pub each: bool,
}

const FORMS: [Form; 4] = [
    Form {
        mode: "direct",
        each: false,
    },
    Form {
        mode: "direct",
        each: true,
    },
    Form {
        mode: "reverse",
        each: false,
    },
    Form {
        mode: "reverse",
        each: true,
    },
];

/// Where everything is.
struct Site {
    certs: Certs,
    service: Service,
    /// Where clients connect.
    listen: SocketAddr,
    /// Where the two sides meet.
    meet: SocketAddr,
    form: Form,
}

impl Site {
    async fn new(form: Form) -> Self {
        Self {
            certs: Certs::new(),
            service: Service::start().await,
            listen: free(),
            meet: free(),
            form,
        }
    }

    fn bridge_args(&self) -> Vec<String> {
        let meet = self.meet.to_string();
        let to = self.service.addr.to_string();
        let flag = if self.form.mode == "direct" {
            "--listen-pair"
        } else {
            "--dial"
        };
        let mut args = ["bridge", "--to", &to, "--mode", self.form.mode, flag, &meet]
            .map(str::to_owned)
            .to_vec();
        args.extend(["--health-addr", "127.0.0.1:0"].map(str::to_owned));
        args.extend(self.certs.of("bridge"));
        args
    }

    fn broker_args(&self) -> Vec<String> {
        let (meet, listen) = (self.meet.to_string(), self.listen.to_string());
        let flag = if self.form.mode == "direct" {
            "--dial"
        } else {
            "--listen-pair"
        };
        let mut args = [
            "broker",
            "--listen",
            &listen,
            "--mode",
            self.form.mode,
            flag,
            &meet,
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(["--health-addr", "127.0.0.1:0"].map(str::to_owned));
        args.extend(self.certs.of("broker"));
        if self.form.each {
            args.push("--flow-per-pair".to_owned());
        }
        args
    }

    async fn flow(&self) -> (TcpStream, TcpStream) {
        let client = connect(self.listen).await;
        (client, self.service.accept().await)
    }
}

#[tokio::test]
async fn many_connections_run_at_once_in_every_mode() {
    for form in FORMS {
        let site = Site::new(form).await;
        let (bridge, broker) = (run(&site.bridge_args()), run(&site.broker_args()));
        let mut talks = Vec::new();
        for _ in 0..8 {
            let (client, service) = site.flow().await;
            talks.push(tokio::spawn(whole_conversation(client, service)));
        }
        for talk in talks {
            within(talk)
                .await
                .unwrap_or_else(|why| panic!("{form:?}: {why}"));
        }
        broker.stop().await;
        bridge.stop().await;
    }
}

#[tokio::test]
async fn a_service_may_speak_first_and_either_end_may_finish_first() {
    for form in FORMS {
        let site = Site::new(form).await;
        let _roles = (run(&site.bridge_args()), run(&site.broker_args()));
        let (mut client, mut service) = site.flow().await;
        service.write_all(b"banner").await.unwrap();
        expect(&mut client, b"banner").await;
        service.shutdown().await.unwrap();
        ended(&mut client).await;
        client.write_all(b"thanks").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        within(service.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"thanks", "{form:?}");
    }
}

#[tokio::test]
async fn a_break_at_one_end_is_a_reset_at_the_other() {
    for form in FORMS {
        let site = Site::new(form).await;
        let _roles = (run(&site.bridge_args()), run(&site.broker_args()));
        let (client, mut service) = site.flow().await;
        service.write_all(b"half an ans").await.unwrap();
        reset(client);
        broken(&mut service).await;
        let (mut client, service) = site.flow().await;
        client.write_all(b"question").await.unwrap();
        reset(service);
        broken(&mut client).await;
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_a_reset_for_the_client() {
    for form in FORMS {
        let mut site = Site::new(form).await;
        site.service.addr = free();
        let _roles = (run(&site.bridge_args()), run(&site.broker_args()));
        let mut client = connect(site.listen).await;
        broken(&mut client).await;
    }
}

/// A role as a process of its own.
pub struct Process {
    pub child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Process {
    pub fn start(args: &[String]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_culvert-agent"))
            .args(args)
            .args(["--log-format", "logfmt", "--threads", "1"])
            .env_clear()
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Kills it and waits until nobody listens where it did.
    pub async fn kill(mut self) {
        within(self.child.kill()).await.unwrap();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub async fn line_with(&mut self, word: &str) -> String {
        within(async {
            loop {
                let line = self.lines.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("it ended without {word:?}"));
                if line.contains(word) {
                    return line;
                }
            }
        })
        .await
    }
}

#[tokio::test]
async fn a_killed_bridge_resets_its_connections_and_a_new_one_is_found() {
    for form in FORMS {
        let site = Site::new(form).await;
        let broker = run(&site.broker_args());
        let mut bridge = Process::start(&site.bridge_args());
        let (mut client, mut service) = site.flow().await;
        client.write_all(b"question").await.unwrap();
        expect(&mut service, b"question").await;
        within(bridge.child.kill()).await.unwrap();
        broken(&mut client).await;
        broken(&mut service).await;
        let began = Instant::now();
        let _bridge = run(&site.bridge_args());
        let (mut client, mut service) = site.flow().await;
        client.write_all(b"again").await.unwrap();
        expect(&mut service, b"again").await;
        assert!(
            began.elapsed() < BACK_MAX,
            "{form:?}: {:?}",
            began.elapsed()
        );
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_killed_broker_resets_its_connections() {
    for form in FORMS {
        let site = Site::new(form).await;
        let _bridge = run(&site.bridge_args());
        let mut broker = Process::start(&site.broker_args());
        let (mut client, mut service) = site.flow().await;
        client.write_all(b"question").await.unwrap();
        expect(&mut service, b"question").await;
        within(broker.child.kill()).await.unwrap();
        broken(&mut client).await;
        broken(&mut service).await;
    }
}

#[tokio::test]
async fn a_stop_lets_connections_finish_and_takes_no_more() {
    for form in FORMS {
        let site = Site::new(form).await;
        let (bridge, broker) = (run(&site.bridge_args()), run(&site.broker_args()));
        let (client, service) = site.flow().await;
        broker.shutdown.advance(Phase::Draining);
        within(async {
            while TcpStream::connect(site.listen).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        bridge.shutdown.advance(Phase::Draining);
        whole_conversation(client, service).await;
        within(broker.task).await.unwrap();
        within(bridge.task).await.unwrap();
    }
}

#[tokio::test]
async fn a_broker_that_stops_says_goodbye() {
    let site = Site::new(FORMS[0]).await;
    let mut bridge = Process::start(&site.bridge_args());
    let broker = run(&site.broker_args());
    let (client, service) = site.flow().await;
    whole_conversation(client, service).await;
    broker.shutdown.advance(Phase::Draining);
    within(broker.task).await.unwrap();
    let line = bridge.line_with("the pair ended").await;
    assert!(line.contains("code=draining"), "{line}");
}

#[tokio::test]
async fn sides_of_different_pairs_do_not_meet_and_say_why() {
    for form in FORMS {
        let mut site = Site::new(form).await;
        let mut bridge = Process::start(&site.bridge_args());
        let _ours = std::mem::replace(&mut site.certs, Certs::new());
        let mut broker = Process::start(&site.broker_args());
        let mut client = connect(site.listen).await;
        let line = broker.line_with("is not signed by this pair's CA").await;
        assert!(line.contains("certificates of one CA"), "{line}");
        if form.mode == "reverse" {
            // Who dialled a broker knows that it is one.
            let line = bridge.line_with("a broker was not let in").await;
            assert!(line.contains("refused our certificate"), "{line}");
        }
        if form.each {
            // On a pair that others made it would wait for the next.
            broken(&mut client).await;
        }
    }
}

#[tokio::test]
async fn a_swapped_certificate_is_refused_by_the_bridge_and_the_broker_hears_it() {
    let site = Site::new(FORMS[0]).await;
    let ca = DevCa::new("the pair's").unwrap();
    ca.write(site.certs.path()).unwrap();
    let cert = ca.server(&["bridge"]).unwrap();
    cert.write(site.certs.path(), "bridge").unwrap();
    // A broker that shows a bridge's certificate.
    cert.write(site.certs.path(), "broker").unwrap();
    let _bridge = run(&site.bridge_args());
    let mut broker = Process::start(&site.broker_args());
    let line = broker.line_with("did not take the pair").await;
    assert!(line.contains("each for its own role"), "{line}");
}

async fn probe(addr: &str, path: &str) -> String {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(tcp.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn probes_say_whether_a_pair_stands() {
    let site = Site::new(FORMS[2]).await;
    let (at_bridge, at_broker) = (free().to_string(), free().to_string());
    let with = |mut args: Vec<String>, addr: &str| {
        let place = args.iter().position(|arg| arg == "127.0.0.1:0").unwrap();
        args[place] = addr.to_owned();
        args
    };
    let broker = run(&with(site.broker_args(), &at_broker));
    connect(at_broker.parse().unwrap()).await;
    assert!(probe(&at_broker, "/readyz").await.contains(" 503 "));
    let bridge = run(&with(site.bridge_args(), &at_bridge));
    connect(at_bridge.parse().unwrap()).await;
    for addr in [&at_bridge, &at_broker] {
        within(async {
            while !probe(addr, "/readyz").await.contains(" 200 ") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let text = probe(addr, "/metrics").await;
        assert!(text.contains("culvert_pairs{form=\"mux\"} 1"), "{text}");
        assert!(probe(addr, "/healthz").await.contains(" 200 "));
    }
    bridge.stop().await;
    within(async {
        // A pair that is left by either end stands no more.
        while !probe(&at_broker, "/readyz").await.contains(" 503 ") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    broker.stop().await;
}

#[test]
fn everything_that_is_wrong_is_listed_at_once() {
    let refused = |args: &[&str]| job(args, &[]).err().expect("refused").to_string();
    let said = refused(&["bridge", "--mode", "sideways"]);
    for word in ["--to", "--relay", "sideways", "--tls-cert"] {
        assert!(said.contains(word), "{word} is missing: {said}");
    }
    let said = refused(&["bridge", "--to", "a:1", "--mode", "direct", "--dial", "b:2"]);
    for word in ["--dial", "means nothing in mode direct", "no --listen-pair"] {
        assert!(said.contains(word), "{word} is missing: {said}");
    }
    let said = refused(&[
        "broker",
        "--listen",
        "0.0.0.0:8199",
        "--relay",
        "relay",
        "--relay-pin",
        "x",
        "--info-hash",
        "12",
        "--outer-tls",
        "maybe",
    ]);
    for word in [
        "other hosts",
        "--relay-pin",
        "64 hex",
        "neither end nor keep",
    ] {
        assert!(said.contains(word), "{word} is missing: {said}");
    }
    let said = refused(&["broker", "--relay", "relay", "--tls-cert", "nowhere.crt"]);
    assert!(said.contains("go together"), "{said}");
    let said = refused(&["--log-level", "debug", "broker"]);
    assert!(said.contains("write the verb first"), "{said}");
    let help = refused(&["bridge", "--help"]);
    for flag in [
        "--vault-addr",
        "--beacon-address",
        "--beacon-info-hash",
        "--store",
    ] {
        assert!(help.contains(flag), "{flag} is not in {help}");
    }
}

#[test]
fn names_of_the_source_mean_the_same() {
    let certs = Certs::new();
    let mut args = [
        "bridge",
        "--vault-addr",
        "https://127.0.0.1:8200",
        "--beacon-address",
        "relay-1.example.com,relay-2.example.com:8443",
        "--mode",
        "beacon",
    ]
    .map(str::to_owned)
    .to_vec();
    args.extend(certs.of("bridge"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let Ok(Job::Bridge(config)) = job(&args, &[]) else {
        panic!("refused: {}", job(&args, &[]).err().unwrap());
    };
    assert_eq!(config.to.address(), "127.0.0.1:8200");
    let culvert_agent::config::Way::Relay { relays, .. } = &config.pair.way else {
        panic!("another mode");
    };
    let relays: Vec<String> = relays.iter().map(|relay| relay.address()).collect();
    assert_eq!(
        relays,
        ["relay-1.example.com:443", "relay-2.example.com:8443"]
    );
    // Another CA than the one that is expected.
    let zeros = "0".repeat(64);
    let args = [&args[..], &["--beacon-info-hash", &zeros]].concat();
    let said = job(&args, &[]).err().expect("refused").to_string();
    assert!(said.contains("--info-hash"), "{said}");
}

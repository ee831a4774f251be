//! The program itself: a pair through its binary, from its first line to its end by signal.
//!
//! `CULVERT_RELAY_BIN` names another build of it: `cargo xtask test` gives the one that is nothing but a relay.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use culvert_net::introduction::{Credential, Link, Outer, OuterClient, introduce};
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{ClientTlsOptions, Roots};
use culvert_proto::pair::Role;
use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{PairCa, http, soon};

struct Program {
    child: Child,
    public: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(args: &[String]) -> Program {
        let ours = env!("CARGO_BIN_EXE_culvert-dataplane").into();
        let binary = std::env::var_os("CULVERT_RELAY_BIN").unwrap_or(ours);
        let mut child = Command::new(binary)
            .args(["relay", "--addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0"])
            .args(["--log-format=logfmt", "--threads=1"])
            .args(args)
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.find_map(|line| line.ok().filter(|line| line.contains("relay starts")));
        let first = first.expect("it says where it listens");
        let at = |name: &str| {
            let (_, value) = first.split_once(&format!("{name}=")).unwrap();
            value.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (public, admin) = (at("public"), at("admin"));
        // What it says later has to go somewhere.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Program {
            child,
            public,
            admin,
        }
    }

    async fn join(
        &self,
        client: &Arc<OuterClient>,
        role: Role,
        credential: &Credential,
    ) -> TcpStream {
        let tcp = tokio::net::TcpStream::connect(self.public).await.unwrap();
        let joined = introduce(tcp, client, "localhost", role, credential, || {}).await;
        let Link::Plain(tcp) = joined.unwrap() else {
            panic!("the outer TLS is left");
        };
        let tcp = tcp.into_std().unwrap();
        tcp.set_nonblocking(false).unwrap();
        tcp
    }
}

#[tokio::test]
async fn a_pair_meets_through_the_program_and_a_signal_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DevCa::new("outer").unwrap();
    let server = ca.server(&["localhost"]).unwrap();
    let (cert, key) = server.write(dir.path(), "server").unwrap();
    let options = ClientTlsOptions {
        roots: Roots::File(ca.write(dir.path()).unwrap()),
        ..ClientTlsOptions::default()
    };
    let client = Arc::new(OuterClient::load(Outer::Tls { keep: false }, options).unwrap());
    let mut program = Program::start(&[
        format!("--tls-cert={}", cert.display()),
        format!("--tls-key={}", key.display()),
    ]);
    let pair = PairCa::new();
    let (bridge, broker) = (pair.credential(Role::Bridge), pair.credential(Role::Broker));
    let met = async {
        tokio::join!(
            program.join(&client, Role::Bridge, &bridge),
            program.join(&client, Role::Broker, &broker)
        )
    };
    let (mut bridge, mut broker) = soon("a pair", met).await;
    // More than sockets hold, so that the engine turns.
    let sent: Vec<u8> = (0..8 << 20).map(|at: u32| (at / 7) as u8).collect();
    let all = sent.clone();
    let talk = tokio::task::spawn_blocking(move || {
        let writer = std::thread::spawn(move || {
            broker.write_all(&all).unwrap();
            broker.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            broker.read_to_string(&mut answer).unwrap();
            answer
        });
        let mut got = Vec::new();
        bridge.read_to_end(&mut got).unwrap();
        bridge.write_all(b"all of it").unwrap();
        drop(bridge);
        (got, writer.join().unwrap())
    });
    let (got, answer) = soon("bytes both ways", talk).await.unwrap();
    assert!(got == sent && answer == "all of it");
    let told = soon("metrics", http(program.admin, "GET", "/metrics")).await;
    assert!(told.contains("culvert_pair_matches_total 1"), "{told}");
    let pid = Pid::from_raw(program.child.id() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || program.child.wait());
    assert!(soon("its end", ended).await.unwrap().unwrap().success());
}

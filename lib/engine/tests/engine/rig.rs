//! Pairs of real sockets through a real engine.

use std::net::{TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use culvert_engine::{Engine, IoEngine, Join, Joined, Limits, Settings, Share, probe};
use tokio::net::TcpStream;

/// Longest wait for anything that has to happen.
pub const SOON: Duration = Duration::from_secs(20);

pub fn settings(engine: IoEngine) -> Settings {
    Settings {
        threads: 2,
        backend: probe(engine).unwrap(),
        pairs_max: 10_000,
        cluster_pairs_max: 5_000,
        share: Share {
            pipes_max: 32,
            rest_bytes_max: 4 << 20,
            spins: false,
            limits: Limits {
                idle_max_ms: 0,
                half_closed_max_ms: 3_600_000,
                stalled_max_ms: 3_600_000,
                starved_max_ms: 10_000,
            },
        },
    }
}

/// An engine on epoll, and one on io_uring where the kernel allows it.
pub fn engines() -> Vec<(&'static str, Settings)> {
    let mut engines = vec![("epoll", settings(IoEngine::Epoll))];
    let auto = settings(IoEngine::Auto);
    if auto.backend.uring {
        engines.push(("io_uring", auto));
    }
    engines
}

/// Makes connections to itself.
pub struct Rig {
    listener: StdListener,
    pub engine: Arc<Engine>,
}

/// The outer ends of a pair.
pub struct Ends {
    pub client: TcpStream,
    pub service: TcpStream,
    pub joined: Joined,
}

impl Rig {
    pub fn new(settings: &Settings) -> Rig {
        Rig {
            listener: StdListener::bind("127.0.0.1:0").unwrap(),
            engine: Arc::new(Engine::start(settings).unwrap()),
        }
    }

    /// Pairs, pipes in use and bytes read but not sent, over all threads.
    pub fn held(&self) -> (usize, usize, usize) {
        let mut held = (0, 0, 0);
        for gauges in self.engine.gauges() {
            held.0 += gauges.pairs.load(Relaxed);
            held.1 += gauges.pipes.load(Relaxed);
            held.2 += gauges.rest_bytes.load(Relaxed);
        }
        held
    }

    /// Bytes delivered so far, and those of them spliced, over all threads.
    pub fn moved(&self) -> (u64, u64) {
        let counts = self.engine.gauges().map(|gauges| {
            let spliced = gauges.spliced_bytes.load(Relaxed);
            (gauges.bytes.load(Relaxed), spliced)
        });
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Both ends of one connection: ours, and the engine's.
    pub fn connection(&self) -> (TcpStream, OwnedFd) {
        let far = StdStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (near, _) = self.listener.accept().unwrap();
        for socket in [&far, &near] {
            socket.set_nodelay(true).unwrap();
        }
        far.set_nonblocking(true).unwrap();
        (TcpStream::from_std(far).unwrap(), near.into())
    }

    pub fn join(&self, cluster: u32) -> Ends {
        self.join_with(cluster, Vec::new(), Vec::new())
    }

    /// A pair whose engine side buffers no more than `bytes` and what it reads
    /// at once.
    pub fn join_narrow(&self, cluster: u32, bytes: usize) -> Ends {
        let [client, service] = [(); 2].map(|()| {
            let (far, near) = self.connection();
            let narrow = socket2::SockRef::from(&near);
            narrow.set_send_buffer_size(bytes).unwrap();
            narrow.set_recv_buffer_size(2 * bytes).unwrap();
            (far, near)
        });
        self.join_ends(cluster, client, service, [Vec::new(), Vec::new()])
    }

    pub fn join_with(&self, cluster: u32, from_client: Vec<u8>, from_service: Vec<u8>) -> Ends {
        let early = [from_client, from_service];
        self.join_ends(cluster, self.connection(), self.connection(), early)
    }

    fn join_ends(
        &self,
        cluster: u32,
        (client, client_near): (TcpStream, OwnedFd),
        (service, service_near): (TcpStream, OwnedFd),
        [from_client, from_service]: [Vec<u8>; 2],
    ) -> Ends {
        let joined = self.engine.join(Join {
            client: client_near,
            service: service_near,
            from_client,
            from_service,
            cluster,
        });
        let Ok(joined) = joined else {
            panic!("refused")
        };
        Ends {
            client,
            service,
            joined,
        }
    }
}

pub async fn soon<F: Future>(what: impl std::fmt::Display, future: F) -> F::Output {
    match tokio::time::timeout(SOON, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {SOON:?}"),
    }
}

/// The byte at a place of a stream.
pub fn pattern(stream: u64, at: u64) -> u8 {
    let mixed = (at ^ stream << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// The same seed, the same plan.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end.max(1)
    }
}

/// Runs a test of this file in a process of its own, which is told `role`, and
/// gives what it printed.
pub fn in_a_child(test: &str, role: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let mut child = std::process::Command::new(program);
    child.args(["--exact", test, "--ignored", "--nocapture"]);
    let done = child.env(ROLE, role).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&done.stdout), said(&done.stderr));
    assert!(done.status.success(), "{test} as {role}: {out}{err}");
    assert!(out.contains("1 passed"), "{test} did not run: {out}");
    println!("{out}");
    out
}

/// What [`in_a_child`] was told.
pub fn role() -> String {
    std::env::var(ROLE).unwrap()
}

const ROLE: &str = "CULVERT_ENGINE_ROLE";

/// Whether this is root; where everything is required, nobody else will do.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root");
        let required = std::env::var_os("CULVERT_REQUIRE").is_some_and(|value| value == "all");
        assert!(!required, "{test} must run here");
    }
    root
}

/// This thread, and those that it starts from now on, are nobody's.
pub fn become_nobody() {
    use rustix::process::{Gid, Uid};
    let (user, group) = (Uid::from_raw(65_534), Gid::from_raw(65_534));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(group, group, group).unwrap();
    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
}

/// As many descriptors as this process may have.
pub fn lift_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Descriptors of this process that are no pipe: an engine keeps a few pipes.
pub fn descriptors_but_pipes() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let is_pipe = |entry: &std::io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(entry.as_ref().unwrap().path());
        target.is_ok_and(|target| target.to_string_lossy().starts_with("pipe:"))
    };
    all.filter(|entry| !is_pipe(entry)).count()
}

/// Descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

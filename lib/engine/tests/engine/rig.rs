//! Pairs of real sockets through a real engine.

use std::net::{TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
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

    pub fn join_with(&self, cluster: u32, from_client: Vec<u8>, from_service: Vec<u8>) -> Ends {
        let (client, client_near) = self.connection();
        let (service, service_near) = self.connection();
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

/// Descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

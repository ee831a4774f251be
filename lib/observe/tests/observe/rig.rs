//! Processes of their own, what they may, and relays to look at.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use culvert_observe::{ClusterIndex, ConnId, Leg, Observer, Offsets, Role, Settings, Slot, Tag};
use rustix::pipe::SpliceFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use socket2::{Domain, Protocol, Socket, Type};

/// What the data plane is granted.
pub const GRANTED: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN);
/// The same with what trace programs need.
pub const GRANTED_TRACE: CapabilitySet = GRANTED.union(CapabilitySet::PERFMON);

const ROLE: &str = "CULVERT_OBSERVE_ROLE";
const PARENT: &str = "CULVERT_OBSERVE_PARENT";

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

/// Major and minor version of the running kernel.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut parts = release.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap(), parts.next().unwrap())
}

/// Whether every bpf(2) may want its capability, so that it stays (before 5.19).
pub fn keeps_bpf() -> bool {
    kernel() < (5, 19)
}

/// Whether maps count as memory of their cgroup, and trace programs may look at sockets (from 5.11).
pub fn has_traces_and_accounts() -> bool {
    kernel() >= (5, 11)
}

/// Programs with those for traces, where there are any.
pub fn programs_max() -> usize {
    if has_traces_and_accounts() { 5 } else { 3 }
}

/// The ignored test `test`, told `role`, in a process of its own.
pub fn child(test: &str, role: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    // With one thread for all tests, the harness runs a test on the main thread.
    child.args([
        "--exact",
        test,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    child
        .env(ROLE, role)
        .env(PARENT, std::process::id().to_string());
    child
}

/// Runs [`child`] to its end and gives what it printed.
pub fn in_a_child(test: &str, role: &str) -> String {
    passed(test, role, child(test, role))
}

/// Runs a command that is such a child.
pub fn passed(test: &str, role: &str, mut child: Command) -> String {
    let done = child.output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&done.stdout), said(&done.stderr));
    assert!(done.status.success(), "{test} as {role}: {out}{err}");
    assert!(out.contains("1 passed"), "{test} did not run: {out}");
    println!("{out}");
    out
}

/// What [`child`] was told.
pub fn role() -> String {
    std::env::var(ROLE).unwrap()
}

/// The process that called [`child`].
pub fn parent() -> u32 {
    std::env::var(PARENT).unwrap().parse().unwrap()
}

/// Runs `what` on the only thread of a process: capabilities and namespaces are a thread's own, and
/// the harness has another one.
pub fn alone(what: impl FnOnce()) {
    // SAFETY: the harness's other thread waits for this test and holds no lock meanwhile.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        // SAFETY: ends this process; what the harness began is its parent's to end.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let child = rustix::process::Pid::from_raw(child).unwrap();
    let status = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
    let (_, status) = status.unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0), "as printed above");
}

/// Leaves this thread no capability but these: what a pod or a unit is granted.
pub fn limit(granted: CapabilitySet) {
    let sets = CapabilitySets {
        effective: granted,
        permitted: granted,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).unwrap();
}

/// An observer with what the data plane is granted, and small maps.
pub fn observer() -> Observer {
    limit(GRANTED);
    started(&small())
}

/// Settings with small maps.
pub fn small() -> Settings {
    Settings {
        clusters_max: 16,
        pairs_max: 1_024,
        ..Settings::default()
    }
}

/// Starts; what comes is printed.
pub fn started(settings: &Settings) -> Observer {
    let observer = culvert_observe::start(settings).unwrap();
    println!("{}", observer.report());
    observer
}

/// Waits until `what` is there.
pub fn until<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = what() {
            return seen;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "it never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How a relay moves bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    Copy,
    Splice,
}

/// Four sockets in a row: client, the relay's two, service.
pub struct Row {
    pub datapath: Datapath,
    pub client: TcpStream,
    pub near: TcpStream,
    pub far: TcpStream,
    pub service: TcpStream,
}

/// Makes rows through two listeners of its own.
pub struct Rows {
    observer: Observer,
    entry: TcpListener,
    service: TcpListener,
    sequence: u64,
}

/// A tag of `cluster` for one end of relay number `sequence`.
pub fn tag(sequence: u64, cluster: ClusterIndex, role: Role) -> Tag {
    Tag {
        conn: ConnId::of_sequence(sequence),
        cluster,
        leg: match role {
            Role::Client => Leg::Client,
            Role::Service => Leg::Upstream,
        },
        role,
        flags: 0,
    }
}

impl Rows {
    /// Whose listener is marked before it listens.
    pub fn new(observer: &Observer, host: std::net::IpAddr) -> Self {
        let address = SocketAddr::new(host, 0);
        let socket = tcp(address);
        socket.bind(&address.into()).unwrap();
        observer.listener(socket.as_fd(), Leg::Client);
        socket.listen(1_024).unwrap();
        Self {
            observer: observer.clone(),
            entry: socket.into(),
            service: TcpListener::bind(address).unwrap(),
            sequence: 0,
        }
    }

    /// On the IPv4 loopback.
    pub fn v4(observer: &Observer) -> Self {
        Self::new(observer, Ipv4Addr::LOCALHOST.into())
    }

    /// A row whose sockets are tagged and not joined yet.
    pub fn row(&mut self, cluster: ClusterIndex) -> Row {
        self.sequence += 1;
        let client = TcpStream::connect(self.entry.local_addr().unwrap()).unwrap();
        let (near, _) = self.entry.accept().unwrap();
        let near_tag = tag(self.sequence, cluster, Role::Client);
        self.observer.tag(near.as_fd(), near_tag);
        let address = self.service.local_addr().unwrap();
        let socket = tcp(address);
        let far_tag = tag(self.sequence, cluster, Role::Service);
        self.observer.tag(socket.as_fd(), far_tag);
        socket.connect(&address.into()).unwrap();
        let far: TcpStream = OwnedFd::from(socket).into();
        let (service, _) = self.service.accept().unwrap();
        for stream in [&client, &near, &far, &service] {
            stream.set_nodelay(true).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
        }
        Row {
            datapath: Datapath::Copy,
            client,
            near,
            far,
            service,
        }
    }

    /// Joins the relay's two sockets of the row that was made last.
    pub fn join(&self, row: &Row, cluster: ClusterIndex, offsets: [Offsets; 2]) -> Option<Slot> {
        let sockets = [row.near.as_fd(), row.far.as_fd()];
        let roles = [Role::Client, Role::Service];
        let tags = roles.map(|role| tag(self.sequence, cluster, role));
        self.observer.join(sockets, tags, offsets)
    }
}

fn tcp(address: SocketAddr) -> Socket {
    Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .unwrap()
}

/// How long bytes were inside a relay: longer than between its read and its write, shorter than
/// from the sender's write to the relay's.
#[derive(Clone, Copy, Default)]
pub struct Inside {
    pub at_least: Duration,
    pub at_most: Duration,
}

/// Sends `bytes` from one end, holds them in the relay for `delay`, and receives them at the other.
pub fn pass(
    from: &mut TcpStream,
    relay: [&mut TcpStream; 2],
    to: &mut TcpStream,
    (bytes, datapath): (&[u8], Datapath),
    delay: Duration,
) -> Inside {
    if datapath == Datapath::Splice {
        from.write_all(bytes).unwrap();
        splice(relay, bytes.len());
        let mut received = vec![0; bytes.len()];
        to.read_exact(&mut received).unwrap();
        assert_eq!(received, bytes, "changed on its way");
        return Inside::default();
    }
    let ([side_in, side_out], mut held) = (relay, vec![0; bytes.len()]);
    let sent = Instant::now();
    from.write_all(bytes).unwrap();
    side_in.read_exact(&mut held).unwrap();
    let read = Instant::now();
    if !delay.is_zero() {
        std::thread::sleep(delay);
    }
    let at_least = read.elapsed();
    side_out.write_all(&held).unwrap();
    let at_most = sent.elapsed();
    to.read_exact(&mut held).unwrap();
    assert_eq!(held, bytes, "changed on its way");
    Inside { at_least, at_most }
}

/// Moves `count` bytes through a pipe, as the engine does.
fn splice([side_in, side_out]: [&mut TcpStream; 2], count: usize) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut left = count;
    while left > 0 {
        let flags = SpliceFlags::MOVE;
        let taken = rustix::pipe::splice(&*side_in, None, &write, None, left, flags).unwrap();
        assert!(taken > 0, "{left} bytes are missing");
        let mut held = taken;
        while held > 0 {
            held -= rustix::pipe::splice(&read, None, &*side_out, None, held, flags).unwrap();
        }
        left -= taken;
    }
}

impl Row {
    /// [`pass`] towards the service.
    pub fn pass_to_service(&mut self, bytes: &[u8], delay: Duration) -> Inside {
        let relay = [&mut self.near, &mut self.far];
        pass(
            &mut self.client,
            relay,
            &mut self.service,
            (bytes, self.datapath),
            delay,
        )
    }

    /// [`pass`] towards the client.
    pub fn pass_to_client(&mut self, bytes: &[u8], delay: Duration) -> Inside {
        let relay = [&mut self.far, &mut self.near];
        pass(
            &mut self.service,
            relay,
            &mut self.client,
            (bytes, self.datapath),
            delay,
        )
    }
}

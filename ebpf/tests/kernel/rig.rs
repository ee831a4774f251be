//! A place of its own for a test: cgroup, network, capabilities; and the programs in it.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, RingBuf, SkStorage};
use aya::programs::links::CgroupAttachMode;
use aya::programs::{
    CgroupSkb, CgroupSkbAttachType, ProgramInfo, SchedClassifier, SockOps, TcAttachType,
};
use aya::{Ebpf, EbpfLoader};
use culvert_abi::{Close, Cnt, Ident, Leg, NO_SLOT, Own, Pair, Role, Stat, bucket, keys, maps};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

/// The committed object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../prebuilt/culvert.bpf.o");

/// Programs for the tests alone.
pub static TESTPROGS: &[u8] = aya::include_bytes_aligned!("../../prebuilt/testprogs.bpf.o");

/// How long anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of the ring here: a page, the least that there is.
pub const RING_BYTES: u32 = 4_096;

/// The cluster that the tests tag with.
pub const CLUSTER: u16 = 5;

/// Runs a test in a place of its own, on a thread that may lose its capabilities; the place is
/// taken away by one that has them.
pub fn alone(test: &str, body: impl FnOnce(&Place) + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        let required = std::env::var_os("CULVERT_REQUIRE").is_some_and(|value| value == "all");
        assert!(!required, "{test} must run here");
        return;
    }
    // Before 5.11 maps count against it.
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let _ = setrlimit(Resource::Memlock, unlimited);
    let place = Place::new();
    let ended = std::thread::scope(|scope| {
        let inside = || {
            // SAFETY: only this thread changes its network, before it opens a socket.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            body(&place);
        };
        scope.spawn(inside).join()
    });
    drop(place);
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// Waits for a condition.
pub fn until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A command that must succeed.
pub fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {said}");
}

/// A cgroup that nobody else uses; this process moves in until it is dropped.
pub struct Place {
    cgroup: PathBuf,
    home: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let home = own_cgroup();
        let cgroup = home.join(format!("culvert-test-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        enter(&cgroup);
        Self {
            cgroup,
            home,
            _alone: alone,
        }
    }

    /// The cgroup's directory.
    pub fn open(&self) -> fs::File {
        fs::File::open(&self.cgroup).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        enter(&self.home);
        // A thread that has ended may be in it for a moment.
        until("the cgroup to be empty", || {
            fs::remove_dir(&self.cgroup).ok()
        });
    }
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

/// This process's cgroup, wherever version 2 is mounted.
fn own_cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let is_v2 = kind.starts_with("cgroup2 ");
        is_v2.then(|| PathBuf::from(place.split(' ').nth(4).unwrap()))
    });
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap();
    mount.expect("cgroup version 2 is mounted").join(own)
}

const TWO: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN);

/// What production has: two capabilities, and no way to more.
pub fn reduce_capabilities() {
    reduce_to(TWO);
}

/// Leaves this thread, and those that it starts, these capabilities.
pub fn reduce_to(set: CapabilitySet) {
    for capability in CapabilitySet::all().difference(set).iter() {
        // A kernel may know fewer of them.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    rustix::thread::clear_ambient_capability_set().unwrap();
    let sets = CapabilitySets {
        effective: set,
        permitted: set,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).unwrap();
    rustix::thread::set_no_new_privs(true).unwrap();
}

/// How much of the observer runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    SockOps,
    Skb,
}

/// The linked programs and their maps.
pub struct Observer {
    pub bpf: Ebpf,
    ident: SkStorage<MapData, [u8; Ident::BYTES]>,
    stat: SkStorage<MapData, [u8; Stat::BYTES]>,
    pair: Array<MapData, [u8; Pair::BYTES]>,
    pres: Array<MapData, u64>,
    hist: Array<MapData, u64>,
    cnt: Array<MapData, [u8; Cnt::BYTES]>,
    own: Array<MapData, u64>,
    ring: RingBuf<MapData>,
    closes: Vec<Close>,
}

impl Observer {
    /// Loads and links with two capabilities; the thread keeps no other.
    pub fn start(place: &Place, tier: Tier) -> Self {
        reduce_capabilities();
        Self::link(place, tier, load())
    }

    /// The same, after something was loaded with a third one.
    pub fn start_tracing(place: &Place, prepare: impl FnOnce(&mut Ebpf)) -> Self {
        reduce_to(TWO | CapabilitySet::PERFMON);
        let mut bpf = load();
        prepare(&mut bpf);
        reduce_capabilities();
        Self::link(place, Tier::Skb, bpf)
    }

    fn link(place: &Place, tier: Tier, mut bpf: Ebpf) -> Self {
        let cgroup = place.open();
        let program: &mut SockOps = bpf.program_mut(maps::SOCK_OPS).unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach(&cgroup, CgroupAttachMode::Single).unwrap();
        let sides = [
            (maps::INGRESS, CgroupSkbAttachType::Ingress),
            (maps::EGRESS, CgroupSkbAttachType::Egress),
        ];
        for (name, side) in sides.into_iter().filter(|_| tier == Tier::Skb) {
            let program: &mut CgroupSkb = bpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
            program
                .attach(&cgroup, side, CgroupAttachMode::Single)
                .unwrap();
        }
        let mut take = |name: &str| bpf.take_map(name).unwrap();
        Self {
            ident: take(maps::IDENT).try_into().unwrap(),
            stat: take(maps::STAT).try_into().unwrap(),
            pair: take(maps::PAIR).try_into().unwrap(),
            pres: take(maps::PRES).try_into().unwrap(),
            hist: take(maps::HIST).try_into().unwrap(),
            cnt: take(maps::CNT).try_into().unwrap(),
            own: take(maps::SELF).try_into().unwrap(),
            ring: take(maps::CLOSE).try_into().unwrap(),
            closes: Vec::new(),
            bpf,
        }
    }

    /// Writes a socket's identity.
    pub fn tag(&mut self, socket: &impl AsRawFd, ident: Ident) {
        self.ident.insert(socket, ident.to_bytes(), 0).unwrap();
    }

    /// A socket's identity.
    pub fn ident(&self, socket: &impl AsRawFd) -> Option<Ident> {
        self.ident
            .get(socket, 0)
            .ok()
            .map(|bytes| Ident::from_bytes(&bytes))
    }

    /// What the programs know of a socket.
    pub fn stat(&self, socket: &impl AsRawFd) -> Option<Stat> {
        self.stat
            .get(socket, 0)
            .ok()
            .map(|bytes| Stat::from_bytes(&bytes))
    }

    /// Joins two tagged sockets, role 0 first: payload in at `offsets[role].0` of one goes out
    /// at `offsets[role].1` of the other.
    pub fn join(
        &mut self,
        sockets: [&TcpStream; 2],
        idents: [Ident; 2],
        slot: u32,
        generation: u32,
        offsets: [(u64, u64); 2],
    ) {
        let side = |role: usize| {
            let (inward, outward) = offsets[role];
            Pair {
                delta: outward.wrapping_sub(inward).cast_signed(),
                out_pos: outward,
                ..Pair::default()
            }
        };
        for role in [0, 1] {
            self.set_pair(slot, role, &side(role as usize));
            for word in 0..4 {
                self.pres
                    .set(keys::pres_key(slot, role, word), 0, 0)
                    .unwrap();
            }
        }
        for (socket, ident) in sockets.into_iter().zip(idents) {
            self.tag(
                socket,
                Ident {
                    pair_slot: slot,
                    pair_gen: generation,
                    ..ident
                },
            );
        }
        for role in [0, 1] {
            self.set_pair(
                slot,
                role,
                &Pair {
                    generation,
                    ..side(role as usize)
                },
            );
        }
    }

    /// Writes a direction of a slot.
    pub fn set_pair(&mut self, slot: u32, direction: u32, pair: &Pair) {
        self.pair
            .set(keys::pair_key(slot, direction), pair.to_bytes(), 0)
            .unwrap();
    }

    /// A direction of a slot.
    pub fn pair(&self, slot: u32, direction: u32) -> Pair {
        Pair::from_bytes(&self.pair.get(&keys::pair_key(slot, direction), 0).unwrap())
    }

    /// The lanes of a direction of a slot.
    pub fn lanes(&self, slot: u32, direction: u32) -> [u64; 4] {
        [0, 1, 2, 3].map(|word| {
            self.pres
                .get(&keys::pres_key(slot, direction, word), 0)
                .unwrap()
        })
    }

    /// Samples and their sum in nanoseconds.
    pub fn histogram(&self, cluster: u16, kind: u32) -> (u64, u64) {
        let sum = self
            .hist
            .get(&(keys::hist_row(cluster, kind) + bucket::SUM), 0);
        (self.row(cluster, kind).into_iter().sum(), sum.unwrap())
    }

    /// Samples of each bucket.
    pub fn row(&self, cluster: u16, kind: u32) -> Vec<u64> {
        let row = keys::hist_row(cluster, kind);
        let buckets = row..row + u32::try_from(bucket::BUCKETS).unwrap();
        buckets.map(|at| self.hist.get(&at, 0).unwrap()).collect()
    }

    /// Counters of a cluster and leg.
    pub fn counters(&self, cluster: u16, leg: Leg) -> Cnt {
        (0..keys::SHARDS).fold(Cnt::default(), |sum, shard| {
            let key = keys::cnt_cell(cluster, leg as u8, shard);
            let one = Cnt::from_bytes(&self.cnt.get(&key, 0).unwrap());
            Cnt {
                rx_bytes: sum.rx_bytes + one.rx_bytes,
                tx_bytes: sum.tx_bytes + one.tx_bytes,
                rx_skbs: sum.rx_skbs + one.rx_skbs,
                tx_skbs: sum.tx_skbs + one.tx_skbs,
                retrans: sum.retrans + one.retrans,
                retrans_rto: sum.retrans_rto + one.retrans_rto,
                rto_events: sum.rto_events + one.rto_events,
                closes: sum.closes + one.closes,
            }
        })
    }

    /// What the observer counts about itself.
    pub fn own(&self, what: Own) -> u64 {
        self.cell(what as u32)
    }

    /// A cell of the observer's own.
    pub fn cell(&self, at: u32) -> u64 {
        self.own.get(&at, 0).unwrap()
    }

    /// The close record of a connection; others are kept.
    pub fn close_of(&mut self, conn_id: u64) -> Close {
        until("a close record", || {
            self.drain();
            let at = self
                .closes
                .iter()
                .position(|close| close.conn_id == conn_id)?;
            Some(self.closes.swap_remove(at))
        })
    }

    /// Whether every close record was asked for.
    pub fn no_more_closes(&mut self) -> bool {
        self.drain();
        self.closes.is_empty()
    }

    /// A thread that sleeps until the ring wakes it.
    pub fn sleeper(&self) -> JoinHandle<()> {
        let ring = rustix::io::dup(self.ring.as_fd()).unwrap();
        let (told, tid) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            told.send(rustix::thread::gettid()).unwrap();
            let patience = Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            let mut ring = [PollFd::new(&ring, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut ring, Some(&patience)).unwrap(), 1);
        });
        let tid = tid.recv().unwrap().as_raw_nonzero();
        until("the sleeper to sleep", || {
            let state = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
            state.rsplit(')').next()?.starts_with(" S").then_some(())
        });
        thread
    }

    fn drain(&mut self) {
        while let Some(item) = self.ring.next() {
            let bytes: &[u8; Close::BYTES] = (&*item).try_into().unwrap();
            self.closes.push(Close::from_bytes(bytes));
        }
    }

    /// What the kernel says of a program.
    pub fn info(&self, name: &str) -> ProgramInfo {
        self.bpf.program(name).unwrap().info().unwrap()
    }
}

/// The object with small arrays.
pub fn load() -> Ebpf {
    EbpfLoader::new()
        .map_max_entries(maps::PAIR, maps::pair_entries(16))
        .map_max_entries(maps::PRES, maps::pres_entries(16))
        .map_max_entries(maps::HIST, maps::hist_entries(8))
        .map_max_entries(maps::CNT, maps::cnt_entries(8))
        .map_max_entries(maps::CLOSE, RING_BYTES)
        .load(OBJECT)
        .unwrap()
}

/// An identity outside any pair.
pub fn ident(conn_id: u64, leg: Leg, role: Role) -> Ident {
    Ident {
        conn_id: conn_id << 1 | role as u64,
        pair_slot: NO_SLOT,
        cluster: CLUSTER,
        leg: leg as u8,
        role: role as u8,
        ..Ident::default()
    }
}

/// Both loopback addresses.
pub fn loopbacks() -> [SocketAddr; 2] {
    [
        (Ipv4Addr::LOCALHOST, 0).into(),
        (Ipv6Addr::LOCALHOST, 0).into(),
    ]
}

/// A listener that is tagged before it listens, so that its children are from the start.
pub fn tagged_listener(observer: &mut Observer, at: SocketAddr, leg: Leg) -> TcpListener {
    let template = Ident {
        leg: leg as u8,
        pair_slot: NO_SLOT,
        flags: Ident::TEMPLATE,
        ..Ident::default()
    };
    let fd = tagged_socket(observer, at, template);
    rustix::net::bind(&fd, &at).unwrap();
    rustix::net::listen(&fd, 128).unwrap();
    fd.into()
}

/// A socket that is tagged before it connects.
pub fn tagged_connect(
    observer: &mut Observer,
    to: SocketAddr,
    ident: Ident,
) -> std::io::Result<TcpStream> {
    let socket = tagged_socket(observer, to, ident);
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

/// A tagged socket for an address of this family.
pub fn tagged_socket(observer: &mut Observer, to: SocketAddr, ident: Ident) -> OwnedFd {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
    observer.tag(&socket, ident);
    socket
}

/// Loses packets on the loopback of a test's network.
pub struct Loss {
    bpf: Ebpf,
}

impl Loss {
    /// Nothing yet.
    pub fn new() -> Self {
        let mut bpf = Ebpf::load(TESTPROGS).unwrap();
        if !is_linux(6, 6) {
            aya::programs::tc::qdisc_add_clsact("lo").unwrap();
        }
        let program = bpf.program_mut("test_lose").unwrap();
        let program: &mut SchedClassifier = program.try_into().unwrap();
        program.load().unwrap();
        program.attach("lo", TcAttachType::Ingress).unwrap();
        Self { bpf }
    }

    /// From now on, of the packets of at least this length.
    pub fn lose(&mut self, per_mille: u64, bytes: u64) {
        let mut cells: Array<_, u64> = self.bpf.map_mut("LOSS").unwrap().try_into().unwrap();
        cells.set(2, bytes, 0).unwrap();
        cells.set(1, per_mille, 0).unwrap();
    }

    /// Packets that were lost.
    pub fn lost(&self) -> u64 {
        let cells: Array<_, u64> = self.bpf.map("LOSS").unwrap().try_into().unwrap();
        cells.get(&0, 0).unwrap()
    }
}

/// Whether the running kernel is at least this one.
pub fn is_linux(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
}

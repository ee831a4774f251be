//! The observer as its process uses it. Every call works at every tier; what a tier cannot tell
//! is empty, and nothing that fails here reaches a connection.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use culvert_abi::{Ident, Leg, NO_SLOT, Role, Stat};
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::clusters::{ClusterIndex, Clusters};
use crate::kernel::{Kernel, Residence};
use crate::reading::{Baseline, Reading};
use crate::report::{Report, errno};
use crate::settings::{Settings, Tier};
use crate::slots::SlotId;
use crate::tier::Reason;

/// Number of a connection, or of the two that a relay joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

impl ConnId {
    /// Of the `sequence`th relay of this process.
    pub fn of_sequence(sequence: u64) -> Self {
        Self(sequence << 1)
    }

    /// Of a close record: the same for both legs.
    pub fn of_record(conn_id: u64) -> Self {
        Self(conn_id & !1)
    }

    /// As it stands in the records of one leg.
    pub fn with_role(self, role: Role) -> u64 {
        self.0 | role as u64
    }
}

/// Sixteen hexadecimal digits.
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Whose a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Its connection.
    pub conn: ConnId,
    /// Its cluster.
    pub cluster: ClusterIndex,
    /// Which connection of the product.
    pub leg: Leg,
    /// Which end of the relay.
    pub role: Role,
    /// [`Ident::NO_RESIDENCE`], [`Ident::ADOPTED`], or 0.
    pub flags: u16,
}

impl Tag {
    pub(crate) fn ident(self, slot: Option<SlotId>) -> Ident {
        Ident {
            conn_id: self.conn.with_role(self.role),
            pair_slot: slot.map_or(NO_SLOT, |it| it.slot),
            pair_gen: slot.map_or(0, |it| it.generation),
            cluster: self.cluster.number(),
            leg: self.leg as u8,
            role: self.role as u8,
            flags: self.flags & !Ident::TEMPLATE,
            zero: 0,
        }
    }
}

/// How far a leg's stream was used before the join, in payload bytes since it was established.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    /// Read and consumed: what was looked at and is still to be forwarded does not count.
    pub consumed: u64,
    /// Written.
    pub written: u64,
}

/// A pair whose residence is measured. Ends when it is dropped, which must be before the sockets
/// are closed or joined to others.
pub struct Slot {
    shared: Arc<Shared>,
    id: SlotId,
}

impl Slot {
    /// Which row it is, and for how long that is true.
    pub fn id(&self) -> SlotId {
        self.id
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.id).finish()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(kernel) = &self.shared.kernel {
            kernel.own_slot(self.id.slot, 0);
            kernel.slots.lock().give(self.id.slot, monotonic_ns());
        }
    }
}

/// What all handles share.
pub(crate) struct Shared {
    pub report: Report,
    pub clusters: RwLock<Clusters<Baseline>>,
    /// Whether a socket was ever said to be of the row's present owner.
    pub used: Box<[AtomicBool]>,
    pub failures: Mutex<BTreeMap<(&'static str, i32), u64>>,
    pub kernel: Option<Kernel>,
}

/// Calls that failed: which, with what error, how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagFailure {
    /// `listener`, `tag`, `stat`, `join` or `trace`.
    pub op: &'static str,
    /// Name of the error.
    pub errno: String,
    /// How often.
    pub count: u64,
}

/// Tells the kernel whose sockets are whose and reads what it measured.
#[derive(Clone)]
pub struct Observer {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observer")
            .field(&self.report().tier)
            .finish()
    }
}

impl Observer {
    /// One that asks the kernel nothing.
    pub fn absent(reason: Reason) -> Self {
        let settings = Settings::default();
        Self::new(Report::absent(reason), None, settings.cluster_rows())
    }

    pub(crate) fn new(report: Report, kernel: Option<Kernel>, rows: u16) -> Self {
        let shared = Shared {
            report,
            clusters: RwLock::new(Clusters::new(rows)),
            used: (0..rows).map(|_| AtomicBool::new(false)).collect(),
            failures: Mutex::default(),
            kernel,
        };
        let shared = Arc::new(shared);
        Self { shared }
    }

    /// What came of the start.
    pub fn report(&self) -> &Report {
        &self.shared.report
    }

    /// What runs.
    pub fn tier(&self) -> Tier {
        self.shared.report.tier
    }

    /// Marks a listener, between bind and listen: its accepted sockets are the kernel's to watch
    /// from their handshake on.
    pub fn listener(&self, socket: BorrowedFd<'_>, leg: Leg) {
        let mut ident = Ident {
            pair_slot: NO_SLOT,
            leg: leg as u8,
            flags: Ident::TEMPLATE,
            ..Ident::default()
        };
        self.write("listener", socket, &mut ident);
    }

    /// Says whose a socket is: between socket and connect, and anew as more is known.
    pub fn tag(&self, socket: BorrowedFd<'_>, tag: Tag) {
        self.write("tag", socket, &mut tag.ident(None));
    }

    /// What the kernel knows of a socket; call it on the thread that owns the descriptor.
    pub fn stat(&self, socket: BorrowedFd<'_>) -> Option<Stat> {
        let kernel = self.shared.kernel.as_ref()?;
        match kernel.stat.lookup(socket) {
            Ok(stat) => Some(Stat::from_bytes(&stat)),
            // A listener, or a socket from before the programs.
            Err(Errno::NOENT) => None,
            Err(why) => {
                self.failed("stat", why);
                None
            }
        }
    }

    /// Says that two sockets are one relay from now on, the side nearer the client first, and
    /// measures how long bytes stay in it. To be called before the first byte is forwarded, on
    /// the thread that will forward it.
    pub fn join(
        &self,
        sockets: [BorrowedFd<'_>; 2],
        tags: [Tag; 2],
        offsets: [Offsets; 2],
    ) -> Option<Slot> {
        let kernel = self.shared.kernel.as_ref()?;
        let residence =
            self.tier() >= Tier::Skb && tags.iter().all(|tag| tag.flags & Ident::NO_RESIDENCE == 0);
        let taken = match residence {
            true => kernel.slots.lock().take(monotonic_ns()),
            false => None,
        };
        let Some(id) = taken else {
            if residence {
                kernel.no_slot.fetch_add(1, Ordering::Relaxed);
            }
            for (socket, tag) in sockets.into_iter().zip(tags) {
                self.write("join", socket, &mut tag.ident(None));
            }
            return None;
        };
        let shared = Arc::clone(&self.shared);
        let slot = Slot { shared, id };
        let [near, far] = offsets;
        let directions = [(near.consumed, far.written), (far.consumed, near.written)];
        kernel.prepare(id.slot, directions);
        for (socket, tag) in sockets.into_iter().zip(tags) {
            // Without both identities no sample is whole; the slot goes back.
            self.write("join", socket, &mut tag.ident(Some(id)))
                .then_some(())?;
        }
        kernel.own_slot(id.slot, id.generation);
        Some(slot)
    }

    /// Writes whose a socket is, and whether a trace looks at it.
    pub(crate) fn write(
        &self,
        op: &'static str,
        socket: BorrowedFd<'_>,
        ident: &mut Ident,
    ) -> bool {
        let Some(kernel) = &self.shared.kernel else {
            return false;
        };
        ident.flags = kernel.trace.flags(ident.flags, ident.cluster);
        if let Some(used) = self.shared.used.get(usize::from(ident.cluster))
            && !used.load(Ordering::Relaxed)
        {
            used.store(true, Ordering::Relaxed);
        }
        let written = kernel.ident.update(socket, &ident.to_bytes());
        if let Err(why) = written {
            self.failed(op, why);
        }
        written.is_ok()
    }

    pub(crate) fn failed(&self, op: &'static str, why: Errno) {
        let mut failures = self.shared.failures.lock();
        *failures.entry((op, why.raw_os_error())).or_default() += 1;
    }

    /// Calls that failed so far.
    pub fn tag_failures(&self) -> Vec<TagFailure> {
        let failures = self.shared.failures.lock();
        let failure = |(&(op, number), &count): (&(&'static str, i32), &u64)| TagFailure {
            op,
            errno: errno(Errno::from_raw_os_error(number)),
            count,
        };
        failures.iter().map(failure).collect()
    }

    /// The row of a cluster, which gets one if there is one left; beyond the limit, the shared one.
    pub fn cluster(&self, name: &str) -> ClusterIndex {
        if let Some(index) = self.shared.clusters.read().find(name) {
            return index;
        }
        self.claim(name, monotonic_ns())
    }

    fn claim(&self, name: &str, now_ns: u64) -> ClusterIndex {
        let kernel = self.shared.kernel.as_ref();
        let baseline = |index| kernel.map(|it| Baseline::of(it, index)).unwrap_or_default();
        self.shared.clusters.write().claim(name, now_ns, baseline)
    }

    /// Takes the row of a cluster back: it is gone, and its last connection closed. If it had any,
    /// the kernel may still hold remains of them, and nobody gets the row for two minutes.
    pub fn forget_cluster(&self, name: &str) {
        let was_used = |index: u16| {
            let used = self.shared.used.get(usize::from(index));
            used.is_some_and(|used| used.swap(false, Ordering::Relaxed))
        };
        let mut clusters = self.shared.clusters.write();
        clusters.free(name, monotonic_ns(), was_used);
    }

    /// The cluster of a record: also one that is gone, until its row has another owner.
    pub fn cluster_name(&self, index: u16) -> Option<String> {
        let clusters = self.shared.clusters.read();
        clusters.name_of(index).map(str::to_owned)
    }

    /// The recent residence of a pair, to the service and to the client.
    pub fn residence(&self, slot: SlotId) -> Option<[Residence; 2]> {
        self.shared.kernel.as_ref()?.residence(slot)
    }

    /// Everything that the kernel counted, without a syscall.
    pub fn read(&self) -> Reading<'_> {
        Reading::new(&self.shared)
    }

    /// Gives up samples that wait for a byte that will not come; every 10 s will do.
    pub fn sweep(&self) {
        if let Some(kernel) = &self.shared.kernel {
            kernel.sweep(monotonic_ns);
        }
    }
}

/// The clock of every time in the records.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use culvert_abi::{Cnt, Kind, arm, ticks};

    use super::*;
    use crate::clusters::REST_NS;
    use crate::reading::Unsampled;

    /// An observer of this thread's own, where the host permits one.
    fn observer(test: &str) -> Option<Observer> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP {test}: needs root");
            let required = std::env::var_os("CULVERT_REQUIRE").is_some_and(|value| value == "all");
            assert!(!required, "{test} must run here");
            return None;
        }
        let settings = Settings {
            clusters_max: 8,
            pairs_max: 16,
            ..Settings::default()
        };
        let observer = crate::start(&settings).unwrap();
        assert_eq!(observer.tier(), Tier::Skb, "{}", observer.report());
        Some(observer)
    }

    /// Moves bytes over one tagged socket and back.
    fn move_bytes(observer: &Observer, cluster: ClusterIndex, count: usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let tagged = TcpListener::bind("127.0.0.1:0").unwrap();
        observer.listener(tagged.as_fd(), Leg::Pair);
        let (mut other, _) = listener.accept().unwrap();
        let mut near = TcpStream::connect(tagged.local_addr().unwrap()).unwrap();
        let (mut own, _) = tagged.accept().unwrap();
        let tag = Tag {
            conn: ConnId::of_sequence(9),
            cluster,
            leg: Leg::Pair,
            role: Role::Client,
            flags: 0,
        };
        observer.tag(own.as_fd(), tag);
        let mut bytes = vec![1; count];
        near.write_all(&bytes).unwrap();
        own.read_exact(&mut bytes).unwrap();
        own.write_all(&bytes).unwrap();
        near.read_exact(&mut bytes).unwrap();
        // Sockets that nobody tagged.
        client.write_all(&bytes).unwrap();
        other.read_exact(&mut bytes).unwrap();
    }

    fn of(observer: &Observer, name: &str) -> (Cnt, u64) {
        let reading = observer.read();
        let own = reading.clusters().find(|it| it.name == name).unwrap();
        let count = own
            .legs()
            .next()
            .map(|(_, count)| count)
            .unwrap_or_default();
        (
            count,
            own.histogram(Kind::RttClient).map_or(0, |it| it.count()),
        )
    }

    #[test]
    fn the_next_owner_of_a_row_starts_from_nothing_in_the_kernel_too() {
        let Some(observer) =
            observer("the_next_owner_of_a_row_starts_from_nothing_in_the_kernel_too")
        else {
            return;
        };
        let names = ["old", "b", "c", "d"];
        let [old, ..] = names.map(|name| observer.cluster(name));
        move_bytes(&observer, old, 1_000);
        let (count, rtts) = of(&observer, "old");
        assert_eq!((count.rx_bytes, count.tx_bytes), (1_000, 1_000));
        assert!(rtts > 0);
        observer.forget_cluster("old");
        assert_eq!(observer.cluster("new"), ClusterIndex::OVERFLOW, "it rests");
        assert_eq!(observer.read().clusters_refused(), 1);
        let new = observer.claim("new", monotonic_ns() + REST_NS);
        assert_eq!(new, old);
        assert_eq!(of(&observer, "new"), (Cnt::default(), 0));
        move_bytes(&observer, new, 30);
        assert_eq!(of(&observer, "new").0.rx_bytes, 30);
        assert_eq!(observer.cluster_name(new.number()).as_deref(), Some("new"));
    }

    #[test]
    fn a_sample_whose_byte_never_leaves_is_given_up() {
        let Some(observer) = observer("a_sample_whose_byte_never_leaves_is_given_up") else {
            return;
        };
        let kernel = observer.shared.kernel.as_ref().unwrap();
        let id = kernel.slots.lock().take(monotonic_ns()).unwrap();
        let then = 5_000_000_000;
        kernel.arm(id.slot, arm::pack(0, ticks::of_ns(then), 77));
        let stale = || observer.read().unsampled()[1];
        kernel.sweep(|| then + 1_023_000_000_000);
        assert_eq!(stale(), (Unsampled::Stale, 0), "not yet");
        kernel.sweep(|| then + 1_025_000_000_000);
        assert_eq!(stale(), (Unsampled::Stale, 1));
        kernel.sweep(|| then + 2_000_000_000_000);
        assert_eq!(stale(), (Unsampled::Stale, 1), "once");

        // A sample that comes while a sweep runs is young, not older than the clock can tell.
        kernel.arm(
            id.slot,
            arm::pack(0, ticks::of_ns(then + 1_000_000_000), 77),
        );
        let looks = std::cell::Cell::new(0);
        kernel.sweep(|| then + 2_000_000_000 * looks.replace(looks.get() + 1));
        assert_eq!((stale().1, looks.get()), (1, 2));
    }
}

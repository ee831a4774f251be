//! What runs in the kernel, as this process holds it: maps, rings, links.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf};
use culvert_abi::{Close, Ident, Leg, Own, Stat, arm, keys, lane, maps, ticks};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::mapped::{Cell, CntCell, Mapped, PairCell};
use crate::reasons;
use crate::settings::Settings;
use crate::slots::{SlotId, Slots};
use crate::sys::BySocket;
use crate::trace::Running;

/// A sample that is outstanding for longer is given up: half of what an arm word can tell.
const STALE_TICKS: u64 = 1_024 * 1_000_000_000 / ticks::TICK_NS;

/// Maps and programs.
pub struct Kernel {
    pub ident: BySocket<{ Ident::BYTES }>,
    pub stat: BySocket<{ Stat::BYTES }>,
    pairs: Mapped<PairCell>,
    lanes: Mapped<AtomicU64>,
    pub histograms: Mapped<AtomicU64>,
    pub counters: Mapped<CntCell>,
    own: Mapped<AtomicU64>,
    pub closes: Mutex<RingBuf<MapData>>,
    pub slots: Mutex<Slots>,
    /// Pairs that found no slot free.
    pub no_slot: AtomicU64,
    /// Samples that were given up.
    pub stale: AtomicU64,
    /// The programs; their links end with them.
    pub programs: Mutex<Ebpf>,
    /// What the kernel's numbers of reset reasons mean; empty unless trace programs are there.
    pub reset_names: Vec<(u32, String)>,
    /// The trace programs' links, while someone traces.
    pub trace: Running,
}

/// What a residence of a pair was lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Residence {
    /// Samples that the figures rest on, about the last 65,000.
    pub samples: u64,
    /// Median, to a factor of two; nothing without samples.
    pub p50_us: Option<u64>,
    /// 99th percentile, to a factor of two.
    pub p99_us: Option<u64>,
}

impl Kernel {
    /// Takes the maps of a loaded object over.
    ///
    /// # Errors
    /// When a map is missing, of another size, or cannot be mapped: the object is of another version.
    pub fn new(mut programs: Ebpf, settings: &Settings) -> Result<Self, String> {
        let (slots, rows) = (settings.pair_slots(), u32::from(settings.cluster_rows()));
        let ident = by_socket(&mut programs, maps::IDENT)?;
        let stat = by_socket(&mut programs, maps::STAT)?;
        let pairs = array(&mut programs, maps::PAIR, maps::pair_entries(slots))?;
        let lanes = array(&mut programs, maps::PRES, maps::pres_entries(slots))?;
        let histograms = array(&mut programs, maps::HIST, maps::hist_entries(rows))?;
        let counters = array(&mut programs, maps::CNT, maps::cnt_entries(rows))?;
        let own: Mapped<AtomicU64> = array(&mut programs, maps::SELF, maps::SELF_CELLS)?;
        let ring = programs.take_map(maps::CLOSE).ok_or("no map CLOSE")?;
        let ring = RingBuf::try_from(ring).map_err(|why| format!("CLOSE: {why}"))?;
        own.cells()[Own::Version as usize].store(culvert_abi::VERSION.into(), Ordering::Relaxed);
        Ok(Self {
            ident,
            stat,
            pairs,
            lanes,
            histograms,
            counters,
            own,
            closes: Mutex::new(ring),
            slots: Mutex::new(Slots::new(slots)),
            no_slot: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            programs: Mutex::new(programs),
            reset_names: match settings.trace {
                true => reasons::read(),
                false => Vec::new(),
            },
            trace: Running::default(),
        })
    }

    /// Resets that were sent on a leg, by the kernel's number of the reason.
    pub fn resets(&self, leg: Leg, reason: u32) -> u64 {
        let cell = keys::reset_cell(leg as u8, reason) as usize;
        self.own.cells()[cell].load(Ordering::Relaxed)
    }

    /// A cell that the programs keep about themselves.
    pub fn own(&self, cell: Own) -> u64 {
        self.own.cells()[cell as usize].load(Ordering::Relaxed)
    }

    fn pair(&self, slot: u32, direction: u32) -> &PairCell {
        &self.pairs.cells()[keys::pair_key(slot, direction) as usize]
    }

    fn words(&self, slot: u32, direction: u32) -> &[AtomicU64] {
        let first = keys::pres_key(slot, direction, 0) as usize;
        &self.lanes.cells()[first..first + lane::WORDS as usize]
    }

    /// Prepares a slot whose generation is still 0. `offsets` are, for each direction, those of
    /// the next byte to forward: in on its leg, out on the other.
    pub fn prepare(&self, slot: u32, offsets: [(u64, u64); 2]) {
        for (direction, (offset_in, offset_out)) in (0..).zip(offsets) {
            let pair = self.pair(slot, direction);
            pair.arm.store(arm::FREE, Ordering::Relaxed);
            pair.skipped.store(0, Ordering::Relaxed);
            for word in self.words(slot, direction) {
                word.store(0, Ordering::Relaxed);
            }
            let delta = offset_out.wrapping_sub(offset_in).cast_signed();
            pair.delta.store(delta, Ordering::Relaxed);
            pair.out_pos.store(offset_out, Ordering::Relaxed);
        }
    }

    /// What only the programs do.
    #[cfg(test)]
    pub fn arm(&self, slot: u32, word: u64) {
        self.pair(slot, 0).arm.store(word, Ordering::Relaxed);
    }

    /// Says whose a slot is, after all else: 0 is nobody.
    pub fn own_slot(&self, slot: u32, generation: u32) {
        for direction in 0..2 {
            let pair = self.pair(slot, direction);
            pair.generation.store(generation, Ordering::Release);
        }
    }

    /// The recent residence of both directions, as long as the slot is held by this generation.
    pub fn residence(&self, id: SlotId) -> Option<[Residence; 2]> {
        let is_held = |direction| {
            let generation = &self.pair(id.slot, direction).generation;
            generation.load(Ordering::Acquire) == id.generation
        };
        let direction = |direction| {
            let cells = self.words(id.slot, direction);
            let words = std::array::from_fn(|at| cells[at].load(Ordering::Relaxed));
            Residence {
                samples: lane::samples(&words),
                p50_us: lane::quantile_us(&words, 500),
                p99_us: lane::quantile_us(&words, 990),
            }
        };
        let read = is_held(0).then(|| [direction(0), direction(1)])?;
        is_held(0).then_some(read)
    }

    /// Gives up samples that have been outstanding for too long, by the clock `now_ns`.
    pub fn sweep(&self, now_ns: impl Fn() -> u64) {
        let begun = now_ns();
        let touched = self.slots.lock().touched();
        let cells = self.pairs.cells().iter();
        for pair in cells.take(maps::pair_entries(touched) as usize) {
            let word = pair.arm.load(Ordering::Relaxed);
            let is_stale = |now_ns| {
                let age = ticks::since(ticks::of_ns(now_ns), arm::tick(word));
                word != arm::FREE && age >= STALE_TICKS
            };
            // One that came after the sweep began looks older than any: a second look, with the
            // clock as it is now.
            if !is_stale(begun) || !is_stale(now_ns()) {
                continue;
            }
            let (done, failed) = (Ordering::Relaxed, Ordering::Relaxed);
            let given_up = pair.arm.compare_exchange(word, arm::FREE, done, failed);
            if given_up.is_ok() {
                self.stale.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The next close record, if there is one.
    pub fn next_close(ring: &mut RingBuf<MapData>) -> Option<Close> {
        while let Some(record) = ring.next() {
            let record = <&[u8; Close::BYTES]>::try_from(&*record).map(Close::from_bytes);
            match record {
                Ok(close) if close.version == culvert_abi::VERSION => return Some(close),
                _ => {}
            }
        }
        None
    }
}

fn by_socket<const N: usize>(programs: &mut Ebpf, name: &str) -> Result<BySocket<N>, String> {
    let map = programs.take_map(name);
    let Some(Map::SkStorage(data)) = map else {
        return Err(format!("no socket map {name}"));
    };
    let value_bytes = data
        .info()
        .map_err(|why| format!("{name}: {why}"))?
        .value_size();
    let map: OwnedFd = data
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|why| format!("{name}: {why}"))?;
    BySocket::new(map, value_bytes)
        .ok_or_else(|| format!("{name} has values of {value_bytes} bytes"))
}

fn array<T: Cell>(programs: &mut Ebpf, name: &str, entries: u32) -> Result<Mapped<T>, String> {
    let map = programs.take_map(name);
    let Some(Map::Array(data)) = map else {
        return Err(format!("no array {name}"));
    };
    let info = data.info().map_err(|why| format!("{name}: {why}"))?;
    let (value_bytes, has) = (info.value_size(), info.max_entries());
    if usize::try_from(value_bytes) != Ok(size_of::<T>()) || has < entries {
        return Err(format!("{name} has {has} values of {value_bytes} bytes"));
    }
    let mapped = Mapped::open(data.fd().as_fd(), entries);
    mapped.map_err(|why: Errno| format!("{name}: {why}"))
}

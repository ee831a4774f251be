//! The maps, and what the programs do with them.
#![expect(unsafe_code, reason = "map definitions and helper calls")]

use core::ptr::null_mut;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, RingBuf};
use culvert_abi::{Cnt, Ident, NO_SLOT, Own, Pair, Stat, bucket, keys, maps};

use super::cells::add_to;
use crate::memory::read;

/// Readers map the pages: a scrape is no system call.
const MMAPABLE: u32 = 1 << 10;
const NO_PREALLOC: usize = 1;
const CLONE: usize = 1 << 9;
const CREATE: u64 = 1;
const SK_STORAGE: usize = 24;

/// Storage by socket; aya's own cannot be used from these program types.
#[repr(C)]
pub struct SkStorage<T, const FLAGS: usize> {
    r#type: *const [i32; SK_STORAGE],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: nothing here is ever read; the types alone describe the map to the loader.
unsafe impl<T, const FLAGS: usize> Sync for SkStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SkStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The socket's value.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<*mut T> {
        self.lookup(sk, 0)
    }

    /// The socket's value, made as zeros if there is none.
    #[inline(always)]
    pub fn create(&self, sk: *mut bpf_sock) -> Option<*mut T> {
        self.lookup(sk, CREATE)
    }

    #[inline(always)]
    fn lookup(&self, sk: *mut bpf_sock, flags: u64) -> Option<*mut T> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the helper takes a map and a socket that is not null; the verifier checks both.
        let value = unsafe { bpf_sk_storage_get(map, sk.cast(), null_mut(), flags) };
        (!value.is_null()).then_some(value.cast())
    }
}

#[btf_map]
pub static IDENT: SkStorage<Ident, { NO_PREALLOC | CLONE }> = SkStorage::new();
#[btf_map]
pub static STAT: SkStorage<Stat, NO_PREALLOC> = SkStorage::new();
#[map]
static PAIR: Array<Pair> = Array::with_max_entries(maps::pair_entries(maps::SLOTS), MMAPABLE);
#[map]
static PRES: Array<u64> = Array::with_max_entries(maps::pres_entries(maps::SLOTS), MMAPABLE);
#[map]
static HIST: Array<u64> = Array::with_max_entries(maps::hist_entries(maps::CLUSTERS), MMAPABLE);
#[map]
static CNT: Array<Cnt> = Array::with_max_entries(maps::cnt_entries(maps::CLUSTERS), MMAPABLE);
#[map]
static SELF: Array<u64> = Array::with_max_entries(maps::SELF_CELLS, MMAPABLE);
#[map]
pub static CLOSE: RingBuf = RingBuf::with_byte_size(maps::CLOSE_BYTES, 0);

/// Counters of a socket's cluster and leg.
#[inline(always)]
pub fn counters(ident: *mut Ident) -> Option<*mut Cnt> {
    // SAFETY: the helper takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    CNT.get_ptr_mut(keys::cnt_cell(
        read!(ident, cluster),
        read!(ident, leg),
        cpu as u32,
    ))
}

/// Counts something about the observer itself.
#[inline(always)]
pub fn count(what: Own) {
    count_cell(what as u32);
}

/// Counts in a cell of `SELF`.
#[inline(always)]
pub fn count_cell(cell: u32) {
    if let Some(cell) = SELF.get_ptr_mut(cell) {
        add_to(cell, 1);
    }
}

/// Adds a sample to a histogram of a cluster.
#[inline(always)]
pub fn sample(cluster: u16, kind: u32, ns: u64) {
    let row = keys::hist_row(cluster, kind);
    if let Some(cell) = HIST.get_ptr_mut(row + bucket::of_ns(ns)) {
        add_to(cell, 1);
    }
    if let Some(sum) = HIST.get_ptr_mut(row + bucket::SUM) {
        add_to(sum, ns);
    }
}

/// A word of the lanes of a direction.
#[inline(always)]
pub fn lanes(slot: u32, direction: u32, word: u32) -> Option<*mut u64> {
    PRES.get_ptr_mut(keys::pres_key(slot, direction, word))
}

/// The direction of the socket's pair, if the socket still belongs to it.
#[inline(always)]
pub fn pair(ident: *mut Ident, direction: u32) -> Option<*mut Pair> {
    let slot = read!(ident, pair_slot);
    if slot == NO_SLOT || read!(ident, flags) & Ident::NO_RESIDENCE != 0 {
        return None;
    }
    let pair = PAIR.get_ptr_mut(keys::pair_key(slot, direction))?;
    if read!(pair, generation) != read!(ident, pair_gen) {
        count(Own::Generation);
        return None;
    }
    Some(pair)
}

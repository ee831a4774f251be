//! Arrays of the kernel as memory of this process: read and written without a syscall.
#![expect(
    unsafe_code,
    reason = "a mapping is raw memory until it is given a type"
)]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// What an element of an array may be.
///
/// # Safety
/// Made of atomics alone, without padding: any bits are a value, and others may write them at any
/// time.
pub unsafe trait Cell: Sync {}

// SAFETY: an atomic.
unsafe impl Cell for AtomicU64 {}

/// [`culvert_abi::Pair`] as it lies in the map.
#[repr(C)]
pub struct PairCell {
    pub arm: AtomicU64,
    pub out_pos: AtomicU64,
    pub delta: AtomicI64,
    pub generation: AtomicU32,
    pub skipped: AtomicU32,
}

const _: () = assert!(size_of::<PairCell>() == culvert_abi::Pair::BYTES);

// SAFETY: atomics, and the assertion above leaves no room for padding.
unsafe impl Cell for PairCell {}

/// [`culvert_abi::Cnt`] as it lies in the map.
#[repr(C)]
pub struct CntCell(pub [AtomicU64; culvert_abi::Cnt::BYTES / 8]);

// SAFETY: atomics of one size.
unsafe impl Cell for CntCell {}

/// An array, mapped.
pub struct Mapped<T: Cell> {
    start: NonNull<T>,
    count: usize,
}

// SAFETY: the mapping belongs to no thread, and its cells are `Sync`.
unsafe impl<T: Cell> Send for Mapped<T> {}
// SAFETY: as above; a shared reference gives shared references to cells alone.
unsafe impl<T: Cell> Sync for Mapped<T> {}

impl<T: Cell> Mapped<T> {
    /// Maps `map`, an mmapable array of at least `count` elements of the size of `T`.
    ///
    /// # Errors
    /// When the kernel does not map it, as when it is shorter or no such array.
    pub fn open(map: BorrowedFd<'_>, count: u32) -> Result<Self, Errno> {
        let count = usize::try_from(count).map_err(|_| Errno::OVERFLOW)?;
        let bytes = count.checked_mul(size_of::<T>()).ok_or(Errno::OVERFLOW)?;
        let (access, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses the place, so no memory of anyone else is covered.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, access, shared, map, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, count })
    }

    /// Its elements.
    pub fn cells(&self) -> &[T] {
        // SAFETY: the mapping is as long, page-aligned, and lives as long as `self`; what a cell
        // is made of may change under a shared reference.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Cell> Drop for Mapped<T> {
    fn drop(&mut self) {
        let bytes = self.count * size_of::<T>();
        // SAFETY: made by `open` with this length, and no reference outlives `self`.
        // A mapping that cannot be undone stays until the process ends.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), bytes) };
    }
}

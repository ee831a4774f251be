//! Names and sizes of the maps and programs in the object.

/// [`crate::Ident`] by socket.
pub const IDENT: &str = "IDENT";
/// [`crate::Stat`] by socket.
pub const STAT: &str = "STAT";
/// [`crate::Pair`] by [`crate::keys::pair_key`].
pub const PAIR: &str = "PAIR";
/// Words of four lanes ([`crate::lane`]) by [`crate::keys::pres_key`].
pub const PRES: &str = "PRES";
/// Cells by [`crate::keys::hist_row`] plus bucket.
pub const HIST: &str = "HIST";
/// [`crate::Cnt`] by [`crate::keys::cnt_cell`].
pub const CNT: &str = "CNT";
/// Cells by [`crate::Own`] and [`crate::keys::reset_cell`].
pub const SELF: &str = "SELF";
/// Ring of [`crate::Close`].
pub const CLOSE: &str = "CLOSE";

/// Clusters that the arrays hold unless they are resized.
pub const CLUSTERS: u32 = 1_024;
/// Joined pairs that the arrays hold unless they are resized.
pub const SLOTS: u32 = 65_536;
/// Cells of `SELF`: one page.
pub const SELF_CELLS: u32 = 512;
/// Bytes of ring `CLOSE`.
pub const CLOSE_BYTES: u32 = 4 << 20;

/// Entries of `PAIR` for this many slots.
#[must_use]
pub const fn pair_entries(slots: u32) -> u32 {
    slots * 2
}

/// Entries of `PRES` for this many slots.
#[must_use]
pub const fn pres_entries(slots: u32) -> u32 {
    slots * 2 * crate::lane::WORDS
}

/// Entries of `HIST` for this many clusters.
#[must_use]
pub const fn hist_entries(clusters: u32) -> u32 {
    clusters * crate::keys::KINDS * crate::bucket::ROW
}

/// Entries of `CNT` for this many clusters.
#[must_use]
pub const fn cnt_entries(clusters: u32) -> u32 {
    clusters * crate::keys::LEGS * crate::keys::SHARDS
}

/// Connection events: RTT, retransmits, close records.
pub const SOCK_OPS: &str = "cv_sockops";
/// Payload in.
pub const INGRESS: &str = "cv_in";
/// Payload out.
pub const EGRESS: &str = "cv_out";
/// Receive-queue wait, on demand.
pub const RX_WAIT: &str = "tr_rcvspace";
/// Resets sent, on demand.
pub const RESETS: &str = "tr_sendrst";
/// The same without the reason, for kernels before 6.10.
pub const RESETS_OLD: &str = "tr_sendrst_old";

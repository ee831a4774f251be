//! One stream, and the table of all of them.

use alloc::collections::VecDeque;
use slab::Slab;

use crate::budget::Account;
use crate::buffers::{Chunks, Inbox, Outbox};
use crate::ids::IdMap;
use crate::window::Window;
use crate::{End, StreamError};

/// How far our own half is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sending {
    Open,
    /// FIN goes out after the queue.
    Finishing,
    Finished,
}

/// Where the stream waits for its turn to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Nowhere,
    /// Newly active: before the others until its first quantum is used.
    Fresh,
    Bulk,
}

/// Events that wait to be told, in this order.
pub(crate) mod told {
    pub(crate) const OPENED: u8 = 1;
    pub(crate) const READABLE: u8 = 2;
    pub(crate) const WRITABLE: u8 = 4;
    pub(crate) const ENDED: u8 = 8;
}

pub(crate) struct Stream {
    pub(crate) inbox: Inbox,
    pub(crate) window: Window,
    pub(crate) outbox: Outbox,
    /// Bytes we may still send.
    pub(crate) credit: u32,
    /// What the scheduler owes this stream, in bytes.
    pub(crate) deficit: isize,
    /// Since when bytes wait without credit.
    pub(crate) stalled_ms: Option<u64>,
    /// SYN or ACK that our next frame carries.
    pub(crate) flags: u16,
    pub(crate) sending: Sending,
    /// The peer's FIN has come, and every byte before it.
    pub(crate) received_fin: bool,
    pub(crate) end: Option<End>,
    pub(crate) place: Place,
    /// Events to tell; not 0 = in the event queue.
    pub(crate) events: u8,
    /// In the queue of streams that have a WindowUpdate to send.
    pub(crate) noticed: bool,
    /// A read was pending.
    pub(crate) reader_waits: bool,
    /// A write was blocked.
    pub(crate) writer_waits: bool,
    /// The caller has let go; the queue is still being sent.
    pub(crate) released: bool,
}

impl Stream {
    pub(crate) fn new(window_bytes: u32, flags: u16, now_ms: u64) -> Stream {
        Stream {
            inbox: Inbox::default(),
            window: Window::new(window_bytes, now_ms),
            outbox: Outbox::default(),
            credit: window_bytes,
            deficit: 0,
            stalled_ms: None,
            flags,
            sending: Sending::Open,
            received_fin: false,
            end: None,
            place: Place::Nowhere,
            events: 0,
            noticed: false,
            reader_waits: false,
            writer_waits: false,
            released: false,
        }
    }

    /// Both halves finished, or aborted: no frame belongs to it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some() || (self.received_fin && self.sending == Sending::Finished)
    }

    /// A Data or FIN frame could go out now.
    pub(crate) fn is_sendable(&self) -> bool {
        let waiting = match self.outbox.queued() {
            0 => self.sending == Sending::Finishing,
            _ => self.credit > 0,
        };
        waiting && self.end.is_none()
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.credit == 0 && self.outbox.queued() > 0
    }

    /// What reading and writing answer once the stream was aborted.
    pub(crate) fn error(&self) -> Option<StreamError> {
        self.end.map(|end| match end {
            End::Reset => StreamError::Reset,
            End::GoAway(code) => StreamError::GoneAway(code),
            End::CarrierLost => StreamError::CarrierLost,
        })
    }

    /// Unread bytes that the growth of the window has not paid for.
    pub(crate) fn unread_charge(&self) -> usize {
        self.inbox.unread().saturating_sub(self.window.growth())
    }

    /// Bytes held for this stream, both ways.
    pub(crate) fn held_bytes(&self) -> usize {
        self.inbox.unread() + self.outbox.queued()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.inbox.memory_bytes() + self.outbox.memory_bytes()
    }

    /// No growth is owed any more; what it paid for is charged as unread bytes.
    pub(crate) fn close_window(&mut self, account: &mut Account) {
        let before = self.unread_charge();
        self.window.close(&account.budget);
        account.add(self.unread_charge() - before);
    }

    pub(crate) fn drop_unread(&mut self, account: &mut Account, pool: &mut Chunks) {
        account.sub(self.unread_charge());
        self.inbox.clear(pool);
    }

    pub(crate) fn drop_queued(&mut self, account: &mut Account, pool: &mut Chunks) {
        account.sub(self.outbox.queued());
        self.outbox.clear(pool);
    }
}

/// Names a place in the table and the stream that must still be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    slot: u32,
    pub(crate) id: u32,
}

/// Live streams, found by id or key in O(1).
pub(crate) struct Table {
    slab: Slab<(u32, Stream)>,
    ids: IdMap,
}

impl Table {
    pub(crate) fn new(hash_seed: u64) -> Table {
        Table {
            slab: Slab::new(),
            ids: IdMap::new(hash_seed),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn key_of(&self, id: u32) -> Option<Key> {
        self.ids.get(id).map(|slot| Key { slot, id })
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Stream> {
        self.slab
            .get(key.slot as usize)
            .filter(|(id, _)| *id == key.id)
            .map(|(_, stream)| stream)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Stream> {
        self.slab
            .get_mut(key.slot as usize)
            .filter(|(id, _)| *id == key.id)
            .map(|(_, stream)| stream)
    }

    /// `id` must be new, and there are fewer than 2^32 streams.
    pub(crate) fn insert(&mut self, id: u32, stream: Stream) -> Key {
        let slot = crate::frame::wire_length(self.slab.insert((id, stream)));
        self.ids.insert(id, slot);
        Key { slot, id }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Stream> {
        self.get(key)?;
        self.ids.remove(key.id);
        Some(self.slab.remove(key.slot as usize).1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Stream)> {
        self.slab.iter().map(|(_, (id, stream))| (*id, stream))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.slab.iter_mut().map(|(_, (_, stream))| stream)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.slab.capacity() * size_of::<(u32, Stream)>() + self.ids.memory_bytes()
    }
}

/// Streams in line. A stream that leaves the table leaves its entries behind; they are skipped,
/// and pruned before they outnumber the living.
#[derive(Debug, Default)]
pub(crate) struct Line(VecDeque<Key>);

impl Line {
    pub(crate) fn push(&mut self, key: Key) {
        self.0.push_back(key);
    }

    pub(crate) fn front(&self) -> Option<Key> {
        self.0.front().copied()
    }

    pub(crate) fn pop(&mut self) -> Option<Key> {
        self.0.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn prune(&mut self, table: &Table) {
        if self.0.len() > 2 * table.len() + 64 {
            self.0.retain(|key| table.get(*key).is_some());
        }
    }
}

//! The books after a restart, from what the files hold.

use super::{Book, Limits, Open, Segment};
use crate::event::{Ended, Phase, Record};
use crate::segment::Scanned;

/// Takes over what a spool holds, one segment after the other.
#[derive(Debug)]
pub struct Recovery(Book);

impl Recovery {
    /// Nothing was found yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Book::new(limits))
    }

    /// The segment `number`, in rising order. `next` is the first sequence of the one
    /// behind it: what lies behind that here was never durable, and promised to nobody.
    pub fn take(&mut self, number: u64, scanned: &Scanned, next: Option<u64>) {
        self.0.number = number;
        self.0.take(number, scanned, next.unwrap_or(u64::MAX));
    }

    /// The books. `acked` is what was noted last; too low is harmless.
    #[must_use]
    pub fn finish(self, acked: u64) -> Book {
        let mut book = self.0;
        let oldest = book.segments.front().map(|segment| segment.header.first);
        book.next = match oldest {
            Some(_) => book.next,
            None => acked,
        };
        book.acked = acked.clamp(oldest.unwrap_or(acked).min(book.next), book.next);
        book
    }
}

impl Book {
    /// The records that end what a crash left open.
    #[must_use]
    pub fn unknown_ends(&self, now_ms: u64) -> Vec<Ended> {
        let open = self.open.iter();
        open.map(|(id, open)| open.unknown_end(*id, now_ms))
            .collect()
    }

    fn take(&mut self, number: u64, scanned: &Scanned, end: u64) {
        let mut segment = Segment {
            number,
            header: scanned.header,
            bytes: 0,
            runs: Vec::new(),
        };
        let mut sequence = scanned.header.first;
        for seen in &scanned.records {
            if let Ok(Record::Carried {
                id,
                verb,
                has_result,
            }) = seen.record
            {
                self.open.insert(id, Open { verb, has_result });
                continue;
            }
            if sequence >= end {
                break;
            }
            // A frame that does not follow the one before begins a stretch of its own.
            segment.bytes = seen.offset as u64;
            segment.took(sequence, seen.end as u64, time_of(&seen.record));
            sequence += 1;
            match &seen.record {
                Ok(Record::Attempted(it)) => {
                    let open = Open {
                        verb: it.verb,
                        has_result: false,
                    };
                    self.open.insert(it.id, open);
                }
                Ok(Record::Ended(it)) if it.phase() == Phase::Result && it.stays_open => {
                    if let Some(open) = self.open.get_mut(&it.id) {
                        open.has_result = true;
                    }
                }
                Ok(Record::Ended(it)) => drop(self.open.remove(&it.id)),
                // Of a later version: it is shipped as it is.
                Ok(Record::Carried { .. }) | Err(_) => {}
            }
        }
        segment.bytes = scanned.end as u64;
        self.next = self.next.max(sequence);
        self.segments.push_back(segment);
    }
}

fn time_of<E>(record: &Result<Record, E>) -> u64 {
    match record {
        Ok(Record::Attempted(it)) => it.time_unix_ms,
        Ok(Record::Ended(it)) => it.time_unix_ms,
        Ok(Record::Carried { .. }) | Err(_) => 0,
    }
}

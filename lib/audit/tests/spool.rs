//! A spool against a disk that crashes: files hold what was synced, and any part of
//! what was not.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};

use culvert_audit::{
    Actor, Attempted, Book, Ended, EventId, Limits, OPEN_MAX, Outcome, Phase, Piece, Place, Record,
    Recovery, Resource, SPOOL_BYTES_MIN, Scanned, Verb, payloads, scan,
};
use culvert_proto::id::RequestId;
use proptest::prelude::*;

fn attempted(number: u64) -> Record {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    let is_exec = number.is_multiple_of(3);
    Record::Attempted(Attempted {
        id: EventId(id),
        time_unix_ms: 1_000 + number,
        request_id: RequestId(id),
        verb: if is_exec { Verb::ExecOpen } else { Verb::Apply },
        actor: Actor {
            sub: "somebody".into(),
            ..Actor::default()
        },
        transport: "tunnel".into(),
        route: "POST /tunnel/a/x".into(),
        cluster: "a".into(),
        resource: Resource::default(),
    })
}

fn ended(id: EventId, verb: Verb, stays_open: bool) -> Record {
    Record::Ended(Ended {
        id,
        time_unix_ms: 5_000,
        verb,
        outcome: Outcome::Success,
        status: 200,
        reason: "finished".into(),
        to_service: 1,
        to_client: 2,
        duration_ms: 3,
        stays_open,
    })
}

/// What the disk holds of a file: durable bytes, and bytes behind them that may be lost.
#[derive(Clone, Default)]
struct File {
    durable: Vec<u8>,
    loose: Vec<u8>,
}

/// A spool, its disk, and what it promised.
struct Rig {
    book: Book,
    files: BTreeMap<u64, File>,
    /// In order: everything that was said to be durable.
    promised: Vec<Record>,
    /// Of which the store has this many.
    stored: Vec<Record>,
    open: Vec<(EventId, Verb, bool)>,
    number: u64,
}

#[derive(Clone, Debug)]
enum Op {
    Attempts(u8),
    End(u8),
    Ship,
    Fail(u8),
    Crash { keep: u16, noise: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1..40_u8).prop_map(Op::Attempts),
        4 => any::<u8>().prop_map(Op::End),
        2 => Just(Op::Ship),
        1 => (1..5_u8).prop_map(Op::Fail),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(keep, noise)| Op::Crash { keep, noise }),
    ]
}

impl Rig {
    fn new() -> Self {
        Self {
            book: Book::new(small()),
            files: BTreeMap::new(),
            promised: Vec::new(),
            stored: Vec::new(),
            open: Vec::new(),
            number: 0,
        }
    }

    fn write(&mut self, records: &[Record], fails: bool) -> bool {
        let pieces: Vec<_> = records.iter().map(|it| Piece::of(it).unwrap()).collect();
        let Ok(place) = self.book.place(&pieces) else {
            assert!(pieces.iter().any(Piece::is_attempt), "an end has a place");
            return false;
        };
        let salt = u32::try_from(self.number).unwrap();
        let bytes = self.book.layout(place, salt, &pieces);
        let (Place::Here { number, .. } | Place::New { number }) = place;
        let file = self.files.entry(number).or_default();
        if let Place::Here { offset, .. } = place {
            assert_eq!(offset, file.durable.len() as u64, "never over something");
        }
        if fails {
            file.loose = bytes;
            if let Some(gone) = self.book.broken(place) {
                self.files.remove(&gone);
            }
            return false;
        }
        file.durable.extend_from_slice(&bytes);
        assert!(file.durable.len() as u64 <= small().segment_bytes);
        self.book.commit(place, salt, &pieces);
        self.promised.extend_from_slice(records);
        true
    }

    fn attempts(&mut self, count: u8, fails: bool) {
        let records: Vec<_> = (0..count)
            .map(|_| {
                self.number += 1;
                attempted(self.number)
            })
            .collect();
        if self.write(&records, fails) {
            let open = records.iter().map(|record| match record {
                Record::Attempted(it) => (it.id, it.verb, false),
                _ => unreachable!("attempts only"),
            });
            self.open.extend(open);
        }
    }

    fn end(&mut self, which: u8) {
        if self.open.is_empty() {
            return;
        }
        let place = usize::from(which) % self.open.len();
        let (id, verb, has_result) = self.open[place];
        if verb == Verb::ExecOpen && !has_result {
            self.open[place].2 = true;
            assert!(self.write(&[ended(id, verb, true)], false));
            return;
        }
        self.open.swap_remove(place);
        let verb = if has_result { Verb::ExecClose } else { verb };
        assert!(self.write(&[ended(id, verb, false)], false));
    }

    /// Sends one stretch from where the store is, and has it acknowledged.
    fn ship(&mut self) -> bool {
        let from = self.book.acked();
        let Some(stretch) = self.book.stretch(from) else {
            assert_eq!(from, self.book.next(), "all of it is found");
            return false;
        };
        let file = &self.files[&stretch.number].durable;
        let range = usize::try_from(stretch.offset).unwrap()..usize::try_from(stretch.end).unwrap();
        let found: Vec<_> = payloads(&file[range], stretch.salt)
            .map(|(_, record)| Record::decode(record).unwrap())
            .filter(|record| !matches!(record, Record::Carried { .. }))
            .skip(usize::try_from(stretch.skip).unwrap())
            .collect();
        assert!(!found.is_empty());
        for gone in self.book.ack(from + found.len() as u64) {
            self.files.remove(&gone);
        }
        self.stored.extend(found);
        true
    }

    /// The process ends; of what was not synced, `keep` bytes and then noise are left.
    fn crash(&mut self, keep: u16, noise: u8, hint: u64) {
        let mut found: Vec<(u64, Scanned)> = Vec::new();
        for (number, file) in &mut self.files {
            let keep = usize::from(keep) % (file.loose.len() + 1);
            let mut whole = file.durable.clone();
            whole.extend_from_slice(&file.loose[..keep]);
            whole.extend(std::iter::repeat_n(noise, usize::from(noise)));
            if let Ok(scanned) = scan(&whole) {
                file.durable = whole;
                file.loose.clear();
                found.push((*number, scanned));
            }
        }
        self.book = recover(&found, hint);
        let mut open: BTreeSet<_> = self.open.drain(..).map(|(id, ..)| id).collect();
        for end in self.book.unknown_ends(9_000) {
            // An attempt that failed to sync may lie there all the same; it is ended too.
            open.remove(&end.id);
            assert_eq!(end.outcome, Outcome::Failure);
            assert!(self.write(&[Record::Ended(end)], false));
        }
        assert!(open.is_empty(), "every promised attempt is ended");
        assert_eq!(self.book.open(), 0);
    }
}

fn small() -> Limits {
    Limits::of(SPOOL_BYTES_MIN)
}

fn recover(found: &[(u64, Scanned)], hint: u64) -> Book {
    let mut recovery = Recovery::new(small());
    for (place, (number, scanned)) in found.iter().enumerate() {
        let next = found.get(place + 1).map(|(_, it)| it.header.first);
        recovery.take(*number, scanned, next);
    }
    recovery.finish(hint)
}

/// What the store keeps: one row for each event and phase.
fn rows(records: &[Record]) -> BTreeMap<(EventId, Phase), Record> {
    let mut rows = BTreeMap::new();
    for record in records {
        let phase = match record {
            Record::Ended(it) => it.phase(),
            _ => Phase::Attempted,
        };
        rows.entry((record.id(), phase))
            .or_insert_with(|| record.clone());
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens, all that was promised reaches the store, and every attempt has an end.
    #[test]
    fn nothing_promised_is_lost(ops in prop::collection::vec(op(), 1..120), lag in 0..50_u64) {
        let mut rig = Rig::new();
        for op in ops {
            match op {
                Op::Attempts(count) => rig.attempts(count, false),
                Op::End(which) => rig.end(which),
                Op::Ship => drop(rig.ship()),
                Op::Fail(count) => rig.attempts(count, true),
                Op::Crash { keep, noise } => {
                    let hint = rig.book.acked().saturating_sub(lag);
                    rig.crash(keep, noise, hint);
                }
            }
        }
        rig.crash(0, 0, 0);
        while rig.ship() {}
        let stored = rows(&rig.stored);
        for (key, record) in rows(&rig.promised) {
            prop_assert_eq!(stored.get(&key), Some(&record));
        }
        for (id, phase) in stored.keys() {
            if *phase == Phase::Attempted {
                prop_assert!(stored.contains_key(&(*id, Phase::Result)), "{} has no end", id);
            }
        }
    }

    /// Damage costs the records that it hits, and no other.
    #[test]
    fn damage_costs_only_what_it_hits(count in 2..60_u8, at: prop::sample::Index, noise: u8) {
        let mut rig = Rig::new();
        rig.attempts(count, false);
        let file = &mut rig.files.get_mut(&1).unwrap().durable;
        let before = scan(file).unwrap();
        let place = at.index(file.len() - 24) + 24;
        file[place] ^= noise | 1;
        let after = scan(file).unwrap();
        let good = |seen: &&culvert_audit::Seen| !(seen.offset..seen.end).contains(&place);
        let kept: Vec<_> = before.records.iter().filter(good).cloned().collect();
        prop_assert_eq!(&after.records, &kept);
        let book = recover(&[(1, after)], 0);
        prop_assert_eq!(book.next(), kept.len() as u64);
        let mut sequence = 0;
        while let Some(stretch) = book.stretch(sequence) {
            let range = usize::try_from(stretch.offset).unwrap()..usize::try_from(stretch.end).unwrap();
            let found = payloads(&rig.files[&1].durable[range], stretch.salt).count();
            sequence += found as u64 - stretch.skip;
        }
        prop_assert_eq!(sequence, kept.len() as u64);
    }
}

#[test]
fn a_full_spool_refuses_attempts_and_takes_every_end() {
    let mut rig = Rig::new();
    while rig.book.open() + 40 <= small().open_max {
        let open = rig.book.open();
        rig.attempts(40, false);
        if rig.book.open() == open {
            break;
        }
    }
    // As many as may be open; now fill it with others that end at once.
    while rig.write(&[attempted(u64::MAX / 2)], false) {
        let end = rig.promised.last().map(Record::id).unwrap();
        assert!(rig.write(&[ended(end, Verb::Apply, false)], false));
    }
    assert!(rig.files.len() > 10, "{} segments", rig.files.len());
    while !rig.open.is_empty() {
        rig.end(0);
    }
    assert_eq!(rig.book.open(), 0);
    while rig.ship() {}
    assert_eq!(rig.book.waiting_bytes(), 0);
    assert_eq!(rig.book.oldest_unix_ms(), None);
    assert_eq!(rig.files.len(), 1, "only the one that is written");
    rig.attempts(1, false);
    assert_eq!(rig.book.open(), 1, "there is room again");
}

#[test]
fn limits_grow_with_the_spool_up_to_a_ceiling() {
    let small = small();
    assert!(small.open_max > 500, "{small:?}");
    let usual = Limits::of(1 << 30);
    assert_eq!(usual.open_max, OPEN_MAX);
    assert_eq!(usual.segment_bytes * usual.segments_max as u64, 1 << 30);
}

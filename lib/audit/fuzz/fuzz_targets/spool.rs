#![no_main]

use culvert_audit::{Limits, Record, Recovery, SPOOL_BYTES_MIN, classify, payloads, scan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // One record has one form.
    if let Ok(record) = Record::decode(data) {
        assert_eq!(record.encode(), data);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let action = classify(true, "POST", text);
        assert!(action.verb.is_some());
    }
    // What recovery finds can be shipped, all of it, and in order.
    let Ok(scanned) = scan(data) else { return };
    let first = scanned.header.first;
    let mut recovery = Recovery::new(Limits::of(SPOOL_BYTES_MIN));
    recovery.take(1, &scanned, None);
    let book = recovery.finish(0);
    let _ = book.unknown_ends(1);
    let mut sequence = first.min(book.next());
    while let Some(stretch) = book.stretch(sequence) {
        let range = stretch.offset as usize..stretch.end as usize;
        let found = payloads(&data[range], stretch.salt);
        let shipped = found.filter(|(_, record)| {
            !matches!(Record::decode(record), Ok(Record::Carried { .. }))
        });
        let count = shipped.count() as u64;
        assert!(count > stretch.skip, "a stretch gets on");
        sequence += count - stretch.skip;
    }
    assert_eq!(sequence, book.next());
});

#![no_main]

use bytes::Bytes;
use culvert_proto::update::{Ack, Report, Snapshot, SnapshotFile, StateMessage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let _ = StateMessage::decode(&bytes);
    let _ = Report::decode(data);
    let _ = Ack::decode(data);
    let _ = SnapshotFile::decode(&bytes);
    // One value has one form: only skipped fields of later versions may be lost.
    if let Ok(snapshot) = Snapshot::decode(data) {
        let again = snapshot.encode();
        assert!(again.len() <= data.len());
        assert!(again.len() < data.len() || again == data);
        assert_eq!(Snapshot::decode(&again), Ok(snapshot));
    }
});

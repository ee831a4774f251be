#![no_main]

use bytes::Bytes;
use culvert_proto::update::{Ack, Report, SignedFrame, Snapshot, StateMessage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::copy_from_slice(data);
    let _ = StateMessage::decode(&bytes);
    let _ = Report::decode(data);
    let _ = Ack::decode(data);
    while let Ok(Some(_)) = SignedFrame::take(&mut bytes) {}
    // One value has one form: only skipped fields of later versions may be lost.
    if let Ok(snapshot) = Snapshot::decode(data) {
        let again = snapshot.encode();
        assert!(again.len() <= data.len());
        assert!(again.len() < data.len() || again == data);
        assert_eq!(Snapshot::decode(&again), Ok(snapshot));
    }
});

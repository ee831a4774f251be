//! The bytes of version 1, which files of released versions hold.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use culvert_audit::{
    Actor, Attempted, DecodeError, Ended, EventId, Header, Outcome, RECORD_BYTES_MAX, Record,
    Resource, Verb, frame, scan,
};
use culvert_proto::id::RequestId;
use proptest::prelude::*;

const GOLDEN: &str = include_str!("golden/records.txt");

fn examples() -> Vec<(&'static str, Record)> {
    let id = EventId([7; 16]);
    let attempted = Attempted {
        id,
        time_unix_ms: 0x0102_0304_0506,
        request_id: RequestId([9; 16]),
        verb: Verb::SecretReveal,
        actor: Actor {
            sub: "u-1".into(),
            email: "a@b.example".into(),
            groups: vec!["g1".into(), "g2".into()],
        },
        transport: "browser".into(),
        route: "GET /c/prod/api/v1/namespaces/n/secrets/s".into(),
        cluster: "prod".into(),
        resource: Resource {
            group: String::new(),
            version: "v1".into(),
            resource: "secrets".into(),
            namespace: "n".into(),
            name: "s".into(),
        },
    };
    let ended = Ended {
        id,
        time_unix_ms: 0x0102_0304_0507,
        verb: Verb::SecretReveal,
        outcome: Outcome::Denied,
        status: 403,
        reason: "finished".into(),
        to_service: 1,
        to_client: 2,
        duration_ms: 3,
        stays_open: false,
    };
    let carried = Record::Carried {
        id,
        verb: Verb::ExecOpen,
        has_result: true,
    };
    vec![
        ("attempted", Record::Attempted(attempted)),
        ("ended", Record::Ended(ended)),
        ("carried", carried),
    ]
}

fn segment() -> Vec<u8> {
    let header = Header { first: 5, salt: 6 };
    let mut bytes = header.encode().to_vec();
    for (_, record) in examples() {
        frame(&mut bytes, header.salt, &record.encode());
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `CULVERT_BLESS=1` writes the file anew: only for a new version.
#[test]
fn bytes_of_version_1() {
    let mut text = String::new();
    for (name, record) in examples() {
        text += &format!("{name} {}\n", hex(&record.encode()));
    }
    text += &format!("segment {}\n", hex(&segment()));
    if std::env::var_os("CULVERT_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/records.txt");
        std::fs::write(path, &text).unwrap();
        return;
    }
    assert_eq!(text, GOLDEN);
    let scanned = scan(&segment()).unwrap();
    let found: Vec<_> = scanned
        .records
        .into_iter()
        .map(|it| it.record.unwrap())
        .collect();
    let put: Vec<_> = examples().into_iter().map(|(_, record)| record).collect();
    assert_eq!(found, put);
}

#[test]
fn a_later_version_is_told_from_damage() {
    let mut bytes = examples()[0].1.encode();
    bytes[0] = 2;
    assert_eq!(Record::decode(&bytes), Err(DecodeError::Version(2)));
    bytes[0] = 1;
    bytes[1] = 77;
    let unknown = DecodeError::Unknown {
        what: "kind",
        code: 77,
    };
    assert_eq!(Record::decode(&bytes), Err(unknown));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,20}", "\\PC{0,800}"]
}

prop_compose! {
    fn any_attempted()(
        ids in any::<([u8; 16], [u8; 16], u64)>(),
        verb in prop::sample::select(Verb::ALL),
        texts in prop::collection::vec(text(), 10),
        groups in prop::collection::vec(text(), 0..80),
    ) -> Attempted {
        let mut texts = texts.into_iter();
        let mut next = || texts.next().unwrap();
        Attempted {
            id: EventId(ids.0),
            time_unix_ms: ids.2,
            request_id: RequestId(ids.1),
            verb,
            transport: next(),
            route: next(),
            cluster: next(),
            resource: Resource {
                group: next(),
                version: next(),
                resource: next(),
                namespace: next(),
                name: next(),
            },
            actor: Actor { sub: next(), email: next(), groups },
        }
    }
}

proptest! {
    /// Long texts are cut; what was read once is written the same.
    #[test]
    fn records_fit_and_are_canonical(attempted in any_attempted()) {
        let bytes = Record::Attempted(attempted).encode();
        prop_assert!(bytes.len() <= RECORD_BYTES_MAX, "{} bytes", bytes.len());
        let read = Record::decode(&bytes).unwrap();
        prop_assert_eq!(read.encode(), bytes);
    }

    #[test]
    fn bytes_never_panic(bytes: Vec<u8>) {
        if let Ok(record) = Record::decode(&bytes) {
            prop_assert_eq!(record.encode(), bytes);
        }
    }

    #[test]
    fn any_tail_costs_no_good_record(tail: Vec<u8>, cut in 0..200_usize) {
        let mut bytes = segment();
        let whole = scan(&bytes).unwrap();
        bytes.extend_from_slice(&tail);
        prop_assert_eq!(&scan(&bytes).unwrap().records[..3], &whole.records[..]);
        let mut torn = segment();
        torn.truncate(torn.len() - cut.min(torn.len() - 24));
        let found = scan(&torn).unwrap();
        let kept = whole.records.iter().filter(|seen| seen.end <= torn.len()).count();
        prop_assert_eq!(found.records.len(), kept);
        prop_assert!(found.damaged.is_empty());
    }
}

//! What two sides and a relay say to each other: golden bytes, any split, any garbage.

use culvert_proto::pair::*;
use proptest::prelude::*;

fn preface(proof: ProofKind) -> Preface {
    let (x, leaf, signature) = match proof {
        ProofKind::Open => (0, 0, 0),
        ProofKind::Key => (32, 0, 64),
        ProofKind::Certificate => (600, 580, 71),
    };
    Preface {
        role: Role::Broker,
        proof,
        id: RendezvousId([0x1D; 32]),
        nonce: [0x40; 16],
        x: vec![0x58; x],
        leaf: vec![0x4C; leaf],
        signature: vec![0x53; signature],
    }
}

#[test]
fn golden_bytes_of_a_hello() {
    let hello = RelayHello {
        accepts_open: true,
        challenge: [0xC4; 32],
    };
    let bytes = hello.encode();
    assert_eq!(bytes[..8], *b"CVRH\x01\x01\x00\x00");
    assert_eq!(bytes[8..], [0xC4; 32]);
    assert_eq!(RelayHello::decode(&bytes), Ok(hello));
    let closed = RelayHello {
        accepts_open: false,
        ..hello
    };
    assert_eq!(closed.encode()[..8], *b"CVRH\x01\x00\x00\x00");
    let mut ssh = *b"SSH-2.0-OpenSSH_9.2 is no relay at all, ";
    assert_eq!(
        RelayHello::decode(&ssh),
        Err(RelayHelloError::Magic(*b"SSH-"))
    );
    ssh[..5].copy_from_slice(b"CVRH\x02");
    assert_eq!(RelayHello::decode(&ssh), Err(RelayHelloError::Version(2)));
}

#[test]
fn golden_bytes_of_prefaces() {
    let bytes = preface(ProofKind::Certificate).encode();
    assert_eq!(bytes[..8], *b"CVRL\x01\x02\x02\x00");
    assert_eq!(bytes[8..40], [0x1D; 32]);
    assert_eq!(bytes[40..56], [0x40; 16]);
    assert_eq!(bytes[56..64], [0x02, 0x58, 0x02, 0x44, 0x00, 0x47, 0, 0]);
    assert_eq!(bytes[64..664], [0x58; 600]);
    assert_eq!(bytes[664..1244], [0x4C; 580]);
    assert_eq!(bytes[1244..], [0x53; 71]);
    let bytes = preface(ProofKind::Key).encode();
    assert_eq!(bytes.len(), 64 + 32 + 64);
    assert_eq!(bytes[56..64], [0, 32, 0, 0, 0, 64, 0, 0]);
    let mut bridge = preface(ProofKind::Open);
    bridge.role = Role::Bridge;
    let bytes = bridge.encode();
    assert_eq!(bytes[..8], *b"CVRL\x01\x01\x00\x00");
    assert_eq!((bytes.len(), &bytes[56..]), (64, &[0; 8][..]));
    for proof in ProofKind::ALL {
        assert_eq!(
            Preface::decode(&preface(proof).encode()),
            Ok(preface(proof))
        );
    }
    assert_eq!(PREFACE_BYTES_MAX, 4_288);
}

#[test]
fn golden_bytes_of_replies() {
    let codes = [0x01, 0x02, 0x10, 0x12, 0x13, 0x14, 0x15, 0x16];
    for (code, byte) in ReplyCode::ALL.into_iter().zip(codes) {
        let reply = Reply {
            code,
            retry_after_s: 0x0102,
        };
        let [.., high, low] = reply.encode();
        assert_eq!(reply.encode()[..6], [b'C', b'V', b'R', b'R', byte, 0]);
        assert_eq!([high, low], [1, 2]);
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        assert_eq!(code.is_end(), byte >= 0x10, "{code}");
    }
    assert_eq!(
        Reply::decode(b"CVRR\x11\0\0\0"),
        Err(ReplyError::Code(0x11))
    );
    assert_eq!(
        Reply::decode(b"HTTP\x01\0\0\0"),
        Err(ReplyError::Magic(*b"HTTP"))
    );
}

#[test]
fn the_signature_covers_protocol_challenge_and_a_head_that_states_its_length() {
    let mut preface = preface(ProofKind::Certificate);
    let head = preface.head();
    let signed = signed_bytes(&[0xC4; 32], &head);
    assert_eq!(signed[..16], *b"culvert-relay/1\0");
    assert_eq!(signed[16..48], [0xC4; 32]);
    assert_eq!(signed[48..], head);
    preface.signature.clear();
    assert_ne!(preface.head(), head);
    assert_eq!(preface.head_for(71), head);
}

/// The first byte that gives it away is enough: nobody waits for 64.
#[test]
fn what_is_no_preface_is_refused_with_its_first_wrong_byte() {
    let refused_at = |bytes: &[u8]| {
        let mut reader = PrefaceReader::default();
        let mut pieces = bytes.chunks(1).enumerate();
        pieces.find_map(|(at, mut piece)| Some((at, reader.feed(&mut piece).err()?)))
    };
    assert_eq!(
        refused_at(b"GET / HTTP/1.1"),
        Some((0, PrefaceError::Magic(b'G', 0)))
    );
    assert_eq!(
        refused_at(b"CVDC\x01"),
        Some((2, PrefaceError::Magic(b'D', 2)))
    );
    assert_eq!(refused_at(b"CVRL\x02"), Some((4, PrefaceError::Version(2))));
    assert_eq!(
        refused_at(b"CVRL\x01\x03"),
        Some((5, PrefaceError::Role(3)))
    );
    assert_eq!(
        refused_at(b"CVRL\x01\x01\x03"),
        Some((6, PrefaceError::Proof(3)))
    );
    assert_eq!(
        refused_at(b"CVRL\x01\x01\x00\x01"),
        Some((7, PrefaceError::Reserved(7)))
    );
    let mut bytes = preface(ProofKind::Open).encode();
    bytes[63] = 1;
    assert_eq!(refused_at(&bytes), Some((63, PrefaceError::Reserved(63))));
}

#[test]
fn lengths_at_below_and_above_what_goes_with_the_proof() {
    let with = |proof, x: usize, leaf: usize, signature: usize| {
        let bytes = Preface {
            x: vec![1; x],
            leaf: vec![2; leaf],
            signature: vec![3; signature],
            ..preface(proof)
        };
        Preface::decode(&bytes.encode()).is_ok()
    };
    use ProofKind::{Certificate, Key, Open};
    assert!(with(Open, 0, 0, 0));
    assert!(!with(Open, 1, 0, 0) && !with(Open, 0, 1, 0) && !with(Open, 0, 0, 1));
    assert!(with(Key, 32, 0, 64));
    assert!(!with(Key, 31, 0, 64) && !with(Key, 33, 0, 64) && !with(Key, 0, 0, 64));
    assert!(!with(Key, 32, 1, 64) && !with(Key, 32, 0, 63) && !with(Key, 32, 0, 65));
    assert!(with(Certificate, 1, 1, 1) && with(Certificate, 2_047, 2_047, 127));
    assert!(with(Certificate, 2_048, 2_048, 128));
    assert!(!with(Certificate, 2_049, 2_048, 128) && !with(Certificate, 2_048, 2_049, 128));
    assert!(!with(Certificate, 2_048, 2_048, 129) && !with(Certificate, 0, 1, 1));
    assert!(!with(Certificate, 1, 0, 1) && !with(Certificate, 1, 1, 0));
    assert!(!with(Certificate, 70_000, 1, 1));
}

fn any_preface() -> impl Strategy<Value = Preface> {
    let bytes = |most| proptest::collection::vec(any::<u8>(), 1..=most);
    let parts = prop_oneof![
        Just((ProofKind::Open, vec![], vec![], vec![])),
        (any::<[u8; 32]>(), any::<[[u8; 32]; 2]>()).prop_map(|(x, s)| (
            ProofKind::Key,
            x.to_vec(),
            vec![],
            s.concat()
        )),
        (
            bytes(X_BYTES_MAX),
            bytes(LEAF_BYTES_MAX),
            bytes(SIGNATURE_BYTES_MAX)
        )
            .prop_map(|(x, leaf, s)| (ProofKind::Certificate, x, leaf, s)),
    ];
    let role = prop_oneof![Just(Role::Bridge), Just(Role::Broker)];
    (role, parts, any::<[u8; 32]>(), any::<[u8; 16]>()).prop_map(
        |(role, (proof, x, leaf, signature), id, nonce)| Preface {
            role,
            proof,
            id: RendezvousId(id),
            nonce,
            x,
            leaf,
            signature,
        },
    )
}

proptest! {
    #[test]
    fn a_preface_is_read_from_any_pieces_and_what_follows_is_left(
        preface in any_preface(),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        cut in proptest::collection::vec(1usize..700, 1..12),
    ) {
        let sent = [&preface.encode()[..], &tail].concat();
        let mut reader = PrefaceReader::default();
        let (mut at, mut cuts) = (0, cut.iter().cycle());
        let read = loop {
            let piece = *cuts.next().unwrap();
            let mut input = &sent[at..(at + piece).min(sent.len())];
            let before = input.len();
            let read = reader.feed(&mut input);
            at += before - input.len();
            match read {
                Ok(None) => prop_assert!(input.is_empty(), "all is taken before the end"),
                Ok(Some(read)) => break read,
                Err(why) => panic!("{why}"),
            }
        };
        prop_assert_eq!(&read, &preface);
        prop_assert_eq!(&sent[at..], &tail[..]);
        prop_assert_eq!(Preface::decode(&sent[..at]), Ok(preface));
    }

    /// Whoever reads `wanted` bytes and no more never has one left over.
    #[test]
    fn wanted_bytes_never_reach_beyond(preface in any_preface()) {
        let sent = preface.encode();
        let mut reader = PrefaceReader::default();
        let mut at = 0;
        loop {
            let wanted = reader.wanted();
            prop_assert!(wanted > 0 && at + wanted <= sent.len());
            let mut input = &sent[at..at + wanted];
            at += wanted;
            if let Some(read) = reader.feed(&mut input).unwrap() {
                prop_assert_eq!(read, preface);
                prop_assert_eq!(at, sent.len());
                break;
            }
        }
    }

    #[test]
    fn a_truncated_preface_is_none(preface in any_preface(), missing in 1usize..64) {
        let sent = preface.encode();
        let short = &sent[..sent.len() - missing.min(sent.len())];
        prop_assert_eq!(Preface::decode(short), Err(None));
        let mut reader = PrefaceReader::default();
        prop_assert_eq!(reader.feed(&mut &*short), Ok(None));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..5_000)) {
        let _ = Preface::decode(&bytes);
        let _ = PrefaceReader::default().feed(&mut &*bytes);
        let near = [b"CVRL\x01\x01\x02\x00", &bytes[..]].concat();
        let _ = PrefaceReader::default().feed(&mut &*near);
        if let Some(begin) = bytes.first_chunk() {
            let _ = RelayHello::decode(begin);
        }
        if let Some(begin) = bytes.first_chunk() {
            let _ = Reply::decode(begin);
        }
    }

    #[test]
    fn a_changed_bit_of_the_head_is_refused_or_another_preface(
        preface in any_preface(),
        at in 0usize..64,
        bit in 0u8..8,
    ) {
        let mut sent = preface.encode();
        sent[at] ^= 1 << bit;
        prop_assert_ne!(Preface::decode(&sent), Ok(preface));
    }
}

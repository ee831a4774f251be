use bytes::Bytes;
use culvert_proto::channel::Form;
use culvert_proto::control::*;
use culvert_proto::id::Epoch;
use culvert_proto::open::DialCode;
use culvert_proto::token::{Digest, TokenText};
use proptest::collection::vec;
use proptest::prelude::*;

/// Messages have no `Debug` with content, so a strategy yields their bytes; equality is equality
/// of bytes, because the encoding is canonical.
fn message_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<u64>().prop_map(|nonce| ControlMessage::Beat { nonce }),
        any::<u64>().prop_map(|nonce| ControlMessage::Echo { nonce }),
        facts().prop_map(ControlMessage::Hello),
        (any::<u64>(), vec("[ -~]{0,30}", 0..5)).prop_map(|(epoch, targets)| {
            let targets = targets.into_iter().map(Into::into).collect();
            ControlMessage::Grant(Grant {
                epoch: Epoch(epoch),
                targets,
            })
        }),
        (
            any::<u32>(),
            any::<bool>(),
            vec(any::<([u8; 16], [u8; 32])>(), 0..5)
        )
            .prop_map(|(ttl_s, plain, tickets)| {
                let form = if plain { Form::Plain } else { Form::Tls };
                let tickets = tickets
                    .into_iter()
                    .map(|(id, key)| Ticket { id, key })
                    .collect();
                ControlMessage::Tickets(Tickets {
                    ttl_s,
                    form,
                    tickets,
                })
            }),
        (any::<[u8; 16]>(), 1u8..10, "\\PC{0,50}").prop_map(|(id, code, reason)| {
            let code = DialCode::from_u8(code).unwrap();
            ControlMessage::ChannelFail(ChannelFail { id, code, reason })
        }),
        (any::<(u32, u32)>(), vec("[ -~]{0,30}", 0..5)).prop_map(
            |((within, deadline), addresses)| {
                ControlMessage::Drain(Drain {
                    reconnect_within_ms: within,
                    deadline_ms: deadline,
                    addresses,
                })
            }
        ),
        (any::<u64>(), "[!-~]{16,100}").prop_map(|(not_before_unix_s, token)| {
            let token = TokenText::new(&token).unwrap();
            ControlMessage::Rotate(Rotate {
                not_before_unix_s,
                token,
            })
        }),
        any::<[u8; 32]>().prop_map(|d| ControlMessage::Rotated { digest: Digest(d) }),
        any::<Vec<u8>>().prop_map(|csr| ControlMessage::Renew { csr }),
        ("\\PC{0,50}", "\\PC{0,50}")
            .prop_map(|(chain, ca_bundle)| ControlMessage::Cert { chain, ca_bundle }),
        (0u8..7, "\\PC{0,50}").prop_map(|(reason, text)| {
            let reason = ByeReason::from_u8(reason).unwrap();
            ControlMessage::Bye(Bye { reason, text })
        }),
        stats().prop_map(ControlMessage::Stats),
    ]
    .prop_map(|message| message.encode().unwrap().to_vec())
}

fn facts() -> impl Strategy<Value = AgentFacts> {
    let texts = ("[ -~]{0,30}", "[ -~]{0,30}", "[ -~]{0,30}");
    let labels = vec(("[a-z]{0,9}", "\\PC{0,9}"), 0..5);
    (
        texts,
        vec("[a-z]{0,30}", 0..5),
        any::<Option<u32>>(),
        labels,
    )
        .prop_map(
            |((version, region, platform), targets, streams_max, labels)| AgentFacts {
                version,
                targets,
                streams_max,
                region,
                labels,
                platform,
            },
        )
}

fn stats() -> impl Strategy<Value = AgentStats> {
    (
        any::<[Option<u32>; 5]>(),
        any::<Option<u64>>(),
        "[a-z,]{0,30}",
    )
        .prop_map(
            |(
                [dial_p50_us, dial_p99_us, pool_idle, pool_wanted, streams],
                target_errors,
                features,
            )| {
                AgentStats {
                    dial_p50_us,
                    dial_p99_us,
                    target_errors,
                    pool_idle,
                    pool_wanted,
                    streams,
                    kernel_features: features,
                }
            },
        )
}

/// Feeds `wire` in pieces and returns the bytes of every message that came out.
fn feed(wire: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, ControlError> {
    let mut decoder = ControlDecoder::new();
    let mut out = Vec::new();
    for piece in wire.chunks(piece) {
        let mut piece = Bytes::copy_from_slice(piece);
        while let Some(message) = decoder.push(&mut piece)? {
            out.push(message.encode().unwrap().to_vec());
        }
    }
    Ok(out)
}

proptest! {
    #[test]
    fn messages_survive_any_split(messages in vec(message_bytes(), 0..6), piece in 1usize..90) {
        prop_assert_eq!(feed(&messages.concat(), piece), Ok(messages));
    }

    #[test]
    fn decoder_never_panics(bytes: Vec<u8>, piece in 1usize..20) {
        let _ = feed(&bytes, piece);
    }

    /// A known type over a random body, and a valid message with one byte changed.
    #[test]
    fn hostile_bodies(kind in 0u8..16, flags in 0u8..2, body in vec(any::<u8>(), 0..120)) {
        let mut wire = vec![kind, flags];
        wire.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        wire.extend_from_slice(&body);
        let _ = feed(&wire, 50);
    }

    #[test]
    fn one_changed_byte(mut wire in message_bytes(), place: usize, byte: u8) {
        let place = place % wire.len();
        wire[place] = byte;
        let _ = feed(&wire, 50);
    }
}

#[test]
fn unknown_messages_are_skipped_unless_critical() {
    let beat = ControlMessage::Beat { nonce: 1 }.encode().unwrap();
    let mut wire = vec![0xEE, 0, 0, 3, 1, 2, 3];
    wire.extend_from_slice(&beat);
    assert_eq!(feed(&wire, 100), Ok(vec![beat.to_vec()]));
    wire[1] = 1;
    assert_eq!(feed(&wire, 100), Err(ControlError::UnknownCritical(0xEE)));
}

#[test]
fn limits() {
    for (announced, fits) in [(16_379u16, true), (16_380, true), (16_381, false)] {
        let [high, low] = announced.to_be_bytes();
        let read = feed(&[0xEE, 0, high, low], 4);
        assert_eq!(read.is_ok(), fits, "{announced}");
    }
    for (length, fits) in [(16_379, true), (16_380, true), (16_381, false)] {
        let encoded = ControlMessage::Renew {
            csr: vec![0; length],
        }
        .encode();
        assert_eq!(encoded.is_ok(), fits, "{length}");
    }
    for (count, fits) in [(255usize, true), (256, true), (257, false)] {
        let targets = vec!["t".into(); count];
        let encoded = ControlMessage::Grant(Grant {
            epoch: Epoch(1),
            targets,
        })
        .encode();
        assert_eq!(encoded.is_ok(), fits, "{count} targets");
    }
    for (count, fits) in [(31usize, true), (32, true), (33, false)] {
        let labels = vec![("a".into(), "b".into()); count];
        let facts = AgentFacts {
            labels,
            ..AgentFacts::default()
        };
        assert_eq!(
            ControlMessage::Hello(facts).encode().is_ok(),
            fits,
            "{count} labels"
        );
    }
    for (length, fits) in [(254usize, true), (255, true), (256, false)] {
        let text = "x".repeat(length);
        let facts = AgentFacts {
            region: text.clone(),
            ..AgentFacts::default()
        };
        let hello = ControlMessage::Hello(facts).encode();
        assert_eq!(hello.is_ok(), fits, "region of {length}");
        assert!(hello.is_err() || feed(&hello.unwrap(), 999).is_ok());
        let targets = vec![text.into()];
        let grant = ControlMessage::Grant(Grant {
            epoch: Epoch(1),
            targets,
        });
        assert_eq!(grant.encode().is_ok(), fits, "target of {length}");
    }
    let addresses = vec![String::from("a"); DRAIN_ADDRESSES_MAX + 1];
    assert!(
        ControlMessage::Drain(Drain {
            addresses,
            ..Drain::default()
        })
        .encode()
        .is_err()
    );
}

#[test]
fn malformed_bodies_are_refused() {
    for wire in [
        &b"\x01\0\0\x07\0\0\0\0\0\0\0"[..],
        b"\x01\0\0\x09\0\0\0\0\0\0\0\0\0",
        b"\x04\0\0\x0b\0\0\0\0\0\0\0\x01\0\x01a",
        b"\x06\0\0\x11aaaaaaaaaaaaaaaa\0",
        b"\x08\0\0\x09\0\0\0\0\0\0\0\0a",
        b"\x09\0\0\x01a",
        b"\x0c\0\0\0",
        b"\x03\0\0\x08\x01\0\x01a\x01\0\x01b",
        b"\x0d\0\0\x0e\x06\0\x04\0\0\0\x01\x06\0\x04\0\0\0\x01",
    ] {
        assert_eq!(
            feed(wire, 100),
            Err(ControlError::Body(wire[0])),
            "{wire:?}"
        );
    }
    let later = feed(b"\x0d\0\0\x08\xc8\0\x01a\xc8\0\x01b", 100).unwrap();
    assert_eq!(later.len(), 1, "fields of later versions may repeat");
    // A reason of a later version still ends the session.
    let bye = feed(b"\x0c\0\0\x01\x63", 100).unwrap();
    assert_eq!(bye, [b"\x0c\0\0\x01\0".to_vec()]);
}

#[test]
fn secrets_do_not_show() {
    let token = TokenText::new("a-shared-secret-of-a-file").unwrap();
    let rotate = ControlMessage::Rotate(Rotate {
        not_before_unix_s: 1,
        token,
    });
    assert_eq!(format!("{rotate:?}"), "ROTATE");
}

use bytes::{Bytes, BytesMut};
use culvert_proto::channel::{ChannelOffer, Form};
use culvert_proto::close::CloseReason;
use culvert_proto::control::Ticket;
use culvert_proto::id::RequestId;
use culvert_proto::limits::{DIAL_REASON_BYTES_MAX, STREAM_HEADER_BYTES_MAX};
use culvert_proto::open::*;
use proptest::option::of;
use proptest::prelude::*;

fn header() -> impl Strategy<Value = StreamHeader> {
    let kind = prop_oneof![
        Just(StreamKind::Control),
        Just(StreamKind::Http),
        Just(StreamKind::Tcp)
    ];
    let text = |max| of(proptest::string::string_regex(max).unwrap());
    let texts = (
        text("[ -~]{0,255}"),
        text("[0-9a-f-]{55}"),
        text("\\PC{0,60}"),
        text("\\PC{0,60}"),
    );
    let offer = (any::<([u8; 16], [u8; 32])>(), any::<bool>()).prop_map(|((id, key), plain)| {
        let form = if plain { Form::Plain } else { Form::Tls };
        let ticket = Ticket { id, key };
        ChannelOffer { form, ticket }
    });
    let offer = (of(offer), of(0..=16_384_u16));
    let plain = any::<(bool, Option<[u8; 16]>, Option<u32>)>();
    (kind, plain, texts, offer).prop_map(
        |(kind, plain, (target, trace, client, principal), (offer, early_bytes))| {
            let (payload_follows, id, dial_deadline_ms) = plain;
            StreamHeader {
                kind,
                payload_follows,
                target: target.map(Into::into),
                request_id: id.map(RequestId),
                traceparent: trace.map(Into::into),
                dial_deadline_ms,
                client_addr: client.map(Into::into),
                principal: principal.map(Into::into),
                offer,
                early_bytes,
            }
        },
    )
}

/// Feeds `wire` cut at `cuts` and returns what came out and what was left over.
fn split_feed<T, E>(
    wire: &[u8],
    cuts: &[usize],
    mut push: impl FnMut(&mut Bytes) -> Result<Option<T>, E>,
) -> Result<Option<(T, Vec<u8>)>, E> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).collect();
    cuts.extend([0, wire.len()]);
    cuts.sort_unstable();
    for pair in cuts.windows(2) {
        let mut piece = Bytes::copy_from_slice(&wire[pair[0]..pair[1]]);
        if let Some(value) = push(&mut piece)? {
            let mut rest = piece.to_vec();
            rest.extend_from_slice(&wire[pair[1]..]);
            return Ok(Some((value, rest)));
        }
        assert!(piece.is_empty(), "a decoder that wants more has taken all");
    }
    Ok(None)
}

proptest! {
    #[test]
    fn header_survives_any_split(
        header in header(),
        payload: Vec<u8>,
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let mut wire = header.encode().unwrap().to_vec();
        wire.extend_from_slice(&payload);
        let mut decoder = StreamHeaderDecoder::new();
        let (read, rest) = split_feed(&wire, &cuts, |b| decoder.push(b)).unwrap().unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!(rest, payload);
    }

    #[test]
    fn header_decoder_never_panics_and_is_canonical(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let mut decoder = StreamHeaderDecoder::new();
        if let Ok(Some((header, _))) = split_feed(&bytes, &cuts, |b| decoder.push(b)) {
            let again = header.encode().unwrap();
            let mut decoder = StreamHeaderDecoder::new();
            prop_assert_eq!(decoder.push(&mut again.clone()).unwrap(), Some(header));
        }
    }

    /// Structure-aware garbage: a plausible head over random TLVs.
    #[test]
    fn header_decoder_takes_hostile_tlvs(
        kind in 0u8..4, flags in 0u8..4, announced in 0u16..5000,
        tlvs in proptest::collection::vec((0u8..9, any::<u16>(), any::<Vec<u8>>()), 0..6),
    ) {
        let mut wire = vec![kind, flags];
        wire.extend_from_slice(&announced.to_be_bytes());
        for (field, length, value) in tlvs {
            wire.push(field);
            let honest = u16::try_from(value.len()).unwrap();
            let length = if length % 3 == 0 { length } else { honest };
            wire.extend_from_slice(&length.to_be_bytes());
            wire.extend_from_slice(&value);
        }
        let _ = StreamHeaderDecoder::new().push(&mut Bytes::from(wire));
    }

    #[test]
    fn dial_answer_survives_any_split(
        code in 0u8..10, reason in "\\PC{0,100}", tail: Vec<u8>,
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        let answer = DialAnswer { code: DialCode::from_u8(code).unwrap(), reason };
        let mut wire = answer.encode().to_vec();
        wire.extend_from_slice(&tail);
        let mut decoder = DialAnswerDecoder::new();
        let (read, rest) = split_feed(&wire, &cuts, |b| decoder.push(b)).unwrap().unwrap();
        prop_assert_eq!(read, answer);
        prop_assert_eq!(rest, tail);
    }

    #[test]
    fn dial_answer_decoder_never_panics(bytes: Vec<u8>, cuts: Vec<usize>) {
        let mut decoder = DialAnswerDecoder::new();
        let _ = split_feed(&bytes, &cuts, |b| decoder.push(b));
    }
}

#[test]
fn limits_at_n_minus_one_n_and_n_plus_one() {
    for (length, fits) in [(254, true), (255, true), (256, false)] {
        let mut header = StreamHeader::new(StreamKind::Tcp);
        header.target = Some("x".repeat(length).into());
        assert_eq!(header.encode().is_ok(), fits, "target of {length}");
    }
    let max = STREAM_HEADER_BYTES_MAX;
    for (announced, fits) in [(max - 1, true), (max, true), (max + 1, false)] {
        let mut wire = BytesMut::from(&[1u8, 0][..]);
        wire.extend_from_slice(&announced.to_be_bytes());
        let read = StreamHeaderDecoder::new().push(&mut wire.freeze());
        assert_eq!(read.is_ok(), fits, "block of {announced}");
    }
    let max = DIAL_REASON_BYTES_MAX;
    for (announced, fits) in [(max - 1, true), (max, true), (max + 1, false)] {
        let mut wire = BytesMut::from(&[1u8, 0][..]);
        wire.extend_from_slice(&announced.to_be_bytes());
        let read = DialAnswerDecoder::new().push(&mut wire.freeze());
        assert_eq!(read.is_ok(), fits, "reason of {announced}");
    }
    let long = DialAnswer {
        code: DialCode::Tls,
        reason: "\u{e9}".repeat(400),
    };
    let mut wire = long.encode();
    let read = DialAnswerDecoder::new().push(&mut wire).unwrap().unwrap();
    assert_eq!(read.reason, "\u{e9}".repeat(256), "cut between characters");
}

#[test]
fn refusals_of_the_header() {
    let read = |wire: &[u8]| StreamHeaderDecoder::new().push(&mut Bytes::copy_from_slice(wire));
    assert_eq!(read(&[3, 0, 0, 0]), Err(OpenError::Kind(3)));
    assert_eq!(read(&[1, 2, 0, 0]), Err(OpenError::Reserved(2)));
    assert_eq!(read(&[1, 0, 0, 2, 1, 0]), Err(OpenError::Short));
    assert_eq!(
        read(b"\x01\0\0\x08\x01\0\x01a\x01\0\x01b"),
        Err(OpenError::Field { field: 1 })
    );
    assert_eq!(
        read(b"\x01\0\0\x04\x01\0\x01\xff"),
        Err(OpenError::Field { field: 1 })
    );
    assert_eq!(
        read(b"\x01\0\0\x04\x02\0\x01a"),
        Err(OpenError::Field { field: 2 })
    );
    assert_eq!(
        read(b"\x01\0\0\x04\x03\0\x01a"),
        Err(OpenError::Field { field: 3 })
    );
    assert_eq!(
        read(b"\x01\0\0\x04\x04\0\x01a"),
        Err(OpenError::Field { field: 4 })
    );
    let skipped = read(b"\x01\0\0\x04\xc8\0\x01a").unwrap().unwrap();
    assert_eq!(
        skipped,
        StreamHeader::new(StreamKind::Http),
        "unknown fields are skipped"
    );
    let mut header = StreamHeader::new(StreamKind::Http);
    header.traceparent = Some("short".into());
    assert_eq!(header.encode(), Err(EncodeError::Traceparent));
    let dial = |wire: &[u8]| DialAnswerDecoder::new().push(&mut Bytes::copy_from_slice(wire));
    assert_eq!(dial(&[10, 0, 0, 0]), Err(OpenError::DialCode(10)));
    assert_eq!(dial(&[0, 1, 0, 0]), Err(OpenError::Reserved(1)));
}

#[test]
fn dial_codes_have_their_reasons() {
    assert_eq!(DialCode::Connected.close_reason(), None);
    assert_eq!(
        DialCode::Timeout.close_reason(),
        Some(CloseReason::DialTimeout)
    );
    assert_eq!(
        DialCode::UnknownTarget.close_reason(),
        Some(CloseReason::TargetNotAllowed)
    );
    assert_eq!(DialCode::from_u8(10), None);
}

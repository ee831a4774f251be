use super::*;
use proptest::prelude::*;

/// Feeds `wire` in pieces of `step` bytes and returns head, body, trailers.
fn read(
    wire: &[u8],
    step: usize,
    to_head: bool,
    upgrade: bool,
) -> Result<(Head, Vec<u8>, Option<HeaderMap>), BadResponse> {
    let mut reader = ResponseReader::new(to_head, upgrade);
    let (mut head, mut body, mut trailers) = (None, Vec::new(), None);
    let mut pieces = wire.chunks(step.max(1));
    loop {
        match reader.next()? {
            Step::NeedMore => match pieces.next() {
                Some(piece) => reader.push(Bytes::copy_from_slice(piece)),
                None => {
                    reader.end()?;
                    break;
                }
            },
            Step::Head(found) => head = Some(found),
            Step::Data(data) => body.extend_from_slice(&data),
            Step::Trailers(found) => trailers = Some(found),
            Step::End => break,
        }
    }
    Ok((head.expect("a head before the end"), body, trailers))
}

const CHUNKED: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\n\
    Transfer-Encoding: chunked\r\nX-A: 1\r\n\r\n5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nx-sum: 9\r\n\r\n";

#[test]
fn chunked_with_trailers_reads_the_same_at_every_split() {
    for step in 1..CHUNKED.len() {
        let (head, body, trailers) = read(CHUNKED, step, false, false).unwrap();
        assert_eq!(head.status, 200, "pieces of {step}");
        assert_eq!(head.length, None);
        assert_eq!(body, b"hello!", "pieces of {step}");
        assert_eq!(trailers.unwrap()["x-sum"], "9");
    }
}

#[test]
fn every_early_end_of_a_chunked_answer_is_an_error() {
    for cut in 1..CHUNKED.len() {
        let got = read(&CHUNKED[..cut], 7, false, false);
        assert!(
            matches!(got, Err(BadResponse::Truncated(_))),
            "cut at {cut}: {:?}",
            got.map(|(head, ..)| head.status)
        );
    }
}

#[test]
fn content_length_is_exact() {
    let wire = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloTRAILING";
    let (head, body, _) = read(wire, 9, false, false).unwrap();
    assert_eq!((head.length, &body[..]), (Some(5), &b"hello"[..]));
    let short = &wire[..wire.len() - 9];
    assert_eq!(
        read(short, 9, false, false).unwrap_err(),
        BadResponse::Truncated("body")
    );
}

#[test]
fn answers_without_a_body_end_with_the_head() {
    for (status, to_head) in [
        ("204 No Content", false),
        ("304 Not Modified", false),
        ("200 OK", true),
    ] {
        let wire = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
        let (head, body, _) = read(wire.as_bytes(), 100, to_head, false).unwrap();
        assert_eq!((head.length, body.len()), (Some(5), 0), "{status}");
    }
}

#[test]
fn without_a_length_the_clean_end_of_the_stream_ends_the_body() {
    let (head, body, _) = read(b"HTTP/1.0 200 OK\r\n\r\nall of it", 4, false, false).unwrap();
    assert_eq!((head.length, &body[..]), (None, &b"all of it"[..]));
}

#[test]
fn ambiguous_framing_is_refused() {
    for fields in [
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: +3",
        "Content-Length: 3, 3",
        "Content-Length: ",
        "Content-Length: 99999999999999999999999",
    ] {
        let wire = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nabc");
        let got = read(wire.as_bytes(), 1000, false, false);
        assert!(matches!(got, Err(BadResponse::Framing(_))), "{fields}");
    }
    let wire = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(read(wire, 1000, false, false).is_err());
    let wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n";
    assert_eq!(
        read(wire, 1000, false, false).unwrap_err(),
        BadResponse::Chunk
    );
    let wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n";
    assert_eq!(
        read(wire, 1000, false, false).unwrap_err(),
        BadResponse::Chunk
    );
}

#[test]
fn upgrades_only_when_asked_and_the_rest_is_raw() {
    let wire = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nraw";
    assert_eq!(
        read(wire, 1000, false, false).unwrap_err(),
        BadResponse::UnaskedUpgrade
    );
    let mut reader = ResponseReader::new(false, true);
    reader.push(Bytes::from_static(wire));
    assert!(matches!(reader.next().unwrap(), Step::Head(head) if head.status == 101));
    assert_eq!(reader.rest(), "raw");
}

#[test]
fn limits_hold_at_their_edge() {
    let informational = |n: usize| "HTTP/1.1 100 Continue\r\n\r\n".repeat(n);
    let last = "HTTP/1.1 204 No Content\r\n\r\n";
    let max = usize::from(INFORMATIONAL_MAX);
    assert!(read((informational(max) + last).as_bytes(), 50, false, false).is_ok());
    assert_eq!(
        read((informational(max + 1) + last).as_bytes(), 50, false, false).unwrap_err(),
        BadResponse::Informational
    );
    let fields = |n: usize| format!("HTTP/1.1 204 No\r\n{}\r\n", "a: b\r\n".repeat(n));
    assert!(read(fields(FIELDS_MAX).as_bytes(), 9999, false, false).is_ok());
    assert!(read(fields(FIELDS_MAX + 1).as_bytes(), 9999, false, false).is_err());
    let field = |n: usize| format!("HTTP/1.1 204 No\r\na: {}\r\n\r\n", "b".repeat(n));
    assert!(read(field(FIELD_BYTES_MAX).as_bytes(), 9999, false, false).is_ok());
    assert!(read(field(FIELD_BYTES_MAX + 1).as_bytes(), 9999, false, false).is_err());
    let endless = "HTTP/1.1 200 OK\r\na: ".to_owned() + &"b".repeat(HEAD_BYTES_MAX);
    assert!(matches!(
        read(endless.as_bytes(), 1000, false, false).unwrap_err(),
        BadResponse::TooLarge { .. }
    ));
}

proptest! {
    #[test]
    fn never_panics_and_never_invents_bytes(
        wire in proptest::collection::vec(any::<u8>(), 0..400),
        step in 1usize..50,
        prefix in 0usize..4,
    ) {
        let starts: [&[u8]; 4] = [
            b"",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n",
        ];
        let whole = [starts[prefix], &wire].concat();
        if let Ok((_, body, _)) = read(&whole, step, false, true) {
            prop_assert!(body.len() <= whole.len());
        }
    }
}

//! A TLS 1.3 client hello, for routes that read the server name and pass everything on unopened.

/// A well-formed record with `server_name`; the key share is no key, nobody answers it.
pub fn client_hello(server_name: &str) -> Vec<u8> {
    let mut extensions = Vec::new();
    let name = prefixed(
        2,
        &[&[0], &prefixed(2, server_name.as_bytes())[..]].concat(),
    );
    for (kind, content) in [
        (0, name),
        (10, prefixed(2, &[0, 29])),
        (13, prefixed(2, &[4, 3, 8, 4, 4, 1])),
        (43, prefixed(1, &[3, 4])),
        (45, prefixed(1, &[1])),
        (
            51,
            prefixed(2, &[&[0, 29][..], &prefixed(2, &[9; 32])].concat()),
        ),
    ] {
        extensions.extend_from_slice(&[0, kind]);
        extensions.extend(prefixed(2, &content));
    }
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend(prefixed(1, &[5; 32]));
    body.extend(prefixed(2, &[0x13, 0x01, 0x13, 0x02]));
    body.extend(prefixed(1, &[0]));
    body.extend(prefixed(2, &extensions));
    let mut handshake = vec![1];
    handshake.extend(prefixed(3, &body));
    let mut record = vec![22, 3, 1];
    record.extend(prefixed(2, &handshake));
    record
}

/// `content` behind its length in `width` bytes.
fn prefixed(width: usize, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_be_bytes();
    [&length[8 - width..], content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_the_name_and_says_its_own_length() {
        let hello = client_hello("perf.test");
        assert_eq!(hello[..3], [22, 3, 1]);
        let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        assert_eq!(hello.len(), 5 + length);
        assert!(hello.windows(9).any(|part| part == b"perf.test"));
    }
}

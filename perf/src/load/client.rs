//! One connection's client side: the request that is out, and its answer as it arrives.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::Body;
use crate::service::{ID_BYTES, PIECE_BYTES, SMALL_BYTES, pattern};

/// A request that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub intended: Instant,
    id: [u8; ID_BYTES],
}

/// The state of one client connection.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub sent: Option<Sent>,
    /// Length of the body that is arriving, and how much of it has.
    body: Option<(u64, u64)>,
}

impl Client {
    /// Appends the next request to `out`.
    pub fn ask(
        &mut self,
        (prefix, fields): (&str, &str),
        body: Body,
        number: u64,
        due: Instant,
        out: &mut Vec<u8>,
    ) {
        let id: [u8; ID_BYTES] = hex(number);
        self.sent = Some(Sent { intended: due, id });
        self.body = None;
        out.extend_from_slice(b"GET ");
        out.extend_from_slice(prefix.as_bytes());
        match body {
            Body::Small => {
                out.extend_from_slice(b"/k/");
                out.extend_from_slice(&id);
            }
            Body::Big(bytes) => out.extend_from_slice(format!("/big/{bytes}").as_bytes()),
        }
        out.extend_from_slice(b" HTTP/1.1\r\nHost: perf.test\r\nUser-Agent: culvert-perf\r\n");
        out.extend_from_slice(fields.as_bytes());
        out.extend_from_slice(b"\r\n");
    }

    /// Takes what arrived off `inbox`; counts good body bytes in `bytes`. `Some` = answer whole.
    pub fn take(&mut self, inbox: &mut Vec<u8>, bytes: &mut u64) -> Result<Option<Sent>> {
        let Some(sent) = self.sent else {
            bail!("bytes without a request")
        };
        let (length, mut have) = match self.body {
            Some(state) => state,
            None => match take_head(inbox)? {
                Some(length) => (length, 0),
                None => return Ok(None),
            },
        };
        let small = length == SMALL_BYTES as u64;
        let left = usize::try_from(length - have)
            .unwrap_or(usize::MAX)
            .min(inbox.len());
        if small && left < SMALL_BYTES {
            // Kept until it is whole: 1 KiB.
            self.body = Some((length, 0));
            return Ok(None);
        }
        let piece = &inbox[..left];
        if small {
            ensure!(piece[..ID_BYTES] == sent.id, "another request's answer");
            ensure!(
                piece[ID_BYTES..] == *pattern(0, SMALL_BYTES - ID_BYTES),
                "wrong bytes"
            );
        } else {
            let mut position = have;
            for part in piece.chunks(PIECE_BYTES) {
                ensure!(
                    part == pattern(position, part.len()),
                    "wrong bytes near {position}"
                );
                position += part.len() as u64;
            }
        }
        inbox.drain(..left);
        have += left as u64;
        *bytes += left as u64;
        self.body = Some((length, have));
        if have < length {
            return Ok(None);
        }
        ensure!(inbox.is_empty(), "bytes behind the answer");
        self.sent = None;
        Ok(Some(sent))
    }
}

/// Takes a response head off the front; gives the length of the body behind it.
fn take_head(inbox: &mut Vec<u8>) -> Result<Option<u64>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(end) = head.parse(inbox)? else {
        return Ok(None);
    };
    ensure!(head.code == Some(200), "status {:?}", head.code);
    let length = head
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok())
        .context("an answer without Content-Length")?;
    inbox.drain(..end);
    Ok(Some(length))
}

fn hex(number: u64) -> [u8; ID_BYTES] {
    let mut text = [0; ID_BYTES];
    for (place, digit) in text.iter_mut().enumerate() {
        let nibble = (number >> (60 - 4 * place)) & 15;
        *digit = b"0123456789abcdef"[usize::try_from(nibble).unwrap_or(0)];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{answer, take_request};

    #[test]
    fn an_answer_in_any_split_is_whole_once_and_only_for_its_request() {
        let mut client = Client::default();
        let mut request = Vec::new();
        client.ask(("", ""), Body::Small, 0xabc, Instant::now(), &mut request);
        let asked = take_request(&mut request).unwrap();
        let mut whole = Vec::new();
        answer(asked, &mut whole);
        let (mut inbox, mut bytes, mut ends) = (Vec::new(), 0, 0);
        for byte in &whole {
            inbox.push(*byte);
            ends += usize::from(client.take(&mut inbox, &mut bytes).unwrap().is_some());
        }
        assert_eq!((ends, bytes), (1, 1024));

        client.ask(("", ""), Body::Small, 0xabd, Instant::now(), &mut request);
        assert!(
            client.take(&mut whole.clone(), &mut bytes).is_err(),
            "mixed up"
        );
    }

    #[test]
    fn a_big_body_with_one_bit_flipped_is_wrong() {
        let mut client = Client::default();
        client.ask(
            ("", ""),
            Body::Big(100_000),
            1,
            Instant::now(),
            &mut Vec::new(),
        );
        let mut whole = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n".to_vec();
        whole.extend_from_slice(pattern(0, 65_536));
        whole.extend_from_slice(pattern(65_536, 34_464));
        let mut bytes = 0;
        assert!(
            client
                .take(&mut whole.clone(), &mut bytes)
                .unwrap()
                .is_some()
        );
        client.ask(
            ("", ""),
            Body::Big(100_000),
            2,
            Instant::now(),
            &mut Vec::new(),
        );
        whole[70_000] ^= 1;
        assert!(client.take(&mut whole, &mut bytes).is_err());
    }
}

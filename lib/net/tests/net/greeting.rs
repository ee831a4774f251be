//! Reading a ClientHello without answering it.

use bytes::Bytes;
use culvert_net::tls::{Alert, ClientTls, GreetingError, HELLO_BYTES_MAX, read_greeting};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::rig::{Pki, soon};

/// What a real client sends first.
async fn hello(pki: &Pki, name: &str) -> Vec<u8> {
    let client = ClientTls::load(pki.client_options()).unwrap();
    let (near, mut far) = duplex(1 << 16);
    let name = name.to_owned();
    let handshake = tokio::spawn(async move { client.connect(&name, near).await.is_ok() });
    let mut bytes = vec![0; 1 << 16];
    let got = soon("a hello", far.read(&mut bytes)).await.unwrap();
    handshake.abort();
    bytes.truncate(got);
    bytes
}

fn from(bytes: Vec<u8>) -> DuplexStream {
    let (mut near, far) = duplex(1 << 18);
    tokio::spawn(async move {
        let _ = near.write_all(&bytes).await;
    });
    far
}

#[tokio::test]
async fn the_name_is_read_and_every_byte_is_kept() {
    let pki = Pki::new("greeting");
    let hello = hello(&pki, "DB.example.com").await;
    let mut sent = hello.clone();
    sent.extend_from_slice(b"and what follows");
    let mut io = from(sent.clone());
    let read = soon("read", read_greeting(&mut io)).await.unwrap();
    assert_eq!(read.server_name.as_deref(), Some("db.example.com"));
    let mut all = read.bytes.to_vec();
    soon("the rest", io.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, sent);
}

#[tokio::test]
async fn byte_by_byte_and_in_many_records() {
    let pki = Pki::new("greeting");
    let hello = hello(&pki, "a.example.com").await;
    let payload = &hello[5..];
    let piece = payload.len().div_ceil(50);
    let records: Vec<u8> = payload
        .chunks(piece)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[0x16, 3, 1][..], &length, part].concat()
        })
        .collect();
    for sent in [hello.clone(), records] {
        let (mut near, mut far) = duplex(1 << 16);
        let wire = sent.clone();
        let slow = tokio::spawn(async move {
            for byte in wire {
                near.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            near
        });
        let read = soon("read", read_greeting(&mut far)).await.unwrap();
        assert_eq!(read.server_name.as_deref(), Some("a.example.com"));
        assert_eq!(read.bytes, Bytes::from(sent));
        drop(slow);
    }
}

#[tokio::test]
async fn an_address_is_no_name() {
    let pki = Pki::new("greeting");
    let mut io = from(hello(&pki, "127.0.0.1").await);
    let read = soon("read", read_greeting(&mut io)).await.unwrap();
    assert_eq!(read.server_name, None);
}

#[tokio::test]
async fn what_is_none_is_refused_in_bounds() {
    // A handshake message that announces more than is allowed, and never ends.
    let mut endless = Vec::new();
    for _ in 0..40 {
        endless.extend_from_slice(&[0x16, 3, 1, 4, 0]);
        let mut body = vec![0; 1024];
        body[..4].copy_from_slice(&[1, 0, 0xff, 0xff]);
        endless.extend_from_slice(&body);
    }
    assert!(endless.len() > 2 * HELLO_BYTES_MAX);
    let why = read_greeting(&mut from(endless)).await.unwrap_err();
    assert!(matches!(why, GreetingError::TooLong), "{why}");

    let why = read_greeting(&mut from(b"GET / HTTP/1.1\r\n\r\n".to_vec())).await;
    let why = why.unwrap_err();
    assert!(matches!(why, GreetingError::Malformed { .. }), "{why}");

    let why = read_greeting(&mut from(vec![0x16, 3, 1, 1, 0, 1])).await;
    assert!(matches!(why.unwrap_err(), GreetingError::Ended));
}

#[tokio::test(start_paused = true)]
async fn silence_has_a_deadline() {
    let (_near, mut far) = duplex(64);
    let why = read_greeting(&mut far).await.unwrap_err();
    assert!(matches!(why, GreetingError::Timeout), "{why}");
}

#[test]
fn alerts_are_records() {
    assert_eq!(Alert::UnrecognizedName.record(), [21, 3, 3, 0, 2, 2, 112]);
}

//! Proofs that do not hold and bytes that no side should send.

use std::time::Duration;

use culvert_net::introduction::Credential;
use culvert_proto::pair::{HELLO_BYTES, Preface, RelayHello, Reply, ReplyCode, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{PairCa, Rig, refusal, soon};

async fn hello(stream: &mut TcpStream) -> [u8; 32] {
    let mut hello = [0; HELLO_BYTES];
    soon("a hello", stream.read_exact(&mut hello))
        .await
        .unwrap();
    RelayHello::decode(&hello).unwrap().challenge
}

async fn reply(stream: &mut TcpStream) -> ReplyCode {
    let mut reply = [0; 8];
    soon("a reply", stream.read_exact(&mut reply))
        .await
        .unwrap();
    Reply::decode(&reply).unwrap().code
}

/// The reply, and that it was the last word.
async fn last_word(stream: &mut TcpStream) -> ReplyCode {
    let code = reply(stream).await;
    stream.shutdown().await.unwrap();
    let end = soon("the end", stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    code
}

#[tokio::test]
async fn wrong_proofs_of_each_kind_are_refused() {
    let rig = Rig::tls(&[]);
    let (ca, other) = (PairCa::new(), PairCa::new());
    // Certified by another authority, which has the same name.
    let forged = other.credential_shown_with(&ca.der, Role::Bridge);
    // Certified for the other role.
    let swapped = ca.credential(Role::Broker);
    for credential in [&forged, &swapped] {
        let joined = rig
            .introduce(rig.dial().await, Role::Bridge, credential)
            .await;
        assert_eq!(refusal(joined), (ReplyCode::BadProof, 0));
    }
    // Said without having heard that open joins are not let in.
    let open = Credential::open(swapped.id());
    let joined = rig.introduce(rig.dial().await, Role::Bridge, &open).await;
    assert_eq!(refusal(joined), (ReplyCode::OpenRefused, 0));
    rig.until(r#"culvert_pair_refused_total{reason="bad_proof"}"#, 2.0)
        .await;
    rig.until("culvert_pair_waiting", 0.0).await;
}

#[tokio::test]
async fn wrong_signatures_ids_and_replays_are_refused() {
    let rig = Rig::plain(&[]);
    let ca = PairCa::new();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for credential in [
        ca.credential(Role::Bridge),
        Credential::key([3; 32]).unwrap(),
    ] {
        let edits: [fn(&mut Preface); 3] = [
            |it| it.signature[30] ^= 1,
            |it| it.id.0[0] ^= 1,
            |it| it.nonce[0] ^= 1,
        ];
        for edit in edits {
            let mut stream = rig.dial().await;
            let challenge = hello(&mut stream).await;
            let mut preface = credential.preface(Role::Bridge, &challenge).unwrap();
            edit(&mut preface);
            stream.write_all(&preface.encode()).await.unwrap();
            assert_eq!(last_word(&mut stream).await, ReplyCode::BadProof);
        }
        let mut stream = rig.dial().await;
        let challenge = hello(&mut stream).await;
        let good = credential
            .preface(Role::Bridge, &challenge)
            .unwrap()
            .encode();
        stream.write_all(&good).await.unwrap();
        assert_eq!(reply(&mut stream).await, ReplyCode::Wait);
        seen.push(good);
    }
    // What was good on its own connection is worth nothing on another.
    for replayed in seen {
        let mut stream = rig.dial().await;
        hello(&mut stream).await;
        stream.write_all(&replayed).await.unwrap();
        assert_eq!(last_word(&mut stream).await, ReplyCode::BadProof);
    }
    let mut stream = rig.dial().await;
    hello(&mut stream).await;
    let open = Credential::open(ca.credential(Role::Bridge).id());
    let open = open.preface(Role::Bridge, &[0; 32]).unwrap();
    stream.write_all(&open.encode()).await.unwrap();
    assert_eq!(last_word(&mut stream).await, ReplyCode::OpenRefused);
}

#[tokio::test]
async fn prefaces_byte_by_byte_are_heard_truncated_and_oversized_ones_are_not() {
    let rig = Rig::plain(&[]);
    let ca = PairCa::new();
    let mut slow = rig.dial().await;
    slow.set_nodelay(true).unwrap();
    let challenge = hello(&mut slow).await;
    let preface = ca
        .credential(Role::Bridge)
        .preface(Role::Bridge, &challenge)
        .unwrap();
    for byte in preface.encode() {
        slow.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(reply(&mut slow).await, ReplyCode::Wait);

    let mut short = rig.dial().await;
    let challenge = hello(&mut short).await;
    let preface = ca
        .credential(Role::Bridge)
        .preface(Role::Bridge, &challenge)
        .unwrap();
    let bytes = preface.encode();
    short.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    short.shutdown().await.unwrap();
    assert_eq!(
        soon("the end", short.read(&mut [0])).await.unwrap(),
        0,
        "no word"
    );
    rig.until(r#"culvert_pair_refused_total{reason="gone"}"#, 1.0)
        .await;

    // The head alone gives it away: not a byte of the rest is waited for.
    let mut long = rig.dial().await;
    hello(&mut long).await;
    let mut head = preface.head();
    head[56..58].copy_from_slice(&2_049_u16.to_be_bytes());
    long.write_all(&head).await.unwrap();
    assert_eq!(last_word(&mut long).await, ReplyCode::BadPreface);
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00",
        b"SSH-2.0-x\r\n",
    ] {
        let mut stream = rig.dial().await;
        hello(&mut stream).await;
        stream.write_all(garbage).await.unwrap();
        assert_eq!(last_word(&mut stream).await, ReplyCode::BadPreface);
    }
}

#[tokio::test]
async fn a_waiter_that_speaks_before_it_is_matched_is_let_go_and_the_pair_forms_without_it() {
    let rig = Rig::plain(&[]);
    let ca = PairCa::new();
    let bridge = ca.credential(Role::Bridge);
    let mut hasty = rig.dial().await;
    let challenge = hello(&mut hasty).await;
    let mut said = bridge.preface(Role::Bridge, &challenge).unwrap().encode();
    said.extend_from_slice(b"\x16\x03\x01");
    hasty.write_all(&said).await.unwrap();
    let mut heard = Vec::new();
    let _ = soon("the end", hasty.read_to_end(&mut heard)).await;
    rig.until("culvert_pair_waiting", 0.0).await;
    let (_bridge, _broker) = rig.pair(&ca).await;
}

#[tokio::test]
async fn no_tls_and_silence_cost_only_themselves() {
    let rig = Rig::tls(&[]);
    let mut plain = rig.dial().await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _ = soon("the end", plain.read_to_end(&mut heard)).await;
    // An alert at most.
    assert!(heard.is_empty() || heard[0] == 0x15, "{heard:?}");
    rig.until(r#"culvert_pair_refused_total{reason="tls"}"#, 1.0)
        .await;
    let silent = rig.dial().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(silent);
    rig.until(r#"culvert_pair_refused_total{reason="tls"}"#, 2.0)
        .await;
}

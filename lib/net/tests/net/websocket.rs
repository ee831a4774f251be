//! The WebSocket byte stream on sockets, beside an independent implementation.

use culvert_net::transport::{End, WebSocket};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex,
};
use tokio_websockets::{ClientBuilder, Config, Message, ServerBuilder};

use crate::rig::soon;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(bytes).collect()
}

async fn read_to_end(mut io: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    soon("end", io.read_to_end(&mut all)).await.unwrap();
    all
}

/// Bulk both ways at once over a pipe much smaller than a message.
#[tokio::test]
async fn our_two_ends_move_bulk_both_ways_through_a_tiny_pipe() {
    let (a, b) = duplex(512);
    let bytes = 1 << 20;
    let run = |io: DuplexStream, end| async move {
        let mut socket = WebSocket::new(io, end);
        let data = pattern(bytes);
        let (mut sent, mut got) = (0, Vec::new());
        let mut buf = vec![0; 8192];
        // One task polls both directions, as the carrier does.
        while sent < data.len() || got.len() < data.len() {
            let next = std::future::poll_fn(|cx| {
                use std::pin::Pin;
                use std::task::Poll;
                let mut moved = false;
                if sent < data.len()
                    && let Poll::Ready(n) = Pin::new(&mut socket).poll_write(cx, &data[sent..])
                {
                    sent += n.unwrap();
                    moved = true;
                }
                if let Poll::Ready(result) = Pin::new(&mut socket).poll_flush(cx) {
                    result.unwrap();
                }
                let mut read = tokio::io::ReadBuf::new(&mut buf);
                if let Poll::Ready(result) = Pin::new(&mut socket).poll_read(cx, &mut read) {
                    result.unwrap();
                    got.extend_from_slice(read.filled());
                    moved = true;
                }
                if moved {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            });
            soon("progress", next).await;
        }
        // What is staged must leave before this end goes.
        socket.flush().await.unwrap();
        assert_eq!(got, data);
        socket
    };
    let (_a, _b) = tokio::join!(run(a, End::Client), run(b, End::Server));
}

#[tokio::test]
async fn an_independent_server_reads_our_masked_messages_and_answers_in_fragments() {
    let (ours, theirs) = duplex(4096);
    let their_task = tokio::spawn(async move {
        let config = Config::default().frame_size(1000);
        let mut server = ServerBuilder::new().config(config).serve(theirs);
        let mut got = Vec::new();
        while got.len() < 300_000 {
            let message = server.next().await.unwrap().unwrap();
            assert!(message.is_binary() && message.as_payload().len() <= 64 * 1024);
            got.extend_from_slice(message.as_payload());
        }
        server.send(Message::ping("are you there")).await.unwrap();
        server.send(Message::binary(got)).await.unwrap();
        // The pong, then our close.
        let pong = server.next().await.unwrap().unwrap();
        assert!(pong.is_pong() && &pong.as_payload()[..] == b"are you there");
        assert!(server.next().await.unwrap().unwrap().is_close());
    });
    let mut socket = WebSocket::new(ours, End::Client);
    let data = pattern(300_000);
    socket.write_all(&data).await.unwrap();
    socket.flush().await.unwrap();
    let mut back = vec![0; data.len()];
    soon("answer", socket.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, data);
    socket.shutdown().await.unwrap();
    soon("server", their_task).await.unwrap();
}

#[tokio::test]
async fn an_independent_client_writes_a_message_of_megabytes_and_closes() {
    let (ours, theirs) = duplex(4096);
    let their_task = tokio::spawn(async move {
        let mut client = ClientBuilder::new().take_over(theirs);
        // Longer than a gorilla fragment, sent as one message in fragments of 4 KiB.
        client
            .send(Message::binary(pattern(5 << 20)))
            .await
            .unwrap();
        client.close().await.unwrap();
    });
    let mut socket = WebSocket::new(ours, End::Server);
    assert_eq!(read_to_end(&mut socket).await, pattern(5 << 20));
    soon("closing handshake", their_task).await.unwrap();
}

/// The close code our server end answers `wire` with.
async fn close_code_for(wire: &[u8]) -> u16 {
    let (ours, mut theirs) = duplex(4096);
    theirs.write_all(wire).await.unwrap();
    let mut socket = WebSocket::new(ours, End::Server);
    let error = soon("refusal", socket.read(&mut [0; 16]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    let mut frame = [0; 4];
    soon("close frame", theirs.read_exact(&mut frame))
        .await
        .unwrap();
    assert_eq!(frame[..2], [0x88, 2], "an unmasked close frame");
    u16::from_be_bytes([frame[2], frame[3]])
}

#[tokio::test]
async fn violations_are_answered_with_their_close_code() {
    let mask = [0; 4];
    let masked = |first: u8, len: u8| [&[first, 0x80 | len][..], &mask, &[b'x'; 1]].concat();
    assert_eq!(close_code_for(&masked(0x81, 1)).await, 1003, "text");
    assert_eq!(
        close_code_for(&masked(0xc2, 1)).await,
        1002,
        "RSV1 as in permessage-deflate"
    );
    assert_eq!(
        close_code_for(&[0x82, 0x01, b'x']).await,
        1002,
        "unmasked client frame"
    );
    let too_long = [&[0x82, 0xff][..], &(16_777_217u64).to_be_bytes(), &mask].concat();
    assert_eq!(close_code_for(&too_long).await, 1009, "over 16 MiB");
}

#[tokio::test]
async fn a_close_is_echoed_and_reads_as_the_end() {
    let (ours, mut theirs) = duplex(4096);
    let frame = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];
    theirs.write_all(&frame).await.unwrap();
    let mut socket = WebSocket::new(ours, End::Server);
    assert_eq!(read_to_end(&mut socket).await, b"");
    let mut echo = [0; 4];
    theirs.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, [0x88, 2, 0x03, 0xe9]);
    let refused = socket.write(b"late").await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
}

//! Our mux on an in-memory byte stream, for tests beside the `yamux` crate.

use bytes::{Bytes, BytesMut};
use culvert_mux::Mux;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

/// Runs `app` after everything that was heard, and carries what it said, until it is done or the
/// peer has closed.
pub async fn drive(io: DuplexStream, mux: &mut Mux, mut app: impl FnMut(&mut Mux, u64) -> bool) {
    let started = tokio::time::Instant::now();
    let now_ms = || u64::try_from(started.elapsed().as_millis()).unwrap();
    let (mut reader, mut writer) = tokio::io::split(io);
    let (heard, mut hearing) = mpsc::unbounded_channel::<Bytes>();
    // Reading never waits for a write.
    let reading = tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(64 << 10);
            match reader.read_buf(&mut buffer).await {
                Ok(n) if n > 0 && heard.send(buffer.split().freeze()).is_ok() => {}
                _ => return,
            }
        }
    });
    loop {
        let done = app(mux, now_ms());
        while mux.wants_transmit() {
            let mut out = Vec::new();
            mux.transmit(now_ms(), &mut out, 256 << 10);
            for part in out {
                if writer.write_all(&part).await.is_err() {
                    return;
                }
            }
            app(mux, now_ms());
        }
        if done {
            break;
        }
        match hearing.recv().await {
            Some(data) => mux
                .receive(now_ms(), data)
                .expect("the crate keeps the rules"),
            None => break,
        }
    }
    let _ = writer.shutdown().await;
    reading.abort();
}

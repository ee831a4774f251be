//! An upgraded connection: raw bytes both ways after the service's own 101.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use culvert_net::carrier::Stream;
use culvert_proto::close::CloseReason;
use culvert_proto::limits::UPGRADE_TIMEOUT_MS;

use super::exchange::reason_of;
use super::tracked::Tracked;
use crate::sessions::StreamSlot;

/// One read from the client.
const READ_BYTES: usize = 16 * 1024;

/// Joins the client, once it has its 101, with the agent's stream.
pub struct Join {
    /// The agent's stream.
    pub stream: Stream,
    /// Bytes that came with the head of the service's 101.
    pub early: Bytes,
    /// What the request holds.
    pub tracked: Tracked,
    /// The stream's place in its session.
    pub slot: StreamSlot,
}

impl Join {
    /// Relays until both directions ended or one broke.
    pub async fn run(self, client: OnUpgrade) {
        let Self {
            stream,
            early,
            tracked,
            mut slot,
        } = self;
        let wait = Duration::from_millis(UPGRADE_TIMEOUT_MS);
        let reason = match tokio::time::timeout(wait, client).await {
            Ok(Ok(client)) => relay(TokioIo::new(client), stream, early, &tracked).await,
            Ok(Err(_)) => CloseReason::ClientReset,
            Err(_) => CloseReason::ClientTimeout,
        };
        if reason == CloseReason::Finished {
            tracked.conn().disarm();
        } else {
            tracked.conn().abort();
        }
        slot.closed(reason);
    }
}

/// An end is RST unless it is known to be clean: both sockets are armed first.
async fn relay(
    client: TokioIo<Upgraded>,
    stream: Stream,
    early: Bytes,
    tracked: &Tracked,
) -> CloseReason {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let stream = Arc::new(Mutex::new(stream));
    let metrics = tracked.metrics();
    let up = async {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = read(&mut from_client, &mut buffer).await;
            let got = read.map_err(|_| tracked.conn().broke())?;
            if got == 0 {
                let finish = poll_fn(|cx| Pin::new(&mut *stream.lock()).poll_shutdown(cx));
                return finish.await.map_err(|why| reason_of(&why));
            }
            metrics.bytes_to_service.inc_by(got as u64);
            let sent = write_all(&stream, &buffer[..got]).await;
            sent.map_err(|why| reason_of(&why))?;
        }
    };
    let down = async {
        let mut data = early;
        loop {
            metrics.bytes_to_client.inc_by(data.len() as u64);
            let sent = to_client.write_all(&data).await;
            sent.map_err(|_| tracked.conn().broke())?;
            let next = poll_fn(|cx| stream.lock().poll_read_bytes(cx)).await;
            match next.map_err(|why| reason_of(&why))? {
                Some(next) => data = next,
                None => break,
            }
        }
        tracked.conn().disarm();
        to_client
            .shutdown()
            .await
            .map_err(|_| tracked.conn().broke())
    };
    tracked.conn().arm();
    match tokio::try_join!(up, down) {
        Ok(_) => CloseReason::Finished,
        Err(reason) => {
            stream.lock().reset(reason);
            reason
        }
    }
}

async fn read(from: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> io::Result<usize> {
    let mut buffer = ReadBuf::new(buffer);
    poll_fn(|cx| Pin::new(&mut *from).poll_read(cx, &mut buffer)).await?;
    Ok(buffer.filled().len())
}

async fn write_all(stream: &Mutex<Stream>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let wrote = poll_fn(|cx| Pin::new(&mut *stream.lock()).poll_write(cx, data)).await?;
        data = &data[wrote..];
    }
    Ok(())
}

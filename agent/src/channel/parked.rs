//! A channel that waits for a client.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_net::dial::Link;
use culvert_net::relay::{Early, End as _, poll_some};
use culvert_proto::channel::{ANSWER_BYTES, ChannelAnswer, Form};
use culvert_proto::control::Ticket;
use culvert_proto::limits::{CHANNEL_IDLE_TIMEOUT_MS, STREAM_HEADER_TIMEOUT_MS};
use culvert_proto::open::{DialAnswer, DialCode, StreamHeader, StreamHeaderDecoder, StreamKind};
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Channels, Failed};
use crate::metrics::ChannelState;

/// The hub discards a parked channel after five minutes. A little later it is ours to close: at the
/// same moment it could be given to a client and closed.
const PARKED_MAX: Duration = Duration::from_millis(CHANNEL_IDLE_TIMEOUT_MS + 30_000);
const HEADER_MAX: Duration = Duration::from_millis(STREAM_HEADER_TIMEOUT_MS);

impl Channels {
    /// Opens a channel, waits on it for a client, and serves that client.
    ///
    /// # Errors
    /// Why the ticket could not be used.
    pub(super) async fn park(
        self: &Arc<Self>,
        ticket: &Ticket,
        form: Form,
        life: Duration,
    ) -> Result<(), Failed> {
        let metrics = self.opener.flows.metrics();
        let end = Instant::now() + life;
        let opening = metrics.channel(ChannelState::Dialling);
        let mut link = tokio::select! {
            () = self.over.cancelled() => return Ok(()),
            connected = self.connect(form, life) => connected?,
        };
        let preface = self.preface(ticket, form);
        let shown = timeout_at(end, show(&mut link, &preface));
        shown.await.unwrap_or_else(|_| Err(silent()))?;
        drop(opening);
        self.opened(form);
        let parked = metrics.channel(ChannelState::Warm);
        let waiting = async {
            match timeout(PARKED_MAX, claimed(&mut link)).await {
                Ok(claim) => claim,
                Err(_) => Ok(None),
            }
        };
        let claim = tokio::select! {
            claim = waiting => claim,
            () = self.over.cancelled() => Ok(None),
        };
        drop(parked);
        match claim {
            Ok(Some((header, first))) => self.serve(link, form, &header, first).await,
            Ok(None) => {}
            Err(why) => {
                tracing::debug!(%why, "a parked channel broke");
                reset(&link);
            }
        }
        Ok(())
    }

    async fn serve(
        self: &Arc<Self>,
        link: Link<TcpStream>,
        form: Form,
        header: &StreamHeader,
        first: Bytes,
    ) {
        let flows = &self.opener.flows;
        let answer = match self.judge(header, form, &first) {
            Ok(service) => match flows.dial(service, header).await {
                Ok(service) => {
                    let early = Early {
                        to_service: first,
                        to_client: DialAnswer::connected().encode(),
                    };
                    drop(flows.mover().start(link, Link::Plain(service), early));
                    return;
                }
                Err(answer) => answer,
            },
            Err(answer) => answer,
        };
        refuse(link, &answer).await;
    }

    /// The service that may be dialled for `header`, which came with `first`.
    pub(super) fn judge(
        &self,
        header: &StreamHeader,
        form: Form,
        first: &[u8],
    ) -> Result<&crate::services::Service, DialAnswer> {
        let flows = &self.opener.flows;
        if header.kind != StreamKind::Tcp {
            let reason = "only TCP connections run on a data channel".to_owned();
            return Err(DialAnswer {
                code: DialCode::NotAllowed,
                reason,
            });
        }
        let grant = self.granted.get();
        let service = flows.judge(header, grant.as_deref(), Some(form))?;
        let checked = flows.services().check_first(service, Some(form), first);
        checked.inspect_err(|answer| flows.refused(header, answer))?;
        Ok(service)
    }
}

/// Shows the preface and reads what the hub says to it.
async fn show(link: &mut Link<TcpStream>, preface: &[u8]) -> Result<(), Failed> {
    let mut answer = [0; ANSWER_BYTES];
    let spoken = async {
        link.write_all(preface).await?;
        link.flush().await?;
        link.read_exact(&mut answer).await
    };
    spoken.await.map_err(|why| broken(&why))?;
    accepted(&answer)
}

/// What the hub's answer means.
pub(super) fn accepted(answer: &[u8; ANSWER_BYTES]) -> Result<(), Failed> {
    match ChannelAnswer::decode(answer) {
        Ok(ChannelAnswer::Parked) => Ok(()),
        Ok(refused) => {
            let word = refused.as_str();
            let text = format!("the hub refused the channel: {word}");
            Err(Failed::of(DialCode::NotAllowed, word, text))
        }
        Err(why) => {
            let text = format!("what answered is no hub: {why}; let TCP connections to it through");
            Err(Failed::of_path(DialCode::Unreachable, "answer", text))
        }
    }
}

pub(super) fn broken(why: &io::Error) -> Failed {
    let text = format!("the channel ended before the hub's answer: {why}");
    Failed::of_path(DialCode::Unreachable, "answer", text)
}

pub(super) fn silent() -> Failed {
    let text = "the hub did not answer on the channel in time".to_owned();
    Failed::of_path(DialCode::Timeout, "timeout", text)
}

/// The header of the open that takes the channel, and the client's first bytes. `None` when the hub
/// closed the channel.
async fn claimed(link: &mut Link<TcpStream>) -> io::Result<Option<(StreamHeader, Bytes)>> {
    let mut data = poll_fn(|cx| poll_some(cx, link)).await?;
    if data.is_empty() {
        return Ok(None);
    }
    let end = Instant::now() + HEADER_MAX;
    let mut decoder = StreamHeaderDecoder::new();
    let header = loop {
        if let Some(header) = decoder.push(&mut data).map_err(io::Error::other)? {
            break header;
        }
        data = more(link, end).await?;
    };
    if header.payload_follows && data.is_empty() {
        data = more(link, end).await?;
    }
    Ok(Some((header, data)))
}

async fn more(link: &mut Link<TcpStream>, end: Instant) -> io::Result<Bytes> {
    let read = timeout_at(end, poll_fn(|cx| poll_some(cx, link))).await;
    match read {
        Ok(Ok(data)) if data.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(read) => read,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Tells why not, on the channel.
pub(super) async fn refuse(mut link: Link<TcpStream>, answer: &DialAnswer) {
    let said = async {
        link.write_all(&answer.encode()).await?;
        link.shutdown().await?;
        // Unread bytes would turn the end into a reset that destroys the answer.
        while !poll_fn(|cx| poll_some(cx, &mut link)).await?.is_empty() {}
        io::Result::Ok(())
    };
    if !matches!(timeout(HEADER_MAX, said).await, Ok(Ok(()))) {
        reset(&link);
    }
}

/// The end of `link` will be RST.
fn reset(link: &Link<TcpStream>) {
    if let Some(socket) = link.socket()
        && let Err(why) = set_socket_linger(socket, Some(Duration::ZERO))
    {
        tracing::debug!(%why, "a channel cannot be reset; it is closed");
    }
}

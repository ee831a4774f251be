//! An open that may be answered on a channel of its own: service and channel are
//! dialled at the same time, and whichever way the answer goes, nobody waits for
//! another's dial.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use culvert_net::carrier::Stream;
use culvert_net::dial::Link;
use culvert_net::relay::{Early, End as _, arm, poll_some};
use culvert_proto::channel::{ANSWER_BYTES, ChannelOffer};
use culvert_proto::limits::STREAM_HEADER_TIMEOUT_MS;
use culvert_proto::open::{DialAnswer, DialCode, StreamHeader};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::parked::{accepted, broken, refuse, silent};
use super::{Channels, Failed};
use crate::flow::dial_limit;
use crate::services::Service;

/// A channel has this part of the time that the hub waits, then the stream is good enough.
const PART: u32 = 4;
/// And at most this.
const PATIENCE_MAX: Duration = Duration::from_secs(3);
/// A channel that stands shows its preface by then, also when the service is not dialled yet: the
/// hub closes what stays silent.
const SHOW_WITHIN: Duration = Duration::from_secs(2);
/// From the dial answer on a channel to the hub's word.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const EARLY_WITHIN: Duration = Duration::from_millis(STREAM_HEADER_TIMEOUT_MS);

/// Both dials of one open.
struct Dialled {
    service: TcpStream,
    channel: Result<Link<TcpStream>, Failed>,
    /// The preface, unless it was shown already.
    preface: Bytes,
}

impl Channels {
    /// Serves an open that carries `offer`.
    pub async fn answer(
        self: &Arc<Self>,
        header: &StreamHeader,
        offer: &ChannelOffer,
        mut stream: Stream,
    ) {
        let flows = &self.opener.flows;
        let mut early = match self.read_early(header, &mut stream).await {
            Ok(early) => early,
            Err(answer) => return flows.refuse(stream, &answer).await,
        };
        let service = match self.judge(header, offer.form, &early) {
            Ok(service) => service,
            Err(answer) => return flows.refuse(stream, &answer).await,
        };
        let patience = (dial_limit(header) / PART).min(PATIENCE_MAX);
        let both = self.dial_both(header, offer, service, patience);
        let dialled = tokio::select! {
            dialled = both => dialled,
            // The client left, or the carrier did.
            why = lost(&mut stream) => {
                tracing::debug!(%why, "the open was given up");
                return;
            }
        };
        let Dialled {
            service,
            channel,
            preface,
        } = match dialled {
            Ok(dialled) => dialled,
            Err(answer) => return flows.refuse(stream, &answer).await,
        };
        let moved = match channel {
            Ok(link) => self.take_over(link, service, preface, &mut early).await,
            Err(why) => Err((Some(why), Some(service))),
        };
        match moved {
            Ok((link, service, to_client)) => {
                self.opened(offer.form);
                let _ = stream.shutdown().await;
                let early = Early {
                    to_service: early,
                    to_client,
                };
                drop(flows.mover().start(link, Link::Plain(service), early));
            }
            Err((why, service)) => {
                if let Some(why) = why {
                    self.failed(&why);
                }
                // Without it the stream is dropped, which resets it.
                if let Some(service) = service {
                    flows.stay(stream, service, early).await;
                }
            }
        }
    }

    /// The client's first bytes, as many as the hub announced.
    async fn read_early(
        &self,
        header: &StreamHeader,
        stream: &mut Stream,
    ) -> Result<Bytes, DialAnswer> {
        let mut early = vec![0; header.early_bytes.unwrap_or_default().into()];
        match timeout(EARLY_WITHIN, stream.read_exact(&mut early)).await {
            Ok(Ok(_)) => Ok(early.into()),
            other => {
                let seen = match other {
                    Ok(Err(why)) => why.to_string(),
                    _ => format!("not within {EARLY_WITHIN:?}"),
                };
                let bytes = early.len();
                Err(DialAnswer {
                    code: DialCode::Timeout,
                    reason: format!(
                        "the {bytes} bytes that the open announced did not come: {seen}"
                    ),
                })
            }
        }
    }

    async fn dial_both(
        &self,
        header: &StreamHeader,
        offer: &ChannelOffer,
        service: &Service,
        patience: Duration,
    ) -> Result<Dialled, DialAnswer> {
        let mut preface = Bytes::copy_from_slice(&self.preface(&offer.ticket, offer.form));
        let mut dial = pin!(self.opener.flows.dial(service, header));
        let mut connect = pin!(self.connect(offer.form, patience));
        let show_at = Instant::now() + SHOW_WITHIN;
        let (mut reached, mut channel) = (None, None);
        loop {
            match (reached.take(), channel.take()) {
                (Some(service), Some(channel)) => {
                    return Ok(Dialled {
                        service,
                        channel,
                        preface,
                    });
                }
                open => (reached, channel) = open,
            }
            let waits = matches!(channel, Some(Ok(_))) && !preface.is_empty();
            tokio::select! {
                biased;
                dialled = &mut dial, if reached.is_none() => match (dialled, channel.take()) {
                    (Err(answer), Some(Ok(link))) if preface.is_empty() => {
                        // The hub let the channel in and listens there.
                        refuse(link, &answer).await;
                        return Err(answer);
                    }
                    (dialled, back) => {
                        channel = back;
                        reached = Some(dialled?);
                    }
                },
                connected = &mut connect, if channel.is_none() => channel = Some(connected),
                () = sleep_until(show_at), if waits => {
                    if let Some(Ok(link)) = &mut channel {
                        let shown = async {
                            link.write_all(&preface).await?;
                            link.flush().await
                        };
                        if let Err(why) = shown.await {
                            channel = Some(Err(broken(&why)));
                        }
                        preface = Bytes::new();
                    }
                }
            }
        }
    }

    /// Moves the open to its channel: preface, dial answer and what the service says already in one
    /// write, then the hub's answer is read off. Gives back what the service said and the hub has
    /// not got yet; or why there is no channel, and the service where none of its bytes is lost.
    async fn take_over(
        &self,
        mut link: Link<TcpStream>,
        mut service: TcpStream,
        preface: Bytes,
        early: &mut Bytes,
    ) -> Result<(Link<TcpStream>, TcpStream, Bytes), (Option<Failed>, Option<TcpStream>)> {
        let mut moving = Moving::new(&preface);
        // From the dial answer on, the end of the channel has to be the truth.
        let armed = link.socket().is_none_or(|socket| arm(socket).is_ok());
        let moved = poll_fn(|cx| moving.poll(cx, &mut link, &mut service, early));
        let told = match timeout(ANSWER_WITHIN, moved).await {
            Ok(Ok(())) if moving.service_broke || !armed => return Err((None, None)),
            Ok(Ok(())) => match accepted(&moving.answer) {
                // The hub took the flow over, and its client has left since.
                Ok(()) if moving.link_broke.is_some() => return Err((None, None)),
                told => told,
            },
            Ok(Err(why)) => Err(broken(&why)),
            Err(_) => Err(silent()),
        };
        match told {
            Ok(()) => Ok((link, service, moving.to_hub)),
            Err(why) => Err((Some(why), (!moving.service_spoke).then_some(service))),
        }
    }
}

/// What ends the open before it is answered: an error of the stream, or payload that the hub did not
/// announce. A client may have said all it has to say.
async fn lost(stream: &mut Stream) -> io::Error {
    match poll_fn(|cx| stream.poll_read_bytes(cx)).await {
        Err(why) => why,
        Ok(Some(_)) => io::Error::other("the hub sent payload that it had not announced"),
        Ok(None) => std::future::pending().await,
    }
}

/// A flow on its way to its channel.
struct Moving {
    to_hub: Bytes,
    /// Bytes of the service went to the channel.
    service_spoke: bool,
    service_ended: bool,
    /// The kernel tells of it once only, so it must not be forgotten.
    service_broke: bool,
    /// What a write to the channel met.
    link_broke: Option<io::Error>,
    answer: [u8; ANSWER_BYTES],
    have: usize,
}

impl Moving {
    fn new(preface: &[u8]) -> Self {
        let mut words = BytesMut::from(preface);
        words.extend_from_slice(&DialAnswer::connected().encode());
        Self {
            to_hub: words.freeze(),
            service_spoke: false,
            service_ended: false,
            service_broke: false,
            link_broke: None,
            answer: [0; ANSWER_BYTES],
            have: 0,
        }
    }

    /// Ready when the hub's answer was read, or the service broke. Errors are the channel's, where
    /// no answer stands before them.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link<TcpStream>,
        service: &mut TcpStream,
        early: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        self.deliver(cx, service, early);
        loop {
            while !self.to_hub.is_empty() && self.link_broke.is_none() {
                match Pin::new(&mut *link).poll_write(cx, &self.to_hub) {
                    Poll::Ready(Ok(wrote)) => self.to_hub.advance(wrote),
                    Poll::Ready(Err(why)) => self.link_broke = Some(why),
                    Poll::Pending => break,
                }
            }
            if !self.to_hub.is_empty() || !self.hears(cx, service) {
                break;
            }
        }
        if self.service_broke {
            return Poll::Ready(Ok(()));
        }
        if self.link_broke.is_none()
            && let Poll::Ready(Err(why)) = Pin::new(&mut *link).poll_flush(cx)
        {
            self.link_broke = Some(why);
        }
        while self.have < self.answer.len() {
            let mut read = ReadBuf::new(&mut self.answer[self.have..]);
            let why = match Pin::new(&mut *link).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    self.have += read.filled().len();
                    continue;
                }
                Poll::Pending if self.link_broke.is_none() => return Poll::Pending,
                Poll::Ready(Err(why)) => why,
                _ => io::ErrorKind::UnexpectedEof.into(),
            };
            return Poll::Ready(Err(self.link_broke.take().unwrap_or(why)));
        }
        Poll::Ready(Ok(()))
    }

    fn deliver(&mut self, cx: &mut Context<'_>, service: &mut TcpStream, early: &mut Bytes) {
        while !early.is_empty() {
            match Pin::new(&mut *service).poll_write(cx, early) {
                Poll::Ready(Ok(wrote)) => early.advance(wrote),
                Poll::Ready(Err(_)) => return self.service_broke = true,
                Poll::Pending => return,
            }
        }
    }

    /// Whether the service said something that the hub has to hear next.
    fn hears(&mut self, cx: &mut Context<'_>, service: &mut TcpStream) -> bool {
        if self.service_ended || self.service_broke {
            return false;
        }
        match poll_some(cx, service) {
            Poll::Ready(Ok(said)) => {
                self.service_ended = said.is_empty();
                self.service_spoke |= !said.is_empty();
                self.to_hub = said;
            }
            Poll::Ready(Err(_)) => self.service_broke = true,
            Poll::Pending => {}
        }
        !self.to_hub.is_empty()
    }
}

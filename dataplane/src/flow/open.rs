//! The agent's leg of a flow: a channel that waits, one offered for this open,
//! or the stream that carries the offer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use culvert_engine::legs::Leg;
use culvert_net::carrier::{Stream, close_reason};
use culvert_observe::Offsets;
use culvert_proto::channel::Form;
use culvert_proto::close::CloseReason;
use culvert_proto::id::RequestId;
use culvert_proto::limits::FIRST_BYTES_MAX;
use culvert_proto::open::{DialAnswer, DialAnswerDecoder, DialCode, StreamHeader, StreamKind};
use culvert_proto::registry::Standing;

use super::lives::Flow;
use super::{OPEN_MAX, Origin};
use crate::accept::Place;
use crate::channel::{Channel, ChannelIo, Channels, Offered, PlainSocket, TlsChannel};
use crate::ingress::Refusal;
use crate::observe::Watched;
use crate::observe::socket::Identity;
use crate::plane::Plane;
use crate::sessions::{PairSlot, Session, StreamSlot};

/// Agents tried for one flow.
const AGENTS_MAX: usize = 3;
/// Channels that waited, tried for one flow where no byte can be sent twice.
const CHANNELS_MAX: usize = 4;

/// From the end of the stream that carried an offer to its channel.
const MOVE_MAX: Duration = Duration::from_secs(1);

/// What is to be opened.
pub struct Wanted<'a> {
    pub flow: &'a Arc<Flow>,
    pub id: RequestId,
    pub peer: SocketAddr,
    pub early: Bytes,
}

/// A connected service.
pub struct Opened {
    pub leg: ServiceLeg,
    /// The client's bytes that were not sent yet.
    pub from_client: Bytes,
    /// What followed the dial answer.
    pub from_service: Bytes,
    /// The pair's place in its session's load.
    pub pair: PairSlot,
    /// Bytes of the client that went along with the open.
    pub sent: u64,
    /// Who dialled the channel.
    pub peer: Option<SocketAddr>,
}

/// The agent's end of a flow.
pub enum ServiceLeg {
    Plain(PlainChannel),
    Tls(TlsLeg),
    Stream(Stream, StreamSlot),
}

/// A channel of form 2 on the runtime of this thread.
pub struct PlainChannel {
    pub stream: TcpStream,
    pub place: Place,
    pub watched: Watched,
    pub used: Offsets,
}

/// A channel of form 1.
pub struct TlsLeg {
    channel: TlsChannel,
    _place: Place,
}

impl std::ops::Deref for TlsLeg {
    type Target = TlsChannel;
    fn deref(&self) -> &TlsChannel {
        &self.channel
    }
}

impl std::ops::DerefMut for TlsLeg {
    fn deref_mut(&mut self) -> &mut TlsChannel {
        &mut self.channel
    }
}

/// Why an agent did not connect the service.
enum Failed {
    /// It said so, or broke off behind bytes that must not be sent twice.
    For(Refusal),
    /// It is about to stop: another one may serve.
    Leaving,
    /// The channel had died while it waited, and nothing was sent but the open.
    Stale,
}

/// Asks agents until one has connected the service, for at most 30 s.
///
/// # Errors
/// Why none has.
pub async fn open(plane: &Plane, wanted: Wanted<'_>) -> Result<Opened, Refusal> {
    let asked = tokio::time::timeout(OPEN_MAX, attempt(plane, &wanted)).await;
    asked.unwrap_or_else(|_| {
        let detail = "The agent did not say in time whether it reaches the service.";
        Err(Refusal::new(CloseReason::DialTimeout, detail))
    })
}

async fn attempt(plane: &Plane, wanted: &Wanted<'_>) -> Result<Opened, Refusal> {
    let flow = wanted.flow;
    for _ in 0..AGENTS_MAX {
        let session = plane.sessions.pick(&flow.cluster.state.id)?;
        flow.bind(&session.key);
        // A table that came in between saw a flow of no session.
        if let Some(reason) = flow.lost_right(&plane.table.load()) {
            return Err(Refusal::new(reason, ""));
        }
        let one = Attempt {
            plane,
            wanted,
            session: &session,
        };
        let began = Instant::now();
        match one.run().await {
            Ok(opened) => {
                let seen = &flow.cluster.metrics.seen;
                let took = &plane.metrics.flows.stream_open;
                took.with_label_values(&[&*seen.named.histogram])
                    .observe(began.elapsed().as_secs_f64());
                return Ok(opened);
            }
            Err(Failed::For(refusal)) => return Err(refusal),
            Err(Failed::Leaving) => plane.sessions.set_standing(&session, Standing::Closed),
            Err(Failed::Stale) => {}
        }
    }
    Err(Refusal::new(CloseReason::AgentDraining, ""))
}

struct Attempt<'a> {
    plane: &'a Plane,
    wanted: &'a Wanted<'a>,
    session: &'a Arc<Session>,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<Opened, Failed> {
        if !self.session.facts.kind.is_culvert() {
            let why = "The connected agent speaks radar, which carries HTTP only.";
            return Err(Failed::For(Refusal::new(CloseReason::NoCommonVersion, why)));
        }
        let channels = match self.form() {
            Ok((form, channels)) => {
                if let Some(opened) = self.on_parked(form, channels).await? {
                    return Ok(opened);
                }
                channels.offer(form).ok_or("no_ticket")
            }
            Err(why) => Err(why),
        };
        match channels {
            Ok(offered) => self.on_offer(offered).await,
            Err(why) => self.on_stream(why).await,
        }
    }

    /// What the channel may run in; else why there is none.
    fn form(&self) -> Result<(Form, &Arc<Channels>), &'static str> {
        let channels = self.session.channels.as_ref().ok_or("no_capability")?;
        let is_sealed = matches!(self.wanted.flow.origin, Origin::Sealed { .. });
        let form = self.plane.form(self.session.caps, is_sealed);
        Ok((form.ok_or("no_tls")?, channels))
    }

    async fn on_parked(
        &self,
        form: Form,
        channels: &Arc<Channels>,
    ) -> Result<Option<Opened>, Failed> {
        let mut claimed = channels.claim(form);
        for _ in 0..CHANNELS_MAX {
            let Some(channel) = claimed else {
                return Ok(None);
            };
            match self.ask(channel).await {
                Err(Failed::Stale) => {
                    channels.count_failure("died_parked");
                    claimed = channels.claim_again(form);
                }
                other => return other.map(Some),
            }
        }
        Ok(None)
    }

    /// Asks on a channel that waited.
    async fn ask(&self, channel: Channel) -> Result<Opened, Failed> {
        let (early, rest) = self.early();
        let mut header = self.header();
        header.payload_follows = !early.is_empty();
        let mut asked = BytesMut::from(&*encode(&header)?);
        asked.extend_from_slice(&early);
        let peer = Some(channel.peer);
        let mut leg = self.on(channel).map_err(|_| Failed::Stale)?;
        let answered = match &mut leg {
            ServiceLeg::Plain(channel) => {
                channel.used.written += asked.len() as u64;
                exchange(&mut channel.stream, &asked).await
            }
            ServiceLeg::Tls(leg) => exchange(&mut *leg.stream, &asked).await,
            ServiceLeg::Stream(..) => return Err(Failed::Stale),
        };
        match answered {
            Ok(answered) => {
                self.judge(&answered.answer)?;
                Ok(self.opened(leg, (early.len(), rest), answered, peer))
            }
            Err(_) if early.is_empty() => Err(Failed::Stale),
            Err(why) => Err(broke(&why)),
        }
    }

    /// Opens a stream that carries an offer: the agent answers on the channel
    /// that it dials, or on the stream when no channel comes to be.
    async fn on_offer(&self, mut offered: Offered) -> Result<Opened, Failed> {
        let (early, rest) = self.early();
        let mut header = self.header();
        header.offer = Some(offered.offer.clone());
        header.early_bytes = u16::try_from(early.len()).ok();
        header.payload_follows = !early.is_empty();
        let (mut stream, slot) = self.stream(&header)?;
        write(&mut stream, &early).await?;
        let channel = tokio::select! {
            biased;
            channel = offered.arrived() => channel,
            answered = answer(&mut stream) => match answered {
                Ok(answered) => {
                    drop(offered);
                    self.judge(&answered.answer)?;
                    self.fell_back("channel_failed");
                    let leg = ServiceLeg::Stream(stream, slot);
                    return Ok(self.opened(leg, (early.len(), rest), answered, None));
                }
                // The agent lets go of the stream once it has its channel.
                Err(why) => tokio::time::timeout(MOVE_MAX, offered.arrived())
                    .await
                    .map_err(|_| broke(&why))?,
            },
        };
        let peer = Some(channel.peer);
        let mut leg = self.on(channel).map_err(|why| broke(&why))?;
        let answered = match &mut leg {
            ServiceLeg::Plain(channel) => answer(&mut channel.stream).await,
            ServiceLeg::Tls(leg) => answer(&mut *leg.stream).await,
            ServiceLeg::Stream(stream, _) => answer(stream).await,
        };
        let answered = answered.map_err(|why| broke(&why))?;
        drop((stream, slot));
        self.judge(&answered.answer)?;
        Ok(self.opened(leg, (early.len(), rest), answered, peer))
    }

    async fn on_stream(&self, why: &'static str) -> Result<Opened, Failed> {
        let (early, rest) = self.early();
        let mut header = self.header();
        header.payload_follows = !early.is_empty();
        let (mut stream, slot) = self.stream(&header)?;
        write(&mut stream, &early).await?;
        let answered = answer(&mut stream).await;
        let answered = answered.map_err(|why| broke(&why))?;
        self.judge(&answered.answer)?;
        self.fell_back(why);
        let leg = ServiceLeg::Stream(stream, slot);
        Ok(self.opened(leg, (early.len(), rest), answered, None))
    }

    fn stream(&self, header: &StreamHeader) -> Result<(Stream, StreamSlot), Failed> {
        let cluster = &self.wanted.flow.cluster.metrics;
        let opened = self.plane.sessions.open_on(self.session, cluster, header);
        opened.map_err(|refusal| match refusal {
            Some(refusal) => Failed::For(refusal),
            None => Failed::Leaving,
        })
    }

    fn fell_back(&self, why: &str) {
        let flows = &self.plane.metrics.flows;
        flows.fallbacks.with_label_values(&[why]).inc();
    }

    /// The channel, tagged as this flow's.
    fn on(&self, channel: Channel) -> io::Result<ServiceLeg> {
        let flow = self.wanted.flow;
        let identity = Identity {
            seen: flow.cluster.metrics.seen.clone(),
            leg: Leg::Data,
            conn: Some(flow.conn),
        };
        let Channel { io, place, .. } = channel;
        Ok(match io {
            ChannelIo::Plain(plain) => {
                let PlainSocket {
                    stream,
                    mut watched,
                    used,
                } = plain;
                let stream = TcpStream::from_std(stream)?;
                // Whatever becomes of the open: its end shall not look like a client's.
                stream.set_zero_linger()?;
                watched.becomes(stream.as_fd(), &identity);
                ServiceLeg::Plain(PlainChannel {
                    stream,
                    place,
                    watched,
                    used,
                })
            }
            ChannelIo::Tls(channel) => {
                channel.identify(identity);
                ServiceLeg::Tls(TlsLeg {
                    channel,
                    _place: place,
                })
            }
        })
    }

    fn opened(
        &self,
        mut leg: ServiceLeg,
        (sent, from_client): (usize, Bytes),
        answered: Answered,
        peer: Option<SocketAddr>,
    ) -> Opened {
        if let ServiceLeg::Plain(channel) = &mut leg {
            channel.used.consumed += answered.consumed;
        }
        Opened {
            leg,
            from_client,
            from_service: answered.behind,
            pair: self.session.pair(),
            sent: sent as u64,
            peer,
        }
    }

    /// What may go along with the open, and what may not.
    fn early(&self) -> (Bytes, Bytes) {
        let mut early = self.wanted.early.clone();
        let rest = early.split_off(early.len().min(FIRST_BYTES_MAX));
        (early, rest)
    }

    fn header(&self) -> StreamHeader {
        let mut header = StreamHeader::new(StreamKind::Tcp);
        let flow = self.wanted.flow;
        header.target = Some(flow.service.clone());
        header.request_id = Some(self.wanted.id);
        header.dial_deadline_ms = u32::try_from(OPEN_MAX.as_millis()).ok();
        header.client_addr = Some(self.wanted.peer.to_string().into());
        if let Origin::Forward { principal, .. } = &flow.origin {
            header.principal = Some(principal.clone());
        }
        header
    }

    fn judge(&self, answer: &DialAnswer) -> Result<(), Failed> {
        match (answer.code, answer.code.close_reason()) {
            (_, None) => Ok(()),
            (DialCode::Draining, _) => Err(Failed::Leaving),
            (_, Some(reason)) => {
                tracing::debug!(
                    session = %self.session.key, service = %self.wanted.flow.service, %reason,
                    detail = answer.reason, "the agent does not connect the service"
                );
                Err(Failed::For(Refusal::new(reason, answer.reason.clone())))
            }
        }
    }
}

fn encode(header: &StreamHeader) -> Result<Bytes, Failed> {
    let encoded = header.encode();
    encoded.map_err(|why| Failed::For(Refusal::new(CloseReason::Internal, why.to_string())))
}

fn broke(why: &io::Error) -> Failed {
    let reason = close_reason(why).unwrap_or(CloseReason::CarrierLost);
    let reason = match reason {
        // The agent answers a dial in words; a reset is none.
        CloseReason::Finished => CloseReason::AgentReset,
        reason => reason,
    };
    Failed::For(Refusal::new(
        reason,
        "The agent broke off before its answer.",
    ))
}

async fn write(stream: &mut Stream, early: &[u8]) -> Result<(), Failed> {
    stream.write_all(early).await.map_err(|why| broke(&why))
}

async fn exchange(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    asked: &[u8],
) -> io::Result<Answered> {
    io.write_all(asked).await?;
    io.flush().await?;
    answer(io).await
}

/// What an agent answered.
struct Answered {
    answer: DialAnswer,
    /// What the service said right behind it.
    behind: Bytes,
    /// The answer's own bytes.
    consumed: u64,
}

/// The dial answer.
async fn answer(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Answered> {
    let mut read = 0;
    let mut decoder = DialAnswerDecoder::new();
    let mut buffer = BytesMut::with_capacity(1024);
    loop {
        match io.read_buf(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => read += got,
        }
        let mut bytes = buffer.split().freeze();
        let decoded = decoder.push(&mut bytes);
        let bad = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        if let Some(answer) = decoded.map_err(bad)? {
            return Ok(Answered {
                answer,
                consumed: (read - bytes.len()) as u64,
                behind: bytes,
            });
        }
        buffer.reserve(1024);
    }
}

//! A data channel on its way in: preface, ticket, answer.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use culvert_engine::legs::Leg;
use culvert_net::tls::ServerStream;
use culvert_observe::Offsets;
use culvert_proto::channel::{ChannelAnswer, Form, PREFACE_BYTES, Preface};
use culvert_proto::limits::UPGRADE_TIMEOUT_MS;

use super::{Admitted, Channel, ChannelIo, Channels, PlainSocket, TlsChannel};
use crate::accept::{Place, read_out};
use crate::conn::{ClientSocket, InFlight};
use crate::observe::Watched;
use crate::observe::socket::Identity;
use crate::plane::Plane;
use crate::sessions::Session;

/// A preface has this long to come, from its first byte or the end of TLS.
const PREFACE_MAX: Duration = Duration::from_millis(UPGRADE_TIMEOUT_MS);

/// Where a channel comes from.
pub struct From {
    /// Who dialled.
    pub peer: SocketAddr,
    /// Its place among the listener's connections.
    pub place: Place,
}

/// A channel of form 2, whose first bytes, `seen`, were read.
pub async fn plain(
    plane: &Arc<Plane>,
    from: From,
    (mut stream, mut watched): (TcpStream, Watched),
    seen: [u8; 4],
) {
    let admitted = match admit(plane, Form::Plain, &mut stream, &seen).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            refused.log(plane, from.peer);
            return read_out(stream, &refused.last_words()).await;
        }
    };
    // Answered while the socket's buffer is empty: this does not wait.
    let answer = ChannelAnswer::Parked.encode();
    watched.becomes(stream.as_fd(), &admitted.identity(plane));
    let answered = stream.write_all(&answer).await.is_ok();
    if answered && let Ok(stream) = stream.into_std() {
        let used = Offsets {
            consumed: PREFACE_BYTES as u64,
            written: answer.len() as u64,
        };
        let socket = PlainSocket {
            stream,
            watched,
            used,
        };
        admitted.take(Form::Plain, ChannelIo::Plain(socket), from, plane);
    }
}

/// A channel of form 1, whose handshake is done.
pub async fn tls(
    plane: &Arc<Plane>,
    from: From,
    busy: InFlight,
    mut stream: ServerStream<ClientSocket>,
) {
    let admitted = match admit(plane, Form::Tls, &mut stream, &[]).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            refused.log(plane, from.peer);
            return farewell(stream, &refused.last_words()).await;
        }
    };
    busy.conn().identify(admitted.identity(plane));
    let answer = ChannelAnswer::Parked.encode();
    let answered = async {
        stream.write_all(&answer).await?;
        stream.flush().await
    };
    if answered.await.is_ok() {
        let channel = TlsChannel::here(stream, busy);
        admitted.take(Form::Tls, ChannelIo::Tls(channel), from, plane);
    }
}

struct Good {
    session: Arc<Session>,
    channels: Arc<Channels>,
    admitted: Admitted,
}

/// Why a channel is refused.
struct Refused {
    answer: Option<ChannelAnswer>,
    reason: &'static str,
    detail: String,
}

impl Refused {
    fn new(reason: &'static str, detail: String) -> Self {
        let answer = None;
        Self {
            answer,
            reason,
            detail,
        }
    }

    fn last_words(&self) -> Vec<u8> {
        self.answer
            .map_or(Vec::new(), |answer| answer.encode().to_vec())
    }

    fn log(&self, plane: &Plane, peer: SocketAddr) {
        let labels = [self.reason];
        plane
            .metrics
            .channels
            .failed
            .with_label_values(&labels)
            .inc();
        tracing::debug!(%peer, reason = self.reason, detail = self.detail, "data channel refused");
    }
}

impl std::convert::From<ChannelAnswer> for Refused {
    fn from(answer: ChannelAnswer) -> Self {
        Self {
            answer: Some(answer),
            ..Self::new(answer.as_str(), String::new())
        }
    }
}

async fn admit(
    plane: &Plane,
    form: Form,
    io: &mut (impl AsyncRead + Unpin),
    seen: &[u8],
) -> Result<Good, Refused> {
    let mut bytes = [0; PREFACE_BYTES];
    bytes[..seen.len()].copy_from_slice(seen);
    let read = tokio::time::timeout(PREFACE_MAX, io.read_exact(&mut bytes[seen.len()..])).await;
    match read {
        Ok(Ok(_)) => {}
        Ok(Err(why)) => return Err(Refused::new("preface_cut", why.to_string())),
        Err(_) => return Err(Refused::new("preface_late", String::new())),
    }
    let decoded = Preface::decode(&bytes);
    let (preface, mac) = decoded.map_err(|why| Refused::new("preface_bad", why.to_string()))?;
    if preface.form != form {
        let detail = format!(
            "form {} on a transport of form {}",
            preface.form as u8, form as u8
        );
        return Err(Refused::new("form", detail));
    }
    let session = plane.sessions.by_epoch(preface.epoch);
    let session = session.ok_or(ChannelAnswer::StaleEpoch)?;
    let channels = session.channels.as_ref().ok_or(ChannelAnswer::BadTicket)?;
    if form == Form::Plain && plane.wants_certificates() && !session.facts.showed_certificate {
        return Err(ChannelAnswer::BadTicket.into());
    }
    let admitted = channels.redeem(&preface, &mac)?;
    Ok(Good {
        channels: channels.clone(),
        admitted,
        session,
    })
}

impl Good {
    /// What the connection turned out to be.
    fn identity(&self, plane: &Plane) -> Identity {
        let table = plane.table.load();
        let cluster = table.get(self.session.key.cluster.as_str());
        let seen = cluster.map(|cluster| cluster.metrics.seen.clone());
        Identity {
            seen: seen.unwrap_or_else(|| plane.metrics.sight.nobody()),
            leg: Leg::Data,
            conn: None,
        }
    }

    fn take(self, form: Form, io: ChannelIo, from: From, plane: &Plane) {
        let labels = [form.as_str()];
        plane
            .metrics
            .channels
            .opened
            .with_label_values(&labels)
            .inc();
        let From { peer, place } = from;
        let channel = Channel { io, place, peer };
        match self.admitted {
            Admitted::Park(form) => self.channels.park(form, channel),
            // Nobody waits any more: the channel goes.
            Admitted::Open(tell) => drop(tell.send(channel)),
        }
    }
}

async fn farewell(mut stream: impl AsyncWrite + Unpin, last_words: &[u8]) {
    let _ = tokio::time::timeout(crate::accept::FAREWELL, async {
        stream.write_all(last_words).await?;
        stream.shutdown().await
    })
    .await;
}

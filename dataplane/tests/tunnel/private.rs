//! The private side of relayed TCP: data channels as an agent opens them, and
//! services that do what their name says.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_net::carrier::Stream;
use culvert_net::crypto::hmac_sha256;
use culvert_net::tls::{ClientStream, ClientTls, ServerTls};
use culvert_proto::channel::{ANSWER_BYTES, ChannelAnswer, Form, PREFACE_BYTES, Preface};
use culvert_proto::control::Ticket;
use culvert_proto::id::Epoch;
use culvert_proto::open::{DialAnswer, DialCode, StreamHeader, StreamHeaderDecoder};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::hub::soon;

/// What an agent does with offers and tickets, and what it saw.
pub struct Private {
    pub hub: SocketAddr,
    /// Opens channels; else it answers on streams and keeps the tickets.
    pub opens_channels: bool,
    pub tls: Option<Arc<ClientTls>>,
    /// Of a service that is TLS end to end.
    pub service_tls: Option<Arc<ServerTls>>,
    pub epoch: Mutex<Epoch>,
    pub headers: Mutex<Vec<StreamHeader>>,
    pub tickets: Mutex<Vec<(Form, Ticket)>>,
    pub granted: Mutex<Vec<Arc<str>>>,
    /// How each flow was carried: `offered`, `parked`, `stream`.
    pub carried: Mutex<Vec<&'static str>>,
    /// How each flow ended as the service saw it.
    pub ends: Mutex<Vec<String>>,
}

impl Private {
    pub fn new(hub: SocketAddr, opens_channels: bool) -> Arc<Private> {
        Private::over(hub, opens_channels, None)
    }

    pub fn over(
        hub: SocketAddr,
        opens_channels: bool,
        tls: Option<Arc<ClientTls>>,
    ) -> Arc<Private> {
        Arc::new(Private::build(hub, opens_channels, tls, None))
    }

    pub fn build(
        hub: SocketAddr,
        opens_channels: bool,
        tls: Option<Arc<ClientTls>>,
        service_tls: Option<Arc<ServerTls>>,
    ) -> Private {
        Private {
            hub,
            opens_channels,
            tls,
            service_tls,
            epoch: Mutex::new(Epoch(0)),
            headers: Mutex::default(),
            tickets: Mutex::default(),
            granted: Mutex::default(),
            carried: Mutex::default(),
            ends: Mutex::default(),
        }
    }

    pub fn preface(&self, form: Form, ticket: &Ticket) -> [u8; PREFACE_BYTES] {
        let preface = Preface {
            form,
            ticket: ticket.id,
            epoch: *self.epoch.lock(),
        };
        preface.encode(&hmac_sha256(&ticket.key, &preface.signed_part()))
    }

    /// Dials, and says `words`.
    pub async fn dial(&self, form: Form, words: &[u8]) -> std::io::Result<Wire> {
        let tcp = TcpStream::connect(self.hub).await?;
        let mut wire = match form {
            Form::Plain => Wire::Tcp(tcp),
            Form::Tls => {
                let tls = self.tls.as_ref().unwrap();
                let done = tls
                    .connect_alpn("localhost", culvert_proto::channel::ALPN, tcp)
                    .await;
                Wire::Tls(Box::new(done.map_err(std::io::Error::other)?))
            }
        };
        wire.write_all(words).await?;
        wire.flush().await?;
        Ok(wire)
    }

    /// A ticket was issued for a channel that waits.
    pub async fn park(self: Arc<Self>, form: Form, ticket: Ticket) {
        let Ok(mut wire) = self.dial(form, &self.preface(form, &ticket)).await else {
            return;
        };
        if answer(&mut wire).await != Some(ChannelAnswer::Parked) {
            return;
        }
        let mut decoder = StreamHeaderDecoder::new();
        let mut bytes = BytesMut::new();
        let (header, early) = loop {
            match wire.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let mut new = bytes.split().freeze();
            if let Some(header) = decoder.push(&mut new).unwrap() {
                break (header, new);
            }
        };
        self.carried.lock().push("parked");
        self.connect(header, wire, early).await;
    }

    /// The hub opened a flow.
    pub async fn opened(self: Arc<Self>, header: StreamHeader, mut stream: Stream) {
        let mut early = vec![0; usize::from(header.early_bytes.unwrap_or(0))];
        if stream.read_exact(&mut early).await.is_err() {
            return;
        }
        let early = Bytes::from(early);
        let offer = header.offer.clone().filter(|_| self.opens_channels);
        let Some(offer) = offer else {
            self.carried.lock().push("stream");
            return self.connect(header, Wire::Stream(stream), early).await;
        };
        let preface = self.preface(offer.form, &offer.ticket);
        let dial = self.dial(offer.form, &preface);
        let Ok(mut wire) = dial.await else { return };
        // Right behind the preface, before the hub's own answer.
        let said = answer_of(&header);
        wire.write_all(&said.encode()).await.unwrap();
        wire.flush().await.unwrap();
        if answer(&mut wire).await == Some(ChannelAnswer::Parked) {
            self.carried.lock().push("offered");
            drop(stream);
            self.headers.lock().push(header.clone());
            if said.code == DialCode::Connected {
                self.serve(header, wire, early).await;
            }
        }
    }

    async fn connect(&self, header: StreamHeader, mut wire: Wire, early: Bytes) {
        self.headers.lock().push(header.clone());
        if &**header.target.as_ref().unwrap() == "hang" {
            return std::future::pending().await;
        }
        let said = answer_of(&header);
        if wire.write_all(&said.encode()).await.is_err() || wire.flush().await.is_err() {
            return;
        }
        if said.code == DialCode::Connected {
            self.serve(header, wire, early).await;
        }
    }

    async fn serve(&self, header: StreamHeader, mut wire: Wire, early: Bytes) {
        let name = header.target.unwrap();
        let ended = match &*name {
            "tls" => {
                let tls = self.service_tls.clone().unwrap();
                let (read, write) = tokio::io::split(wire);
                let joined = tokio::io::join(std::io::Cursor::new(early).chain(read), write);
                match tls.accept(joined).await {
                    Ok(mut tls) => echo(&mut tls, Bytes::new()).await,
                    Err(why) => Err(std::io::Error::other(why)),
                }
            }
            "banner" => match wire.write_all(b"220 ready\r\n").await {
                Ok(()) => echo(&mut wire, early).await,
                failed => failed,
            },
            "count" => count(&mut wire, early.len()).await,
            "once" => {
                let _ = wire.write_all(&pattern(1 << 20)).await;
                let _ = wire.shutdown().await;
                let mut rest = early.to_vec();
                let read = wire.read_to_end(&mut rest).await;
                read.map(|_| assert_eq!(rest, b"still heard"))
            }
            "reset" => {
                if early.is_empty() {
                    let _ = wire.read_u8().await;
                }
                return wire.reset();
            }
            _ => echo(&mut wire, early).await,
        };
        let word = ended.map_or_else(|why| why.kind().to_string(), |()| "clean".to_owned());
        self.ends.lock().push(word);
        // Late enough that its FIN is no part of what is tested.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn answer_of(header: &StreamHeader) -> DialAnswer {
    let code = match header.target.as_deref() {
        Some("refused") => DialCode::Refused,
        _ => DialCode::Connected,
    };
    DialAnswer {
        code,
        reason: String::new(),
    }
}

/// The hub's answer to a preface; `None` when it ended without one.
pub async fn answer(wire: &mut Wire) -> Option<ChannelAnswer> {
    let mut bytes = [0; ANSWER_BYTES];
    let read = soon("an answer", wire.read_exact(&mut bytes)).await;
    read.ok()?;
    Some(ChannelAnswer::decode(&bytes).unwrap())
}

async fn echo(io: &mut (impl AsyncRead + AsyncWrite + Unpin), early: Bytes) -> std::io::Result<()> {
    io.write_all(&early).await?;
    io.flush().await?;
    let mut buffer = vec![0; 65_536];
    loop {
        match io.read(&mut buffer).await? {
            0 => return io.shutdown().await,
            got => io.write_all(&buffer[..got]).await?,
        }
        io.flush().await?;
    }
}

async fn count(io: &mut Wire, early: usize) -> std::io::Result<()> {
    let mut all = Vec::new();
    io.read_to_end(&mut all).await?;
    let text = (early + all.len()).to_string();
    io.write_all(text.as_bytes()).await?;
    io.shutdown().await
}

pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// The agent's end of one flow.
pub enum Wire {
    Tcp(TcpStream),
    Tls(Box<ClientStream<TcpStream>>),
    Stream(Stream),
}

impl Wire {
    /// Ends it by RST.
    pub fn reset(self) {
        let zero = Some(Duration::ZERO);
        match &self {
            Wire::Tcp(tcp) => SockRef::from(tcp).set_linger(zero).unwrap(),
            Wire::Tls(tls) => SockRef::from(tls.get_ref().0.get_ref())
                .set_linger(zero)
                .unwrap(),
            Wire::Stream(_) => {}
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Wire::Tls(io) => Pin::new(io).poll_read(cx, buf),
            Wire::Stream(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Wire::Tcp(io) => Pin::new(io).poll_write(cx, data),
            Wire::Tls(io) => Pin::new(io).poll_write(cx, data),
            Wire::Stream(io) => Pin::new(io).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(io) => Pin::new(io).poll_flush(cx),
            Wire::Tls(io) => Pin::new(io).poll_flush(cx),
            Wire::Stream(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Wire::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Wire::Stream(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

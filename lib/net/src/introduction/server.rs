//! The relay's side: who is here, and whether it may be.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_proto::pair::{
    ALPN_RELAY, HELLO_TIMEOUT_MS, PREFACE_TIMEOUT_MS, Preface, PrefaceError, PrefaceReader,
    ProofKind, RelayHello, RendezvousId, Reply, ReplyCode, Role,
};
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::seal::Sealer;
use super::waiter::{Waiter, Wire, farewell};
use super::{ProofError, Records, verify};
use crate::crypto::random_bytes;
use crate::tls::{MinVersion, ServerTls, ServerTlsOptions, TlsError};

/// A preface comes in one or two pieces; this is one read of it.
const PIECE_BYTES: usize = 1_024;

/// What the outer leg of a relay runs in.
pub enum OuterServer {
    /// No TLS: the network is trusted with the ids.
    Plain,
    /// TLS 1.3, left at MATCHED or kept.
    Tls {
        /// From [`OuterServer::tls`].
        tls: Arc<ServerTls>,
        /// Never left: everything is copied through it.
        keep: bool,
    },
}

/// How a relay receives.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// Sides that only know the id are let in.
    pub accepts_open: bool,
    /// Nobody is: everybody hears this behind the hello.
    pub closed: Option<Reply>,
}

/// A side that showed what it has to, and waits.
pub struct Guest<IO> {
    /// Which side.
    pub role: Role,
    /// How it proved the id.
    pub proof: ProofKind,
    /// Where it wants to meet.
    pub id: RendezvousId,
    /// The connection.
    pub waiter: Waiter<IO>,
}

/// Why somebody is no guest. It has been told, where there is a reply for it.
#[derive(Debug, thiserror::Error)]
pub enum NotLetIn {
    /// No TLS, or not for this.
    #[error("{0}")]
    Tls(TlsError),
    /// TLS for something else.
    #[error("the protocol chosen by ALPN is not culvert-relay/1")]
    Alpn,
    /// It went away.
    #[error("the connection ended: {0}")]
    Gone(io::Error),
    /// It did not say enough in time.
    #[error("no preface within its time")]
    Silent,
    /// It said something else.
    #[error("{0}")]
    Preface(PrefaceError),
    /// It went on behind the preface, which is not allowed before MATCHED.
    #[error("bytes behind the preface")]
    Hasty,
    /// Its proof does not hold.
    #[error("{0}")]
    Proof(ProofError),
    /// It only knows the id.
    #[error("an open join is not let in here")]
    Open,
    /// The door was closed.
    #[error("told: {0}")]
    Closed(ReplyCode),
}

impl OuterServer {
    /// TLS of a relay's listener.
    ///
    /// # Errors
    /// When a file is not what it must be.
    pub fn tls(cert: std::path::PathBuf, key: std::path::PathBuf) -> Result<ServerTls, TlsError> {
        ServerTls::load(ServerTlsOptions {
            cert,
            key,
            client_auth: None,
            alpn: vec![ALPN_RELAY.to_vec()],
            min_version: MinVersion::Tls13,
        })
    }
}

impl NotLetIn {
    /// The word in logs and labels.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            NotLetIn::Tls(_) => "tls",
            NotLetIn::Alpn => "alpn",
            NotLetIn::Gone(_) => "gone",
            NotLetIn::Silent => "silent",
            NotLetIn::Preface(_) | NotLetIn::Hasty => ReplyCode::BadPreface.as_str(),
            NotLetIn::Proof(_) => ReplyCode::BadProof.as_str(),
            NotLetIn::Open => ReplyCode::OpenRefused.as_str(),
            NotLetIn::Closed(code) => code.as_str(),
        }
    }

    /// What it is told.
    fn reply(&self) -> Option<Reply> {
        Some(match self {
            NotLetIn::Preface(_) | NotLetIn::Hasty => ReplyCode::BadPreface.into(),
            NotLetIn::Proof(_) => ReplyCode::BadProof.into(),
            NotLetIn::Open => ReplyCode::OpenRefused.into(),
            NotLetIn::Tls(_) | NotLetIn::Alpn | NotLetIn::Gone(_) | NotLetIn::Silent => {
                return None;
            }
            // Told already, with the time to wait.
            NotLetIn::Closed(_) => return None,
        })
    }
}

/// Runs the introduction of one connection up to the preface that holds.
///
/// # Errors
/// Why it is not let in.
pub async fn receive<IO>(io: IO, outer: &OuterServer, door: Door) -> Result<Guest<IO>, NotLetIn>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let hello = RelayHello {
        accepts_open: door.accepts_open,
        challenge: random_bytes(),
    };
    let (preface, wire) = match outer {
        OuterServer::Plain => {
            let mut io = io;
            greet(&mut io, &hello).await?;
            (hear(&mut io, door, &hello).await?, Wire::Plain(io))
        }
        OuterServer::Tls { tls, keep: true } => {
            let mut stream = tls.accept(io).await.map_err(NotLetIn::Tls)?;
            is_relay_protocol(stream.get_ref().1)?;
            greet(&mut stream, &hello).await?;
            let preface = hear(&mut stream, door, &hello).await?;
            (preface, Wire::Kept(Box::new(stream)))
        }
        OuterServer::Tls { tls, keep: false } => {
            let (preface, io, sealer) = Box::pin(left_early(io, tls, door, &hello)).await?;
            (preface, Wire::Sealed(io, Box::new(sealer)))
        }
    };
    Ok(Guest {
        role: preface.role,
        proof: preface.proof,
        id: preface.id,
        waiter: Waiter::new(wire),
    })
}

/// Leaves nothing of TLS but what seals the replies.
async fn left_early<IO>(
    io: IO,
    tls: &ServerTls,
    door: Door,
    hello: &RelayHello,
) -> Result<(Preface, IO, Sealer), NotLetIn>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(leaving(&tls.config()));
    // Behind our Finished, before theirs: a round trip less. It is no secret, and for nobody yet.
    let greet = |connection: &mut ServerConnection| {
        use std::io::Write as _;
        let _ = connection.writer().write_all(&hello.encode());
    };
    let handshake = acceptor.accept_with(Records::new(io), greet);
    let handshake = timeout(crate::tls::HANDSHAKE_MAX, handshake);
    let mut stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Err(NotLetIn::Tls(TlsError::from_handshake(&why))),
        Err(_) => return Err(NotLetIn::Silent),
    };
    is_relay_protocol(stream.get_ref().1)?;
    let preface = hear(&mut stream, door, hello).await?;
    let is_whole = stream.get_ref().0.is_at_boundary();
    if !is_whole || has_more(stream.get_mut().1) {
        farewell(&mut stream, Some(ReplyCode::BadPreface.into())).await;
        return Err(NotLetIn::Hasty);
    }
    let (records, connection) = stream.into_inner();
    let sealer = Sealer::take(connection).map_err(NotLetIn::Gone)?;
    Ok((preface, records.into_inner(), sealer))
}

/// No tickets: they would come behind what the joiner reads last. Its keys may be taken over.
fn leaving(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.send_tls13_tickets = 0;
    config.send_half_rtt_data = true;
    config.enable_secret_extraction = true;
    Arc::new(config)
}

fn is_relay_protocol(connection: &ServerConnection) -> Result<(), NotLetIn> {
    match connection.alpn_protocol() {
        Some(ALPN_RELAY) => Ok(()),
        _ => Err(NotLetIn::Alpn),
    }
}

fn has_more(connection: &mut ServerConnection) -> bool {
    use std::io::Read as _;
    connection.reader().read(&mut [0]).is_ok()
}

async fn greet<S: AsyncWrite + Unpin>(stream: &mut S, hello: &RelayHello) -> Result<(), NotLetIn> {
    let said = async {
        stream.write_all(&hello.encode()).await?;
        stream.flush().await
    };
    match timeout(Duration::from_millis(HELLO_TIMEOUT_MS), said).await {
        Ok(said) => said.map_err(NotLetIn::Gone),
        Err(_) => Err(NotLetIn::Silent),
    }
}

/// Behind the hello: preface, verdict. Whoever is refused is told.
async fn hear<S>(stream: &mut S, door: Door, hello: &RelayHello) -> Result<Preface, NotLetIn>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let heard = converse(stream, door, hello).await;
    if let Err(why) = &heard
        && let Some(reply) = why.reply()
    {
        farewell(stream, Some(reply)).await;
    }
    heard
}

async fn converse<S>(stream: &mut S, door: Door, hello: &RelayHello) -> Result<Preface, NotLetIn>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Some(reply) = door.closed {
        farewell(stream, Some(reply)).await;
        return Err(NotLetIn::Closed(reply.code));
    }
    let wait = Duration::from_millis(PREFACE_TIMEOUT_MS);
    let preface = timeout(wait, read_preface(stream)).await;
    let preface = preface.map_err(|_| NotLetIn::Silent)??;
    if preface.proof == ProofKind::Open && !door.accepts_open {
        return Err(NotLetIn::Open);
    }
    verify(&preface, &hello.challenge, unix_s()).map_err(NotLetIn::Proof)?;
    Ok(preface)
}

async fn read_preface<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Preface, NotLetIn> {
    let mut reader = PrefaceReader::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let wanted = reader.wanted().min(PIECE_BYTES);
        let read = stream.read(&mut piece[..wanted]).await;
        let read = match read.map_err(NotLetIn::Gone)? {
            0 => return Err(NotLetIn::Gone(io::ErrorKind::UnexpectedEof.into())),
            read => read,
        };
        let heard = reader.feed(&mut &piece[..read]);
        if let Some(preface) = heard.map_err(NotLetIn::Preface)? {
            return Ok(preface);
        }
    }
}

fn unix_s() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

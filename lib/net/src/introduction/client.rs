//! A side's way in at a relay.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use culvert_proto::pair::{
    ALPN_RELAY, HELLO_BYTES, HELLO_TIMEOUT_MS, ProofKind, RelayHello, RelayHelloError, Reply,
    ReplyCode, ReplyError, Role, SILENCE_MAX_MS,
};
use rustls::ClientConnection;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Credential, CredentialError, Link, Records};
use crate::tls::{ClientTls, ClientTlsOptions, HANDSHAKE_MAX, MinVersion, TlsError};

/// What the outer leg runs in; the relay has to be told the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// No TLS.
    Plain,
    /// TLS 1.3.
    Tls {
        /// Never left; else it ends with MATCHED.
        keep: bool,
    },
}

/// The outer leg of a side.
pub struct OuterClient {
    outer: Outer,
    tls: Option<Arc<ClientTls>>,
}

/// Why a side is not joined.
#[derive(Debug, thiserror::Error)]
pub enum IntroduceError {
    /// The outer TLS did not come to be.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// TLS, but of something else.
    #[error(
        "the other end speaks TLS, but not culvert-relay/1: check that the address is a relay's"
    )]
    Alpn,
    /// The bytes are no relay's.
    #[error("{0}")]
    Hello(#[from] RelayHelloError),
    /// The relay said something unknown.
    #[error("{0}")]
    Reply(#[from] ReplyError),
    /// The relay refuses.
    #[error("the relay refused: {code}{}; {}", again(*retry_after_s), remedy(*code))]
    Refused {
        /// Why.
        code: ReplyCode,
        /// Seconds after which another try makes sense; 0 says nothing.
        retry_after_s: u16,
    },
    /// The relay says nothing.
    #[error("the relay said nothing for {seconds} s: it hangs or the path is dead; dial again")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// TLS did not end where the conversation begins.
    #[error("the relay's MATCHED does not end its record: relay and agent differ in --outer-tls")]
    Boundary,
    /// The connection ended.
    #[error("the connection to the relay ended: {0}; dial again")]
    Gone(io::Error),
    /// The key does not sign.
    #[error("{0}")]
    Credential(#[from] CredentialError),
}

impl OuterClient {
    /// Reads whom to trust. Of `options` the protocols and the lowest version are set here.
    ///
    /// # Errors
    /// When a file is not what it must be.
    pub fn load(outer: Outer, options: ClientTlsOptions) -> Result<Self, TlsError> {
        let load = || {
            ClientTls::load(ClientTlsOptions {
                alpn: vec![ALPN_RELAY.to_vec()],
                min_version: MinVersion::Tls13,
                ..options
            })
        };
        let tls = match outer {
            Outer::Plain => None,
            Outer::Tls { .. } => Some(Arc::new(load()?)),
        };
        Ok(Self { outer, tls })
    }

    /// What it runs in.
    #[must_use]
    pub fn outer(&self) -> Outer {
        self.outer
    }

    /// Its TLS, to follow the files of.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<ClientTls>> {
        self.tls.as_ref()
    }
}

/// Runs the introduction on a dialled connection to the relay called `name`, until the other side
/// is there. `waiting` hears the first WAIT.
///
/// # Errors
/// Why it is not joined.
pub async fn introduce<IO>(
    io: IO,
    outer: &OuterClient,
    name: &str,
    role: Role,
    credential: &Credential,
    waiting: impl FnOnce() + Send,
) -> Result<Link<IO>, IntroduceError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let ask = Ask {
        role,
        credential,
        waiting,
    };
    match (&outer.tls, outer.outer) {
        (Some(tls), Outer::Tls { keep: true }) => {
            let mut stream = tls.connect(name, io).await?;
            is_relay_protocol(stream.get_ref().1)?;
            ask.run(&mut stream).await?;
            Ok(Link::Kept(Box::new(stream)))
        }
        (Some(tls), _) => Box::pin(left_early(io, tls, name, ask))
            .await
            .map(Link::Plain),
        (None, _) => {
            let mut io = io;
            ask.run(&mut io).await?;
            Ok(Link::Plain(io))
        }
    }
}

/// TLS until MATCHED, then the socket, which stands at the first byte of the other side.
async fn left_early<IO, W>(
    io: IO,
    tls: &ClientTls,
    name: &str,
    ask: Ask<'_, W>,
) -> Result<IO, IntroduceError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    W: FnOnce() + Send,
{
    let mut config = (*tls.config()).clone();
    config.resumption = Resumption::disabled();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let server = ServerName::try_from(bare.to_owned());
    let server = server.map_err(|_| TlsError::Name(name.to_owned()))?;
    let connector = TlsConnector::from(Arc::new(config));
    let handshake = timeout(HANDSHAKE_MAX, connector.connect(server, Records::new(io)));
    let mut stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Err(TlsError::from_handshake(&why).into()),
        Err(_) => {
            let seconds = HANDSHAKE_MAX.as_secs();
            return Err(TlsError::Timeout { seconds }.into());
        }
    };
    is_relay_protocol(stream.get_ref().1)?;
    ask.run(&mut stream).await?;
    let (records, mut connection) = stream.into_inner();
    if !records.is_at_boundary() || has_more(&mut connection) {
        return Err(IntroduceError::Boundary);
    }
    Ok(records.into_inner())
}

fn is_relay_protocol(connection: &ClientConnection) -> Result<(), IntroduceError> {
    match connection.alpn_protocol() {
        Some(ALPN_RELAY) => Ok(()),
        _ => Err(IntroduceError::Alpn),
    }
}

fn has_more(connection: &mut ClientConnection) -> bool {
    use std::io::Read as _;
    connection.reader().read(&mut [0]).is_ok()
}

struct Ask<'a, W> {
    role: Role,
    credential: &'a Credential,
    waiting: W,
}

impl<W: FnOnce() + Send> Ask<'_, W> {
    /// From the hello to MATCHED, without a byte more.
    async fn run<S>(self, stream: &mut S) -> Result<(), IntroduceError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello: [u8; HELLO_BYTES] = read(stream, HELLO_TIMEOUT_MS).await?;
        let hello = RelayHello::decode(&hello)?;
        if self.credential.kind() == ProofKind::Open && !hello.accepts_open {
            return Err(Reply::from(ReplyCode::OpenRefused).into());
        }
        let preface = self.credential.preface(self.role, &hello.challenge)?;
        let said = async {
            stream.write_all(&preface.encode()).await?;
            stream.flush().await
        };
        // A relay that is full refuses without reading: its reply tells why.
        let said = in_time(HELLO_TIMEOUT_MS, said).await;
        let mut waiting = Some(self.waiting);
        loop {
            let reply = match (read(stream, SILENCE_MAX_MS).await, &said) {
                (Err(_), Err(_)) => return said,
                (reply, _) => Reply::decode(&reply?)?,
            };
            match reply.code {
                ReplyCode::Matched => return Ok(()),
                ReplyCode::Wait => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                }
                _ => return Err(reply.into()),
            }
        }
    }
}

async fn read<S: AsyncRead + Unpin, const N: usize>(
    stream: &mut S,
    within_ms: u64,
) -> Result<[u8; N], IntroduceError> {
    let mut bytes = [0; N];
    let whole = async { stream.read_exact(&mut bytes).await.map(drop) };
    in_time(within_ms, whole).await?;
    Ok(bytes)
}

async fn in_time(
    within_ms: u64,
    work: impl Future<Output = io::Result<()>>,
) -> Result<(), IntroduceError> {
    match timeout(Duration::from_millis(within_ms), work).await {
        Ok(done) => done.map_err(IntroduceError::Gone),
        Err(_) => Err(IntroduceError::Silent {
            seconds: within_ms / 1_000,
        }),
    }
}

impl From<Reply> for IntroduceError {
    fn from(reply: Reply) -> Self {
        IntroduceError::Refused {
            code: reply.code,
            retry_after_s: reply.retry_after_s,
        }
    }
}

fn again(retry_after_s: u16) -> String {
    match retry_after_s {
        0 => String::new(),
        seconds => format!(" (again after {seconds} s)"),
    }
}

fn remedy(code: ReplyCode) -> &'static str {
    match code {
        ReplyCode::RateLimit => {
            "too many connections or waiters of this address: check for an agent that dials in a loop, or raise the relay's limits"
        }
        ReplyCode::BadProof => {
            "the certificate is not of this CA and role, is expired, or one of the two clocks is wrong: culvert pair validate tells which"
        }
        ReplyCode::BadPreface => {
            "relay and agent do not speak the same version: use the same release"
        }
        ReplyCode::Draining => "it is about to stop: another relay, or this one later",
        ReplyCode::WaitedTooLong => {
            "the other side did not come: check that it runs and names this relay"
        }
        ReplyCode::OpenRefused => {
            "it takes no open join: use certificates, or start it with --open-join"
        }
        ReplyCode::Wait | ReplyCode::Matched => "",
    }
}

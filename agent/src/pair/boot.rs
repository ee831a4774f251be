//! The first certificate, inside the end-to-end TLS of two keys that nobody knows yet: both prove
//! the pairing code, bound to this very connection, then a request goes up and a chain comes down.

use std::io;
use std::time::Duration;

use culvert_net::tls::pair::PairTlsError;
use culvert_pair::{
    CSR_BYTES_MAX, Chain, Fault, Identity, IdentityError, Key, MakeError, PairingCode, RedeemError,
};
use culvert_proto::pair::{RendezvousId, Role};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::{Joined, unix_s};

/// What both ends derive from their TLS.
const LABEL: &[u8] = b"EXPORTER-culvert-boot";
/// Deadline of the exchange, and once more for the broker to keep what it got.
pub const BOOT_MAX: Duration = Duration::from_secs(10);
/// Longest answer: two certificates of 2 KiB each as PEM.
pub const CHAIN_BYTES_MAX: usize = 8 << 10;

/// Longest wait for the bridge's end behind ours.
const CONFIRM_MAX: Duration = Duration::from_secs(2);

/// What a bridge handed out.
pub(super) struct Issued {
    pub(super) info_hash: RendezvousId,
    /// Whether the broker said that it has kept it.
    pub(super) is_kept: bool,
}

/// Why there is no first certificate.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No connection to prove on.
    #[error("{0}")]
    Tls(#[from] PairTlsError),
    /// The peer does not know the code, or somebody stands between.
    #[error(
        "the other side does not prove the pairing code: it has another one, or somebody stands between the two; compare the codes"
    )]
    Code,
    /// The bridge ended the conversation.
    #[error(
        "the bridge gave no certificate: the pairing code is wrong, used or expired; the bridge's log says which ({0})"
    )]
    Ended(io::Error),
    /// The broker ended it.
    #[error("the broker left before it had its certificate: {0}")]
    Left(io::Error),
    /// It took too long.
    #[error("no first certificate within {BOOT_MAX:?}; look at the other side and at its store")]
    Late,
    /// An announced length that nothing honest has.
    #[error("{what} of {bytes} bytes is announced; nothing honest is longer than {max}")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its announced length.
        bytes: u32,
        /// What is read.
        max: usize,
    },
    /// The chain is none.
    #[error("the bridge's answer is no certificate chain of a broker: {0}")]
    Chain(#[from] IdentityError),
    /// The CA is another's.
    #[error(
        "the bridge's CA has the info hash {seen}, expected was {wanted}: this is another pair's bridge"
    )]
    InfoHash {
        /// What was expected.
        wanted: RendezvousId,
        /// What came.
        seen: RendezvousId,
    },
    /// The store hands out nothing.
    #[error("{0}")]
    Redeem(#[from] RedeemError),
    /// Our own side cannot begin.
    #[error("{0}")]
    Own(String),
    /// A key could not be made.
    #[error("{0}")]
    Make(#[from] MakeError),
}

impl From<Fault> for BootError {
    fn from(fault: Fault) -> BootError {
        BootError::Chain(fault.into())
    }
}

/// Broker: obtains a certificate for a key that is made here, from the bridge at the other end. Its
/// own end of `stream` is the sign that it is kept: see [`confirm`].
///
/// # Errors
/// Why there is none.
pub(super) async fn obtain(
    stream: &mut Joined,
    code: &PairingCode,
    info_hash: Option<RendezvousId>,
) -> Result<Identity, BootError> {
    let exchange = async {
        prove(stream, code, Role::Broker).await?;
        let key = Key::generate().map_err(MakeError::from)?;
        let request = key.request().map_err(MakeError::from)?;
        write_block(stream, &request)
            .await
            .map_err(BootError::Ended)?;
        let answer = read_block(stream, "a chain", CHAIN_BYTES_MAX, BootError::Ended).await?;
        let text = String::from_utf8_lossy(&answer);
        let chain = Chain::from_pem(&text)?;
        let seen = chain.info_hash();
        if let Some(wanted) = info_hash.filter(|wanted| *wanted != seen) {
            return Err(BootError::InfoHash { wanted, seen });
        }
        Ok(Identity::new(chain, key, Role::Broker, unix_s())?)
    };
    let done = timeout(BOOT_MAX, exchange).await;
    done.unwrap_or(Err(BootError::Late))
}

/// Broker: says that the certificate is kept. Until the bridge has heard that, the code is good for
/// this broker once more.
pub(super) async fn confirm(stream: &mut Joined) {
    let said = async {
        stream.shutdown().await?;
        // The connection stays until the bridge has it.
        stream.read(&mut [0]).await
    };
    let _ = timeout(CONFIRM_MAX, said).await;
}

/// Bridge: hands the broker at the other end what `redeem` makes of its key and its request.
///
/// # Errors
/// Why nothing was handed out; the peer hears nothing of it.
pub(super) async fn issue<F>(
    stream: &mut Joined,
    code: &PairingCode,
    redeem: impl FnOnce([u8; 32], Vec<u8>) -> F,
) -> Result<Issued, BootError>
where
    F: Future<Output = Result<Chain, RedeemError>>,
{
    let exchange = async {
        prove(stream, code, Role::Bridge).await?;
        let spki = stream.peer_spki().ok_or(BootError::Code)?;
        let request = read_block(stream, "a request", CSR_BYTES_MAX, BootError::Left).await?;
        let chain = redeem(spki, request).await?;
        write_block(stream, chain.to_pem().as_bytes())
            .await
            .map_err(BootError::Left)?;
        Ok(chain.info_hash())
    };
    let done = timeout(BOOT_MAX, exchange).await;
    let info_hash = done.unwrap_or(Err(BootError::Late))?;
    // The broker ends first, so that nothing overtakes the chain, and cleanly if it has kept it.
    let ended = timeout(BOOT_MAX, stream.read(&mut [0])).await;
    Ok(Issued {
        info_hash,
        is_kept: matches!(ended, Ok(Ok(0))),
    })
}

/// Both say their proof and hear the other's; a wrong one ends it without a further word.
async fn prove(stream: &mut Joined, code: &PairingCode, role: Role) -> Result<(), BootError> {
    let broke = match role {
        Role::Broker => BootError::Ended,
        Role::Bridge => BootError::Left,
    };
    let exporter = stream.exporter(LABEL).map_err(broke)?;
    let mut said = [0; 32];
    let talk = async {
        stream.write_all(&code.proof(role, &exporter)).await?;
        stream.flush().await?;
        stream.read_exact(&mut said).await.map(drop)
    };
    talk.await.map_err(broke)?;
    match code.proves(role.other(), &exporter, &said) {
        true => Ok(()),
        false => Err(BootError::Code),
    }
}

async fn write_block<IO: AsyncWrite + Unpin>(io: &mut IO, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    io.write_all(&length.to_be_bytes()).await?;
    io.write_all(bytes).await?;
    io.flush().await
}

async fn read_block<IO: AsyncRead + Unpin>(
    io: &mut IO,
    what: &'static str,
    max: usize,
    broke: fn(io::Error) -> BootError,
) -> Result<Vec<u8>, BootError> {
    let bytes = io.read_u32().await.map_err(broke)?;
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    if length > max {
        return Err(BootError::TooLong { what, bytes, max });
    }
    let mut block = vec![0; length];
    io.read_exact(&mut block).await.map_err(broke)?;
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn a_block_is_read_whole_and_an_absurd_length_is_not_waited_for() {
        let (mut near, mut far) = duplex(64);
        write_block(&mut near, b"a request").await.unwrap();
        let block = read_block(&mut far, "a request", 16, BootError::Left).await;
        assert_eq!(block.unwrap(), b"a request");
        near.write_all(&17_u32.to_be_bytes()).await.unwrap();
        let block = read_block(&mut far, "a request", 16, BootError::Left).await;
        assert!(matches!(
            block,
            Err(BootError::TooLong {
                bytes: 17,
                max: 16,
                ..
            })
        ));
        drop(near);
        let block = read_block(&mut far, "a request", 16, BootError::Left).await;
        assert!(matches!(block, Err(BootError::Left(_))));
    }
}

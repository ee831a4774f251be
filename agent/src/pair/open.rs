//! One local connection on the long-lived pair: asks the bridge for its service and reads the
//! answer.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use culvert_net::carrier::{Carrier, OpenError, Stream};
use culvert_net::relay::poll_some;
use culvert_proto::close::CloseReason;
use culvert_proto::limits::DIAL_ANSWER_TIMEOUT_MS;
use culvert_proto::open::{DialAnswerDecoder, DialCode, StreamHeader, StreamKind};
use std::future::poll_fn;
use std::time::Duration;
use tokio::time::timeout;

use super::SERVICE;

/// Longest wait for the bridge's answer, which waits for the service itself.
pub const ANSWER_MAX: Duration = Duration::from_millis(DIAL_ANSWER_TIMEOUT_MS);

/// Why a connection was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotOpened {
    /// The pair takes no stream now.
    #[error("{0}")]
    Pair(#[from] OpenError),
    /// It broke before the answer.
    #[error("the pair broke before the bridge answered: {0}")]
    Broken(std::io::Error),
    /// The answer is none.
    #[error("the bridge's answer cannot be read: {0}; are both sides of one version?")]
    Answer(String),
    /// The bridge said no.
    #[error("the bridge did not reach the service: {0}")]
    Refused(String),
    /// The bridge said nothing.
    #[error("the bridge did not answer within {ANSWER_MAX:?}; look at it and at the service")]
    Silent,
}

impl NotOpened {
    /// Whether another pair may do better.
    pub(super) fn is_of_pair(&self) -> bool {
        match self {
            NotOpened::Pair(why) => !matches!(
                why.reason,
                CloseReason::TooManyStreams | CloseReason::Overload
            ),
            _ => false,
        }
    }
}

/// Asks for the service; gives back the stream and what came behind the answer.
pub(super) async fn open(
    carrier: &Carrier,
    client: Option<SocketAddr>,
) -> Result<(Stream, Bytes), NotOpened> {
    let header = StreamHeader {
        target: Some(Arc::from(SERVICE)),
        client_addr: client.map(|addr| Arc::from(addr.to_string())),
        ..StreamHeader::new(StreamKind::Tcp)
    };
    let mut stream = carrier.open(Some(&header))?;
    let answered = async {
        let mut decoder = DialAnswerDecoder::new();
        loop {
            let mut bytes = poll_fn(|cx| poll_some(cx, &mut stream))
                .await
                .map_err(NotOpened::Broken)?;
            if bytes.is_empty() {
                return Err(NotOpened::Broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let answer = decoder.push(&mut bytes);
            match answer.map_err(|why| NotOpened::Answer(why.to_string()))? {
                Some(answer) if answer.code == DialCode::Connected => return Ok(bytes),
                Some(answer) => return Err(NotOpened::Refused(answer.reason)),
                None => {}
            }
        }
    };
    match timeout(ANSWER_MAX, answered).await {
        Ok(answered) => answered.map(|rest| (stream, rest)),
        Err(_) => Err(NotOpened::Silent),
    }
}

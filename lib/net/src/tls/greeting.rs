//! A ClientHello, read without answering it: routes go by its server name, and whoever terminates
//! the connection gets all its bytes.

use std::io;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::HANDSHAKE_MAX;

/// Longest ClientHello, in bytes.
pub const HELLO_BYTES_MAX: usize = 16 << 10;
/// Record heads that it may be spread over.
const RECORDS_MAX: usize = 64;
const RECORD_HEAD_BYTES: usize = 5;
/// Everything read for one ClientHello: what follows it belongs to the connection.
const READ_BYTES_MAX: usize = HELLO_BYTES_MAX + RECORDS_MAX * RECORD_HEAD_BYTES;

/// A ClientHello as it came.
#[derive(Debug)]
pub struct Greeting {
    /// Every byte read so far, what followed the ClientHello included.
    pub bytes: Bytes,
    /// The server name asked for, in lower case.
    pub server_name: Option<String>,
}

/// Why there is no ClientHello.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// It did not come in time.
    #[error("no ClientHello within {} s", HANDSHAKE_MAX.as_secs())]
    Timeout,
    /// It is longer than anybody's.
    #[error(
        "the ClientHello is longer than {HELLO_BYTES_MAX} bytes, or in more than {RECORDS_MAX} records"
    )]
    TooLong,
    /// The connection ended within it.
    #[error("the connection ended within the ClientHello")]
    Ended,
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is none.
    #[error("no ClientHello: {why}")]
    Malformed {
        /// What is wrong with it.
        why: rustls::Error,
        /// What to tell the peer.
        alert: Vec<u8>,
    },
}

/// A fatal alert that ends a connection before its handshake, as one TLS record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    /// The server cannot go on for reasons of its own.
    InternalError = 80,
    /// Nobody is here under that name.
    UnrecognizedName = 112,
}

impl Alert {
    /// The record.
    #[must_use]
    pub fn record(self) -> [u8; 7] {
        const FATAL: u8 = 2;
        [0x15, 3, 3, 0, 2, FATAL, self as u8]
    }
}

/// Reads the ClientHello of `io` within [`HANDSHAKE_MAX`]; answers nothing.
///
/// # Errors
/// [`GreetingError`].
pub async fn read_greeting(io: &mut (impl AsyncRead + Unpin)) -> Result<Greeting, GreetingError> {
    tokio::time::timeout(HANDSHAKE_MAX, read(io))
        .await
        .unwrap_or(Err(GreetingError::Timeout))
}

async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Greeting, GreetingError> {
    let mut acceptor = Acceptor::default();
    let mut bytes = BytesMut::with_capacity(1024);
    loop {
        let before = bytes.len();
        if before >= READ_BYTES_MAX {
            return Err(GreetingError::TooLong);
        }
        let room = READ_BYTES_MAX - before;
        if (&mut *io).take(room as u64).read_buf(&mut bytes).await? == 0 {
            return Err(GreetingError::Ended);
        }
        let mut new = &bytes[before..];
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
            if let Some(server_name) = server_name(&mut acceptor)? {
                let bytes = bytes.freeze();
                return Ok(Greeting { bytes, server_name });
            }
        }
    }
}

/// The name in a ClientHello that is complete.
fn server_name(acceptor: &mut Acceptor) -> Result<Option<Option<String>>, GreetingError> {
    match acceptor.accept() {
        Ok(accepted) => Ok(accepted.map(|accepted| {
            let name = accepted.client_hello().server_name().map(str::to_owned);
            name.map(|name| name.to_ascii_lowercase())
        })),
        Err((why, mut refusal)) => {
            let mut alert = Vec::new();
            refusal.write_all(&mut alert)?;
            Err(GreetingError::Malformed { why, alert })
        }
    }
}

//! A configuration that follows its files.

use std::future::Future;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{HANDSHAKE_MAX, Reloaded, TlsError};

/// What was read from the files of a `C`.
pub(super) trait Content<C> {
    /// Tells one content from another.
    fn digest(&self) -> [u8; 32];

    /// The configuration it makes.
    fn config(&self) -> Result<C, TlsError>;
}

/// The newest good configuration.
pub(super) struct Fresh<C> {
    config: ArcSwap<C>,
    loaded: Mutex<[u8; 32]>,
}

impl<C> Fresh<C> {
    pub(super) fn new(content: &impl Content<C>) -> Result<Fresh<C>, TlsError> {
        Ok(Fresh {
            config: ArcSwap::from_pointee(content.config()?),
            loaded: Mutex::new(content.digest()),
        })
    }

    pub(super) fn config(&self) -> Arc<C> {
        self.config.load_full()
    }

    /// Takes over what `read` finds, if it is new. On an error nothing changes.
    pub(super) fn reload<T: Content<C>>(
        &self,
        read: impl FnOnce() -> Result<T, TlsError>,
    ) -> Result<Reloaded, TlsError> {
        let mut loaded = self.loaded.lock();
        let content = read()?;
        let digest = content.digest();
        if *loaded == digest {
            return Ok(Reloaded::Unchanged);
        }
        self.config.store(Arc::new(content.config()?));
        *loaded = digest;
        Ok(Reloaded::Changed)
    }
}

/// A handshake within its deadline.
pub(super) async fn in_time<S>(
    handshake: impl Future<Output = io::Result<S>>,
) -> Result<S, TlsError> {
    match tokio::time::timeout(HANDSHAKE_MAX, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(TlsError::from_handshake(&error)),
        Err(_) => Err(TlsError::Timeout {
            seconds: HANDSHAKE_MAX.as_secs(),
        }),
    }
}

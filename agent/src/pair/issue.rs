//! What a bridge needs to hand out one pair's certificate.

use std::sync::Arc;

use culvert_pair::{PairId, PairingCode, Store as _, Stored};
use tokio::io::AsyncWriteExt as _;

use super::boot::{self, BootError, Issued};
use super::{Joined, unix_s};

/// Hands out the certificate of one registration, as often as its code may be used.
pub(super) struct Issuer {
    code: PairingCode,
    id: PairId,
    store: Arc<Stored>,
}

impl Issuer {
    pub(super) fn new(code: &PairingCode, id: PairId, store: Arc<Stored>) -> Issuer {
        Issuer {
            code: PairingCode::from_bytes(*code.expose()),
            id,
            store,
        }
    }

    /// Serves one broker.
    ///
    /// # Errors
    /// Why it got nothing.
    pub(super) async fn serve(&self, stream: &mut Joined) -> Result<(), BootError> {
        let redeem = |spki: [u8; 32], request: Vec<u8>| async move {
            // What is handed out was written down before.
            self.store.redeem(&self.id, &spki, &request, unix_s()).await
        };
        let Issued { info_hash, is_kept } = boot::issue(stream, &self.code, redeem).await?;
        if !is_kept {
            tracing::info!(pair = %self.id, %info_hash, "a certificate was sent and the broker did not say that it is kept: the pairing code stays good for that broker");
            return Ok(());
        }
        if let Err(why) = self.store.confirm(&self.id).await {
            tracing::warn!(pair = %self.id, %why, "the pairing code stays good for the broker that used it");
        }
        // Only now, so that a broker that saw it can rely on it.
        let _ = stream.shutdown().await;
        tracing::info!(pair = %self.id, %info_hash, "the broker has its certificate; the pairing code is used");
        Ok(())
    }
}

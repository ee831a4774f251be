//! What proves who this side is. Files are read again at each attempt, so that a renewed
//! certificate is shown from the next connection on.

use std::sync::Arc;

use culvert_net::crypto::sha256;
use culvert_net::tls::pair::{IdentityError, PairIdentity, PairTls, Side};
use culvert_proto::pair::RendezvousId;
use parking_lot::Mutex;

use crate::config::IdentityFiles;

/// A side with a certificate.
pub(super) struct Party {
    /// The end-to-end TLS.
    pub(super) tls: PairTls,
    /// SHA-256 of the CA.
    pub(super) info_hash: RendezvousId,
    digest: [u8; 32],
}

/// Where a party comes from.
pub(super) struct Own {
    side: Side,
    alpns: &'static [&'static [u8]],
    files: Option<IdentityFiles>,
    info_hash: Option<RendezvousId>,
    now: Mutex<Arc<Party>>,
}

impl Party {
    /// # Errors
    /// When key and certificate do not belong together.
    pub(super) fn new(
        side: Side,
        identity: &PairIdentity,
        alpns: &[&[u8]],
    ) -> Result<Party, IdentityError> {
        Ok(Party {
            tls: PairTls::new(side, identity, alpns)?,
            info_hash: RendezvousId(identity.info_hash()),
            digest: digest(identity),
        })
    }
}

impl Own {
    /// From files, which were checked.
    ///
    /// # Errors
    /// When they changed for the worse since.
    pub(super) fn load(
        side: Side,
        alpns: &'static [&'static [u8]],
        files: IdentityFiles,
        info_hash: Option<RendezvousId>,
    ) -> Result<Own, IdentityError> {
        let identity = PairIdentity::load(&files.cert, &files.key, &files.ca)?;
        let party = Party::new(side, &identity, alpns)?;
        Ok(Own {
            side,
            alpns,
            files: Some(files),
            info_hash,
            now: Mutex::new(Arc::new(party)),
        })
    }

    /// What to show now.
    pub(super) fn party(&self) -> Arc<Party> {
        let Some(files) = &self.files else {
            return self.now.lock().clone();
        };
        let mut now = self.now.lock();
        match self.renewed(files, &now) {
            Ok(None) => {}
            Ok(Some(party)) => {
                tracing::info!("the pair's certificate changed; it is shown from now on");
                *now = Arc::new(party);
            }
            Err(why) => tracing::warn!(
                %why,
                "the pair's changed certificate is not used; the old one stays"
            ),
        }
        now.clone()
    }

    fn renewed(&self, files: &IdentityFiles, now: &Party) -> Result<Option<Party>, IdentityError> {
        let identity = PairIdentity::load(&files.cert, &files.key, &files.ca)?;
        if digest(&identity) == now.digest {
            return Ok(None);
        }
        let seen = RendezvousId(identity.info_hash());
        if self.info_hash.is_some_and(|wanted| wanted != seen) {
            let text = format!("its CA hashes to {seen}, not to --info-hash");
            return Err(IdentityError::NoCa(text));
        }
        Party::new(self.side, &identity, self.alpns).map(Some)
    }
}

fn digest(identity: &PairIdentity) -> [u8; 32] {
    let parts = [
        identity.ca_der(),
        identity.leaf_der(),
        identity.key_pkcs8_der(),
    ];
    sha256(&parts.map(sha256).concat())
}

//! What proves who this side is. Files are read again at each attempt, so that a renewed
//! certificate is shown from the next connection on.

use std::sync::Arc;
use std::time::Duration;

use culvert_net::crypto::sha256;
use culvert_net::introduction::{Credential, CredentialError};
use culvert_net::tls::pair::{IdentityError, PairIdentity, PairTls, Side};
use culvert_pair::{Identity, Key, PairingCode, self_signed};
use culvert_proto::pair::{ALPN_BOOT, RendezvousId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::issue::Issuer;
use super::{PairError, unix_s};
use crate::config::IdentityFiles;

/// Files are read at most this often, whoever knocks.
const READ_EVERY: Duration = Duration::from_secs(1);

/// A side with a certificate, or with a pairing code.
pub(super) struct Party {
    /// The end-to-end TLS.
    pub(super) tls: PairTls,
    digest: [u8; 32],
    /// What proves it at a relay, which takes fewer kinds of keys than TLS does.
    credential: Result<Credential, CredentialError>,
    /// A bridge: hands out certificates on connections that come as this party.
    pub(super) issuer: Option<Issuer>,
    /// A bridge that is called directly: what it is to brokers without a certificate.
    pub(super) boot: Option<Arc<Party>>,
}

/// Who this side is: from files, or once somebody says so.
pub(super) struct Own {
    side: Side,
    alpns: &'static [&'static [u8]],
    files: Option<IdentityFiles>,
    info_hash: Option<RendezvousId>,
    now: watch::Sender<Option<Arc<Party>>>,
    read: Mutex<Instant>,
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
            digest: digest(identity),
            credential: Credential::certificate(
                identity.ca_der(),
                identity.leaf_der(),
                identity.key_pkcs8_der(),
            ),
            issuer: None,
            boot: None,
        })
    }

    /// # Errors
    /// When key and certificate do not belong together.
    pub(super) fn of(
        side: Side,
        identity: &Identity,
        alpns: &[&[u8]],
    ) -> Result<Party, IdentityError> {
        let chain = identity.chain_der();
        let key = identity.key_pkcs8_der().clone();
        let identity = PairIdentity::new(identity.ca_der().to_vec(), chain, key)?;
        Party::new(side, &identity, alpns)
    }

    /// A side that has `code` and shows `key`.
    ///
    /// # Errors
    /// When the library fails.
    pub(super) fn with_code(
        side: Side,
        key: &Key,
        code: &PairingCode,
        issuer: Option<Issuer>,
    ) -> Result<Party, PairError> {
        let shown = self_signed(key, unix_s()).map_err(PairError::Make)?;
        Ok(Party {
            tls: PairTls::boot(side, shown, key.pkcs8_der(), ALPN_BOOT)?,
            digest: key.spki_sha256(),
            credential: Credential::key(*code.boot_seed()),
            issuer,
            boot: None,
        })
    }

    /// The same, who is `boot` to brokers without a certificate.
    pub(super) fn beside(self, boot: Option<Arc<Party>>) -> Party {
        Party { boot, ..self }
    }

    /// What proves this side at a relay.
    ///
    /// # Errors
    /// When a relay would not take it.
    pub(super) fn credential(&self) -> Result<&Credential, &CredentialError> {
        self.credential.as_ref()
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
        let own = Own {
            files: Some(files),
            info_hash,
            ..Own::nobody(side, alpns)
        };
        own.set(Arc::new(Party::new(side, &identity, alpns)?));
        tracing::info!(
            side = side.as_str(),
            info_hash = %RendezvousId(identity.info_hash()),
            "the pair's certificate is read"
        );
        Ok(own)
    }

    /// Nobody yet.
    pub(super) fn nobody(side: Side, alpns: &'static [&'static [u8]]) -> Own {
        Own {
            side,
            alpns,
            files: None,
            info_hash: None,
            now: watch::Sender::new(None),
            read: Mutex::new(Instant::now()),
        }
    }

    /// From now on it is `party`.
    pub(super) fn set(&self, party: Arc<Party>) {
        self.now.send_replace(Some(party));
    }

    /// Nobody again.
    pub(super) fn unset(&self) {
        self.now.send_replace(None);
    }

    /// Becomes a side that holds a certificate.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(super) fn become_holder(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.set(Arc::new(Party::of(self.side, identity, self.alpns)?));
        Ok(())
    }

    /// What to show now.
    pub(super) fn party(&self) -> Option<Arc<Party>> {
        let now = self.now.borrow().clone()?;
        let Some(files) = &self.files else {
            return Some(now);
        };
        {
            let mut read = self.read.lock();
            if read.elapsed() < READ_EVERY {
                return Some(now);
            }
            *read = Instant::now();
        }
        match self.renewed(files, &now) {
            Ok(None) => Some(now),
            Ok(Some(party)) => {
                tracing::info!("the pair's certificate changed; it is shown from now on");
                let party = Arc::new(party);
                self.set(party.clone());
                Some(party)
            }
            Err(why) => {
                tracing::warn!(%why, "the pair's changed certificate is not used; the old one stays");
                Some(now)
            }
        }
    }

    /// What to show, as soon as there is something.
    pub(super) async fn ready(&self) -> Arc<Party> {
        let mut now = self.now.subscribe();
        let first = now.wait_for(Option::is_some).await;
        let first = first.map(|party| party.clone()).ok().flatten();
        first.expect("the sender lives in self, and the value was asked for")
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

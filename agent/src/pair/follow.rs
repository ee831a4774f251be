//! A running bridge follows its store: a pair that is registered is served within seconds, one that
//! is removed no more, and what nearly expired is renewed. Pairs that stand are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_net::tls::pair::Side;
use culvert_pair::{Kept, Key, Listing, PairId, PairingCode, Registration, Store as _, Stored};
use culvert_proto::pair::RendezvousId;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::bridge::{ALPNS, Waiting};
use super::issue::Issuer;
use super::party::{Own, Party};
use super::{PairError, SPARE, unix_s};
use crate::config::Way;
use crate::target::Target;

/// How often the store is asked. A registration is to be served 5 s after it appears.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a code whose use is over is still listened for: who comes with it a second time is told
/// so, in place of waiting for ever for a bridge that does not come.
const OVER_STAYS: Duration = Duration::from_secs(600);
/// A bridge certificate or code that was tried in vain; it is spoken of once.
const PROBLEMS_MAX: usize = 1024;

/// Follows one store.
pub(super) struct Follow {
    pub(super) store: Arc<Stored>,
    pub(super) waiting: Arc<Waiting>,
    /// Where the brokers come directly: what stands behind the one door.
    pub(super) door: Option<Arc<Own>>,
    served: BTreeMap<PairId, Served>,
    told: BTreeSet<String>,
}

/// What is done for one registration, and what it was made from.
struct Served {
    leaf: Vec<u8>,
    relays: Vec<String>,
    code: Option<RendezvousId>,
    /// Waiting with the certificate, at relays.
    pair: Option<AbortOnDropHandle<()>>,
    /// Waiting with the code.
    boot: Option<AbortOnDropHandle<()>>,
    /// When that ends, for a code whose use is over.
    boot_ends: Option<Instant>,
}

impl Follow {
    pub(super) fn new(store: Arc<Stored>, waiting: Arc<Waiting>, door: Option<Arc<Own>>) -> Follow {
        Follow {
            store,
            waiting,
            door,
            served: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            match self.store.list().await {
                Ok(listing) => self.compare(listing).await,
                Err(why) => self.tell(&format!("the store cannot be read: {why}")),
            }
        }
    }

    async fn compare(&mut self, listing: Listing) {
        for (name, why) in listing.damaged {
            self.tell(&format!("registration {name} is not served: {why}"));
        }
        let ids: BTreeSet<PairId> = listing
            .kept
            .iter()
            .map(|kept| kept.registration.id().clone())
            .collect();
        let door = self.door.is_some();
        self.served.retain(|id, _| {
            let stays = ids.contains(id);
            if !stays {
                tracing::info!(pair = %id, "the pair is registered no more; it is not waited for");
            }
            stays
        });
        if let (Some(own), true) = (&self.door, self.served.is_empty()) {
            own.unset();
        }
        for mut kept in listing.kept {
            self.renew(&mut kept).await;
            let registration = kept.registration;
            if door && self.served.keys().any(|id| id != registration.id()) {
                let id = registration.id();
                self.tell(&format!("pair {id} is not served: without a relay a bridge serves one pair; give it a bridge of its own"));
                continue;
            }
            if let Err(why) = self.serve(&registration) {
                let id = registration.id();
                self.tell(&format!("pair {id} is not served: {why}"));
            }
        }
    }

    /// A bridge's certificate is made anew in good time; whoever else did it first is right.
    async fn renew(&mut self, kept: &mut Kept) {
        let id = kept.registration.id().clone();
        match kept.registration.renew_bridge(unix_s()) {
            Ok(false) => {}
            Ok(true) => {
                let saved = self.store.save(&kept.registration, Some(&kept.revision));
                match saved.await {
                    Ok(_) => tracing::info!(pair = %id, "the bridge's certificate is renewed"),
                    Err(why) => self.tell(&format!(
                        "the renewed certificate of pair {id} is not kept: {why}"
                    )),
                }
            }
            Err(why) => self.tell(&format!(
                "the certificate of pair {id} is not renewed: {why}"
            )),
        }
    }

    /// What has not changed goes on: a code that was used does not disturb those who wait with the
    /// certificate.
    fn serve(&mut self, registration: &Registration) -> Result<(), PairError> {
        let id = registration.id();
        let code = registration.code(unix_s());
        let rendezvous = code.map(PairingCode::rendezvous_id);
        let leaf = registration.bridge().leaf_der();
        let known = self.served.get_mut(id);
        let same_pair = known
            .as_ref()
            .is_some_and(|known| known.leaf == leaf && known.relays == registration.relays());
        if let Some(known) = known.filter(|_| same_pair) {
            if known.code == rendezvous {
                known.forget_in_time();
                return Ok(());
            }
            if rendezvous.is_none() && known.boot.is_some() {
                known.code = None;
                known.boot_ends = Some(Instant::now() + OVER_STAYS);
                tracing::info!(pair = %id, "the pairing code is over");
                return Ok(());
            }
        }
        let known = self.served.get_mut(id);
        let running = known.filter(|_| same_pair).and_then(|it| it.pair.take());
        let (pair, boot) = self.parties(registration, code)?;
        let (pair, boot) = match &self.door {
            Some(door) => {
                door.set(Arc::new(pair.beside(boot)));
                (None, None)
            }
            None => {
                let places = self.places(registration)?;
                // One broker at a time needs its first certificate.
                let boot = boot.map(|boot| self.waiting.wait(places.clone(), 1, boot));
                let pair = running.unwrap_or_else(|| {
                    let task = self.waiting.wait(places, SPARE, Arc::new(pair));
                    AbortOnDropHandle::new(task)
                });
                (Some(pair), boot.map(AbortOnDropHandle::new))
            }
        };
        tracing::info!(
            pair = %id,
            name = registration.name(),
            info_hash = %registration.info_hash(),
            first_certificate = rendezvous.is_some(),
            "the pair is served"
        );
        let served = Served {
            leaf: leaf.to_vec(),
            relays: registration.relays().to_vec(),
            code: rendezvous,
            pair,
            boot,
            boot_ends: None,
        };
        self.served.insert(id.clone(), served);
        Ok(())
    }

    /// Who this bridge is to the pair's broker, and to one without a certificate.
    fn parties(
        &self,
        registration: &Registration,
        code: Option<&PairingCode>,
    ) -> Result<(Party, Option<Arc<Party>>), PairError> {
        let pair = Party::of(Side::Bridge, registration.bridge(), ALPNS)?;
        let Some(code) = code else {
            return Ok((pair, None));
        };
        let issuer = Issuer::new(code, registration.id().clone(), self.store.clone());
        let key = Key::generate().map_err(|why| PairError::Make(why.into()))?;
        let boot = Party::with_code(Side::Bridge, &key, code, Some(issuer))?;
        Ok((pair, Some(Arc::new(boot))))
    }

    fn places(&self, registration: &Registration) -> Result<Vec<Arc<Target>>, PairError> {
        match &self.waiting.way {
            Way::Relay { relays, .. } if !relays.is_empty() => Ok(relays.clone()),
            _ => crate::config::relays(registration.relays()).ok_or(PairError::NoRelay),
        }
    }

    /// Says a thing once.
    fn tell(&mut self, what: &str) {
        if self.told.len() >= PROBLEMS_MAX {
            self.told.clear();
        }
        if self.told.insert(what.to_owned()) {
            tracing::warn!("{what}");
        }
    }
}

impl Served {
    fn forget_in_time(&mut self) {
        if self.boot_ends.is_some_and(|ends| Instant::now() >= ends) {
            self.boot = None;
            self.boot_ends = None;
        }
    }
}

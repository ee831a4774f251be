//! A running bridge follows its store: a pair that is registered is served within seconds, one that
//! is removed no more, and what nearly expired is renewed. Pairs that stand are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use culvert_net::tls::pair::Side;
use culvert_pair::{Kept, LeafKey, Listing, PairId, Registration, Store as _, Stored};
use culvert_proto::pair::RendezvousId;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::bridge::{ALPNS, Waiting};
use super::issue::Issuer;
use super::party::{Own, Party};
use super::{PairError, SPARE, unix_s};
use crate::config::Way;

/// How often the store is asked. A registration is to be served 5 s after it appears.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
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

/// What is done for one registration.
struct Served {
    /// What it was made from: the bridge's certificate, the code, the relays.
    leaf: Vec<u8>,
    code: Option<RendezvousId>,
    relays: Vec<String>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
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

    fn serve(&mut self, registration: &Registration) -> Result<(), PairError> {
        let code = registration.code(unix_s());
        let mut wanted = Served {
            leaf: registration.bridge().leaf_der().to_vec(),
            code: code.map(|code| code.rendezvous_id()),
            relays: registration.relays().to_vec(),
            tasks: Vec::new(),
        };
        let id = registration.id();
        if let Some(known) = self.served.get(id)
            && (&known.leaf, known.code, &known.relays)
                == (&wanted.leaf, wanted.code, &wanted.relays)
        {
            return Ok(());
        }
        let mut pair = Party::of(Side::Bridge, registration.bridge(), ALPNS)?;
        let boot = match code {
            None => None,
            Some(code) => {
                let issuer = Issuer::new(code, id.clone(), self.store.clone());
                let key = LeafKey::generate().map_err(PairError::Make)?;
                let party = Party::with_code(Side::Bridge, &key, code, Some(issuer))?;
                Some(Arc::new(party))
            }
        };
        tracing::info!(
            pair = %id,
            name = registration.name(),
            info_hash = %registration.info_hash(),
            first_certificate = boot.is_some(),
            "the pair is served"
        );
        wanted.tasks = match &self.door {
            Some(door) => {
                pair.boot = boot;
                door.set(Arc::new(pair));
                Vec::new()
            }
            None => self.at_relays(registration, pair, boot)?,
        };
        self.served.insert(id.clone(), wanted);
        Ok(())
    }

    fn at_relays(
        &self,
        registration: &Registration,
        pair: Party,
        boot: Option<Arc<Party>>,
    ) -> Result<Vec<JoinHandle<()>>, PairError> {
        let places = match &self.waiting.way {
            Way::Relay { relays, .. } if !relays.is_empty() => relays.clone(),
            _ => crate::config::relays(registration.relays()).ok_or(PairError::NoRelay)?,
        };
        let mut tasks = vec![self.waiting.wait(places.clone(), SPARE, Arc::new(pair))];
        // One broker at a time needs its first certificate.
        tasks.extend(boot.map(|boot| self.waiting.wait(places, 1, boot)));
        Ok(tasks)
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

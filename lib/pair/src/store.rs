//! Where registrations and a broker's own keys are kept: files, or Kubernetes Secrets.
//!
//! Every write names the revision that it replaces. Of two writers at once one wins; the other
//! hears [`StoreError::Conflict`] and reads again.

mod error;
mod file;
mod kube;
mod secret;

use std::future::Future;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::broker::BrokerState;
use crate::identity::Chain;
use crate::registration::{PairId, Registration};

pub use error::{RedeemError, StoreError};
pub use file::FileStore;
pub use kube::KubeAccess;
pub use secret::SecretStore;

/// Longest document; a registration has some 5 KiB.
pub const DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// Documents of one store: as many pairs as a relay joins at once.
pub const DOCUMENTS_MAX: usize = 1_000;
/// How often a redeem reads again after another writer was first.
const REDEEM_TRIES_MAX: usize = 4;
/// The document of a broker. No [`PairId`] reads like it.
const BROKER: &str = "broker";

/// Which version of a document was read; opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(pub(crate) String);

/// A document as it was read.
pub struct Document {
    /// Its name in the store.
    pub name: String,
    /// Its bytes. They are a secret.
    pub bytes: Zeroizing<Vec<u8>>,
    /// What a write that replaces it has to name.
    pub revision: Revision,
}

/// A document, or the name of one that cannot be read and why.
pub type Found = Result<Document, (String, StoreError)>;

/// A registration as it was read.
pub struct Kept {
    /// The registration.
    pub registration: Registration,
    /// What a write that replaces it has to name.
    pub revision: Revision,
}

/// What a store holds.
#[derive(Default)]
pub struct Listing {
    /// The registrations, by id.
    pub kept: Vec<Kept>,
    /// Documents that cannot be used, and why: they keep no other from working.
    pub damaged: Vec<(String, StoreError)>,
}

/// Keeps documents; registrations and a broker's state are built on that.
pub trait Store: Send + Sync {
    /// The store as a person knows it.
    fn place(&self) -> String;

    /// All documents, and what is wrong with those that cannot be read.
    fn all(&self) -> impl Future<Output = Result<Vec<Found>, StoreError>> + Send;

    /// One document, when there is one.
    fn read(&self, name: &str)
    -> impl Future<Output = Result<Option<Document>, StoreError>> + Send;

    /// Writes a document: a new one when `expected` is none, else in the place of that revision.
    fn write(
        &self,
        name: &str,
        bytes: &[u8],
        expected: Option<&Revision>,
    ) -> impl Future<Output = Result<Revision, StoreError>> + Send;

    /// Removes that revision of a document.
    fn erase(
        &self,
        name: &str,
        expected: &Revision,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// All registrations.
    fn list(&self) -> impl Future<Output = Result<Listing, StoreError>> + Send {
        async {
            let mut listing = Listing::default();
            for found in self.all().await? {
                match found {
                    Ok(document) if document.name == BROKER => {}
                    Ok(document) => {
                        let name = document.name.clone();
                        match kept(document) {
                            Ok(kept) => listing.kept.push(kept),
                            Err(why) => listing.damaged.push((name, why)),
                        }
                    }
                    Err(damaged) => listing.damaged.push(damaged),
                }
            }
            listing
                .kept
                .sort_by(|a, b| a.registration.id().cmp(b.registration.id()));
            Ok(listing)
        }
    }

    /// One registration, when there is one.
    fn load(&self, id: &PairId) -> impl Future<Output = Result<Option<Kept>, StoreError>> + Send {
        async {
            let document = self.read(id.as_str()).await?;
            document.map(kept).transpose()
        }
    }

    /// Saves a registration: a new one when `expected` is none, else in the place of that revision.
    fn save(
        &self,
        registration: &Registration,
        expected: Option<&Revision>,
    ) -> impl Future<Output = Result<Revision, StoreError>> + Send {
        async move {
            let document = registration.to_document();
            self.write(registration.id().as_str(), &document, expected)
                .await
        }
    }

    /// Removes that revision of a registration.
    fn remove(
        &self,
        id: &PairId,
        expected: &Revision,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        self.erase(id.as_str(), expected)
    }

    /// Certifies the broker that proved the pairing code of `id` with the bootstrap key of this
    /// hash. The use is on record before the certificate is handed out, so of two that come at
    /// once one gets it; that one gets another, until it [confirms](Store::confirm).
    fn redeem(
        &self,
        id: &PairId,
        spki_sha256: &[u8; 32],
        csr_der: &[u8],
        now_unix_s: u64,
    ) -> impl Future<Output = Result<Chain, RedeemError>> + Send {
        async move {
            for _ in 0..REDEEM_TRIES_MAX {
                let kept = self.load(id).await?;
                let Kept {
                    mut registration,
                    revision,
                } = kept.ok_or_else(|| RedeemError::Unknown { id: id.clone() })?;
                // A bad request uses nothing up.
                let chain = registration.authority().sign_broker(csr_der, now_unix_s)?;
                if registration.redeem(spki_sha256, now_unix_s)? == crate::Use::Again {
                    return Ok(chain);
                }
                match self.save(&registration, Some(&revision)).await {
                    Ok(_) => return Ok(chain),
                    Err(StoreError::Conflict { .. }) => {}
                    Err(why) => return Err(why.into()),
                }
            }
            Err(StoreError::Conflict {
                place: self.place(),
                name: id.to_string(),
            }
            .into())
        }
    }

    /// The broker of `id` holds its certificate: its code is good no more.
    fn confirm(&self, id: &PairId) -> impl Future<Output = Result<(), StoreError>> + Send {
        async move {
            for _ in 0..REDEEM_TRIES_MAX {
                let Some(mut kept) = self.load(id).await? else {
                    return Ok(());
                };
                if !kept.registration.confirm() {
                    return Ok(());
                }
                match self.save(&kept.registration, Some(&kept.revision)).await {
                    Err(StoreError::Conflict { .. }) => {}
                    saved => return saved.map(drop),
                }
            }
            Err(StoreError::Conflict {
                place: self.place(),
                name: id.to_string(),
            })
        }
    }

    /// A broker's bootstrap key and certificate, when it has any.
    fn load_broker(
        &self,
    ) -> impl Future<Output = Result<Option<(BrokerState, Revision)>, StoreError>> + Send {
        async {
            let Some(document) = self.read(BROKER).await? else {
                return Ok(None);
            };
            let state = BrokerState::from_document(&document.bytes);
            let state = state.map_err(|why| StoreError::damaged(BROKER, &why))?;
            Ok(Some((state, document.revision)))
        }
    }

    /// Saves a broker's bootstrap key and certificate.
    fn save_broker(
        &self,
        state: &BrokerState,
        expected: Option<&Revision>,
    ) -> impl Future<Output = Result<Revision, StoreError>> + Send {
        async move { self.write(BROKER, &state.to_document(), expected).await }
    }
}

/// The store that a flag names.
pub enum Stored {
    /// A directory.
    File(FileStore),
    /// Secrets of one namespace.
    Secret(Box<SecretStore>),
}

impl Stored {
    /// `file:/path`, or `secret:NAMESPACE[/PREFIX]` inside of the cluster.
    ///
    /// # Errors
    /// When the text is neither, or the cluster's files are not there.
    pub fn open(text: &str) -> Result<Stored, StoreError> {
        Stored::open_with(text, &KubeAccess::in_cluster())
    }

    /// As [`Stored::open`], with the Kubernetes API that `access` tells.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(text: &str, access: &KubeAccess) -> Result<Stored, StoreError> {
        let refuse = || StoreError::Form {
            seen: text.to_owned(),
        };
        match text.split_once(':').ok_or_else(refuse)? {
            ("file", path) if !path.is_empty() => {
                Ok(Stored::File(FileStore::new(PathBuf::from(path))))
            }
            ("secret", rest) => {
                let (namespace, prefix) = match rest.split_once('/') {
                    Some((namespace, prefix)) => (namespace, Some(prefix)),
                    None => (rest, None),
                };
                let store = SecretStore::new(access, namespace, prefix)?;
                Ok(Stored::Secret(Box::new(store)))
            }
            ("http" | "https" | "vault", _) => Err(StoreError::Vault),
            _ => Err(refuse()),
        }
    }
}

impl Store for Stored {
    fn place(&self) -> String {
        match self {
            Stored::File(store) => store.place(),
            Stored::Secret(store) => store.place(),
        }
    }

    async fn all(&self) -> Result<Vec<Found>, StoreError> {
        match self {
            Stored::File(store) => store.all().await,
            Stored::Secret(store) => store.all().await,
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Document>, StoreError> {
        match self {
            Stored::File(store) => store.read(name).await,
            Stored::Secret(store) => store.read(name).await,
        }
    }

    async fn write(
        &self,
        name: &str,
        bytes: &[u8],
        expected: Option<&Revision>,
    ) -> Result<Revision, StoreError> {
        match self {
            Stored::File(store) => store.write(name, bytes, expected).await,
            Stored::Secret(store) => store.write(name, bytes, expected).await,
        }
    }

    async fn erase(&self, name: &str, expected: &Revision) -> Result<(), StoreError> {
        match self {
            Stored::File(store) => store.erase(name, expected).await,
            Stored::Secret(store) => store.erase(name, expected).await,
        }
    }
}

fn kept(document: Document) -> Result<Kept, StoreError> {
    let Document {
        name,
        bytes,
        revision,
    } = document;
    let registration = Registration::from_document(&bytes);
    let registration = registration.map_err(|why| StoreError::damaged(&name, &why))?;
    if registration.id().as_str() != name {
        let why = format!("it is the registration of pair {}", registration.id());
        return Err(StoreError::damaged(&name, &why));
    }
    Ok(Kept {
        registration,
        revision,
    })
}

/// Whether a store can file under it: the names become parts of paths.
fn check_document_name(name: &str) -> Result<(), StoreError> {
    crate::name::check_name(name).map_err(|_| StoreError::Name {
        seen: name.to_owned(),
    })
}

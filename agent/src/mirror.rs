//! The agent's state in a Kubernetes Secret as well: a pod has no disk of its own, and a certificate
//! is given for a bootstrap token once (P-27.5).
//!
//! The state directory is what the agent works with. It is filled from the Secret before anything
//! is read, and the Secret is written after each change of it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::Duration;

use culvert_net::crypto::{random_bytes, sha256};
use culvert_net::dial::{Backoff, Setback};
use culvert_pair::{Revision, SecretStore, Store as _, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify};
use zeroize::{Zeroize as _, Zeroizing};

use crate::credential::{self, write_durably};
use crate::enrol::{CA_FILE, IDENTITY_FILE};
use crate::session::Shared;

/// What is kept, in the order in which it is written: CAs say nothing alone, each other file does.
const FILES: [&str; 3] = [CA_FILE, IDENTITY_FILE, credential::FILE_NAME];
/// The Secret is `<prefix>-state`.
const DOCUMENT: &str = "state";
/// Longest wait between two tries to write it.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Why the Secret and the directory are not the same.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The API, or what it said.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory.
    #[error("the state directory: {0}")]
    Io(#[from] io::Error),
    /// What the Secret holds.
    #[error("the Secret does not hold what an agent keeps; remove it and enrol anew")]
    Damaged,
}

/// The state directory and its Secret.
pub struct Mirror {
    store: SecretStore,
    dir: PathBuf,
    /// What the Secret held when it was last seen.
    held: Mutex<Option<Held>>,
    /// The directory is ahead of it.
    changed: Notify,
}

struct Held {
    revision: Revision,
    digest: [u8; 32],
}

#[derive(Serialize, Deserialize, Default)]
struct State {
    files: BTreeMap<String, String>,
}

impl Drop for State {
    fn drop(&mut self) {
        self.files.values_mut().for_each(String::zeroize);
    }
}

impl Mirror {
    /// Of `dir`; the Secret lies in `store`.
    #[must_use]
    pub fn new(store: SecretStore, dir: PathBuf) -> Self {
        Self {
            store,
            dir,
            held: Mutex::new(None),
            changed: Notify::new(),
        }
    }

    /// Fills the directory, unless it holds something: then it is of this pod, and newer. What was
    /// cut short is done again.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn fetch(&self) -> Result<(), MirrorError> {
        if FILES[1..].iter().any(|name| self.dir.join(name).exists()) {
            return Ok(());
        }
        let Some(document) = self.store.read(DOCUMENT).await? else {
            return Ok(());
        };
        let state: State =
            serde_json::from_slice(&document.bytes).map_err(|_| MirrorError::Damaged)?;
        if !state
            .files
            .keys()
            .all(|name| FILES.contains(&name.as_str()))
        {
            return Err(MirrorError::Damaged);
        }
        let directory = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir);
        directory?;
        for name in FILES {
            if let Some(text) = state.files.get(name) {
                let temporary = self.dir.join(format!(".{name}.new"));
                write_durably(&temporary, &self.dir.join(name), text.as_bytes())?;
            }
        }
        let digest = sha256(&document.bytes);
        let revision = document.revision;
        *self.held.lock().await = Some(Held { revision, digest });
        Ok(())
    }

    /// Writes the Secret, if the directory holds something else.
    ///
    /// # Errors
    /// [`MirrorError`]; the Secret is as it was.
    pub async fn keep(&self) -> Result<(), MirrorError> {
        let mut held = self.held.lock().await;
        let bytes = self.bytes()?;
        let digest = sha256(&bytes);
        if held.as_ref().is_some_and(|held| held.digest == digest) {
            return Ok(());
        }
        let before = held.take().map(|held| held.revision);
        let wrote = match self.store.write(DOCUMENT, &bytes, before.as_ref()).await {
            // Another pod of ours wrote it, or it was not looked at yet: ours is the newest now.
            Err(StoreError::Conflict { .. }) => {
                let now = self.store.read(DOCUMENT).await?;
                let now = now.map(|document| document.revision);
                self.store.write(DOCUMENT, &bytes, now.as_ref()).await
            }
            wrote => wrote,
        };
        let revision = wrote?;
        *held = Some(Held { revision, digest });
        Ok(())
    }

    /// Has [`Mirror::run`] write the Secret.
    pub fn keep_soon(&self) {
        self.changed.notify_one();
    }

    /// Writes the Secret after each change, as soon as it can be written. For ever.
    pub async fn run(&self) {
        loop {
            self.changed.notified().await;
            let mut backoff = Backoff::new(RETRY_MAX);
            while let Err(why) = self.keep().await {
                let wait = backoff.next(Setback::Ordinary, u64::from_ne_bytes(random_bytes()));
                let retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(
                    %why, retry_in_ms,
                    "the state is not in its Secret: a new pod would not know it"
                );
                tokio::time::sleep(wait).await;
            }
        }
    }

    fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, io::Error> {
        let mut state = State::default();
        for name in FILES {
            match fs::read_to_string(self.dir.join(name)) {
                Ok(text) => drop(state.files.insert(name.to_owned(), text)),
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                Err(why) => return Err(why),
            }
        }
        // Room for all of it: a text that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(32 << 10));
        serde_json::to_writer(&mut *bytes, &state).map_err(io::Error::other)?;
        Ok(bytes)
    }
}

impl Shared {
    /// The state directory has changed.
    pub fn keep_soon(&self) {
        if let Some(mirror) = &self.mirror {
            mirror.keep_soon();
        }
    }
}

//! People's tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_proto::token::{Digest, TokenText};
use culvert_proto::update::PersonalToken;

use super::{Hub, HubError, LIFE_MS_MAX};
use crate::audit::{Cause, Verb};
use crate::registry::Refused;
use crate::registry::file::is_of_file;
use crate::registry::personal::{Grants, Person, admit, people, withdraw};
use crate::store::Step;
use crate::token;

/// A person's token that was just minted; this is the only time its text is seen.
pub struct MintedPersonal {
    /// The text.
    pub text: TokenText,
    /// The part that may be shown.
    pub id: Arc<str>,
    /// Its end, milliseconds since 1970.
    pub not_after_unix_ms: u64,
}

impl Hub {
    /// Every person's token that is live, by id.
    #[must_use]
    pub fn personal_tokens(&self) -> BTreeMap<Arc<str>, Person> {
        people(&self.clusters.load(), self.now_ms())
    }

    /// The person's token of this digest, if it is live in a cluster.
    #[must_use]
    pub fn personal_token(&self, digest: &Digest) -> Option<PersonalToken> {
        let (clusters, now_ms) = (self.clusters.load(), self.now_ms());
        let mut tokens = clusters.values().flat_map(|cluster| &cluster.personal);
        let found = tokens.find(|it| it.token.digest == *digest && it.is_live(now_ms));
        found.map(|it| it.token.clone())
    }

    /// Mints a token with which `principal` reaches what `grants` says for `life_ms`.
    ///
    /// # Errors
    /// When a cluster is unknown or reached by too many, or the token cannot be recorded.
    pub async fn mint_personal(
        &self,
        cause: &Cause,
        principal: &str,
        grants: &Grants,
        life_ms: u64,
    ) -> Result<MintedPersonal, HubError> {
        let (text, new) = token::mint_personal();
        let id: Arc<str> = new.id.into();
        let mut writer = self.turn().await?;
        let now_ms = self.now_ms();
        let not_after_unix_ms = now_ms.saturating_add(life_ms.min(LIFE_MS_MAX));
        let (mut steps, mut rows) = (Vec::new(), Vec::new());
        for (cluster, services) in grants {
            let held = self.seen(&*self.cluster(cluster)?);
            let token = PersonalToken {
                digest: new.digest,
                id: id.clone(),
                principal: principal.into(),
                not_after_unix_ms: Some(not_after_unix_ms),
                services: services.clone(),
            };
            steps.push(Step::Put(Arc::new(admit(&held, token, now_ms)?)));
            rows.push(cause.did(Verb::PersonalTokenMint, cluster, &id, now_ms));
        }
        self.commit(&mut writer, steps, rows).await?;
        drop(writer);
        tracing::info!(token = &*id, principal, "personal token minted");
        self.in_use().await;
        Ok(MintedPersonal {
            text,
            id,
            not_after_unix_ms,
        })
    }

    /// Takes a person's token; what it opened ends.
    ///
    /// # Errors
    /// When it is unknown, stands in the registry file, or the removal cannot be recorded.
    pub async fn revoke_personal(&self, cause: &Cause, token_id: &str) -> Result<(), HubError> {
        let mut writer = self.turn().await?;
        let now_ms = self.now_ms();
        let (mut steps, mut rows) = (Vec::new(), Vec::new());
        for (id, cluster) in self.clusters.load().iter() {
            let Some(next) = withdraw(cluster, token_id, now_ms) else {
                continue;
            };
            if is_of_file(token_id) && self.is_listed(id) {
                return Err(self.owned_by_file(id, "personalTokens"));
            }
            steps.push(Step::Put(Arc::new(self.seen(&next))));
            rows.push(cause.did(Verb::PersonalTokenRevoke, id, token_id, now_ms));
        }
        if steps.is_empty() {
            return Err(Refused::NoPersonalToken(token_id.to_owned()).into());
        }
        self.commit(&mut writer, steps, rows).await?;
        drop(writer);
        tracing::info!(token = token_id, "personal token revoked");
        self.in_use().await;
        Ok(())
    }
}

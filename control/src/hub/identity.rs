//! API tokens, and sessions that end everywhere. Neither is part of the state that
//! is published: control alone asks for them, and asks the store each time, so that
//! every process knows what another decided.

use std::collections::BTreeSet;

use culvert_proto::token::{Digest, TokenText};

use super::{Hub, HubError};
use crate::audit::{Cause, Entry, Outcome, Verb};
use crate::identity::{API_TOKENS_MAX, ApiToken, Scope};
use crate::token;

impl Hub {
    /// Mints a token for a machine; this is the only time its text is seen.
    ///
    /// # Errors
    /// When there are too many, or it cannot be recorded.
    pub async fn mint_api_token(
        &self,
        cause: &Cause,
        name: &str,
        scopes: BTreeSet<Scope>,
        life_ms: u64,
    ) -> Result<(TokenText, ApiToken), HubError> {
        let (text, new) = token::mint_personal();
        let now_ms = self.now_ms();
        let token = ApiToken {
            id: new.id,
            digest: new.digest,
            name: name.to_owned(),
            scopes,
            created_unix_ms: now_ms,
            not_after_unix_ms: now_ms.saturating_add(life_ms),
        };
        let entry = row(cause, Verb::ApiTokenMint, &token.id, now_ms);
        let count = self
            .store
            .add_api_token(&token, API_TOKENS_MAX, &entry)
            .await?;
        if count > API_TOKENS_MAX {
            return Err(HubError::TooManyApiTokens);
        }
        self.metrics.audited(&entry);
        tracing::info!(token = token.id, name, "API token minted");
        Ok((text, token))
    }

    /// Takes a machine's token.
    ///
    /// # Errors
    /// When it is unknown, or the removal cannot be recorded.
    pub async fn revoke_api_token(&self, cause: &Cause, id: &str) -> Result<(), HubError> {
        let entry = row(cause, Verb::ApiTokenRevoke, id, self.now_ms());
        if !self.store.remove_api_token(id, &entry).await? {
            return Err(HubError::NoApiToken(id.to_owned()));
        }
        self.metrics.audited(&entry);
        tracing::info!(token = id, "API token revoked");
        Ok(())
    }

    /// Machines' tokens that are live, by id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn api_tokens(&self) -> Result<Vec<ApiToken>, HubError> {
        let now_ms = self.now_ms();
        let mut tokens = self.store.api_tokens().await?;
        tokens.retain(|token| now_ms < token.not_after_unix_ms);
        Ok(tokens)
    }

    /// The machine's token of this digest, if it is live.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn api_token(&self, digest: &Digest) -> Result<Option<ApiToken>, HubError> {
        let found = self.store.api_token(digest).await?;
        Ok(found.filter(|token| self.now_ms() < token.not_after_unix_ms))
    }

    /// Sessions of `subject` below it are dead.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn session_epoch(&self, subject: &str) -> Result<u64, HubError> {
        Ok(self.store.session_epoch(subject).await?)
    }

    /// Ends every session of `subject`, in every browser.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub async fn end_sessions(&self, cause: &Cause, subject: &str) -> Result<(), HubError> {
        let entry = row(cause, Verb::LogoutEverywhere, subject, self.now_ms());
        self.store.raise_session_epoch(subject, &entry).await?;
        self.metrics.audited(&entry);
        tracing::info!(subject, "signed out everywhere");
        Ok(())
    }

    /// Records a login, or that one was refused. A store that cannot write keeps nobody out.
    pub async fn logged_in(&self, cause: &Cause, verb: Verb, outcome: Outcome, reason: &str) {
        self.refused(Entry {
            outcome,
            reason: reason.to_owned(),
            ..row(cause, verb, "", self.now_ms())
        })
        .await;
    }
}

fn row(cause: &Cause, verb: Verb, name: &str, now_ms: u64) -> Entry {
    Entry {
        time_unix_ms: now_ms,
        cause: cause.clone(),
        verb,
        outcome: Outcome::Success,
        cluster: String::new(),
        name: name.to_owned(),
        reason: String::new(),
    }
}

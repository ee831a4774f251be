//! API tokens, and sessions that end everywhere. Control asks the store for both each
//! time, so that every process knows what another decided; data planes learn who signed
//! out everywhere, and the keys of sessions, from the state.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_proto::token::{Digest, TokenText};
use culvert_proto::update::{Change, Settings, SignIn};

use super::enrol::published;
use super::{Hub, HubError};
use crate::audit::{Cause, Entry, Outcome, Verb};
use crate::identity::{API_TOKENS_MAX, ApiToken, Scope};
use crate::store::Step;
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
        self.audited(&entry);
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
        self.audited(&entry);
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
        let mut writer = self.turn().await?;
        let now_ms = self.now_ms();
        let held = self.store.session_epoch(subject).await?;
        let end = Step::End {
            subject: subject.to_owned(),
            epoch: held.saturating_add(1).max(now_ms),
        };
        let entry = row(cause, Verb::LogoutEverywhere, subject, now_ms);
        self.commit(&mut writer, vec![end], vec![entry]).await?;
        drop(writer);
        tracing::info!(subject, "signed out everywhere");
        self.in_use().await;
        Ok(())
    }

    /// Publishes how people are signed in, in a generation of its own and whole: what data
    /// planes hold of an earlier process may differ, whatever its number is.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub async fn publish_sign_in(&self, sign_in: Option<SignIn>) -> Result<(), HubError> {
        self.settings.store(Arc::new(Settings {
            sign_in: sign_in.map(Arc::new),
            ..Settings::default()
        }));
        let mut writer = self.turn().await?;
        self.commit_whole(&mut writer, Vec::new(), Vec::new()).await
    }

    /// What stands in the state beside clusters, as this process and the store know it.
    pub(super) async fn people(&self) -> Result<Vec<Change>, HubError> {
        let mut settings = Settings::clone(&self.settings.load());
        settings.agent_cas = published(self.store.agent_cas().await?, &[]);
        let life_s = settings.sign_in.as_ref().map_or(0, |it| it.life_s);
        let since_ms = self.now_ms().saturating_sub(u64::from(life_s) * 1000);
        let ended = match life_s {
            0 => Vec::new(),
            _ => self.store.ended_sessions(since_ms).await?,
        };
        let ends = ended.into_iter().map(|(subject, epoch)| Change::End {
            subject: subject.into(),
            epoch,
        });
        Ok([Change::Settings(settings)]
            .into_iter()
            .chain(ends)
            .collect())
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

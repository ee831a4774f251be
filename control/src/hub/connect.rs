//! Agents that ask for a token. Every process asks the store; a decision, and the token that
//! follows it, takes the turn that all processes share, so that it is made once.

use std::sync::Arc;

use culvert_net::crypto::{self, constant_time_eq};
use culvert_proto::id::ClusterId;
use culvert_proto::token::{Digest, TokenText};
use zeroize::Zeroizing;

use super::{Hub, HubError};
use crate::audit::{Cause, Entry, Outcome, Verb};
use crate::cluster::Spec;
use crate::connect::{
    Asked, ConnectRequest, Decision, PENDING_MAX, PENDING_OF_ADDRESS_MAX, Stage, Standing, code,
    is_id,
};
use crate::registry;
use crate::store::Step;
use crate::token;

/// In front of the secret that an agent shows for its request.
pub const SECRET_PREFIX: &str = "cvd_";

/// What an agent that asks again is told.
pub enum Fetched {
    /// How it stands; there is no token in it.
    Standing(Standing),
    /// The token: this is the only time its text is seen.
    Token {
        /// The text.
        text: TokenText,
        /// Whose it is.
        cluster: ClusterId,
    },
}

impl Hub {
    /// Takes a request, which waits for `life_ms`. Its secret is seen this once.
    ///
    /// # Errors
    /// When too many wait, or it cannot be recorded.
    pub async fn ask_to_connect(
        &self,
        asked: Asked,
        address: &str,
        life_ms: u64,
    ) -> Result<(ConnectRequest, Zeroizing<String>), HubError> {
        let secret = Zeroizing::new(crypto::random_bytes::<32>());
        let secret = Zeroizing::new(format!("{SECRET_PREFIX}{}", hex(&*secret)));
        let now_ms = self.now_ms();
        let request = ConnectRequest {
            id: hex(&crypto::random_bytes::<16>()),
            secret: token::digest(&secret),
            code: code(crypto::random_bytes()),
            asked,
            address: address.to_owned(),
            created_unix_ms: now_ms,
            expires_unix_ms: now_ms.saturating_add(life_ms),
            stage: Stage::Pending,
        };
        let most = (PENDING_OF_ADDRESS_MAX, PENDING_MAX);
        let counts = self.store.add_connect_request(&request, most).await?;
        if counts.0 > most.0 || counts.1 > most.1 {
            return Err(HubError::TooManyConnectRequests);
        }
        tracing::info!(
            request = request.id,
            address,
            cluster = request.asked.cluster,
            host = request.asked.host,
            "an agent asks to connect"
        );
        Ok((request, secret))
    }

    /// Requests that are not over, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn connect_requests(&self) -> Result<Vec<ConnectRequest>, HubError> {
        Ok(self.store.connect_requests(self.now_ms()).await?)
    }

    /// One request, for who decides.
    ///
    /// # Errors
    /// [`HubError::NoConnectRequest`], or when the store cannot be read.
    pub async fn connect_request(&self, id: &str) -> Result<ConnectRequest, HubError> {
        let found = match is_id(id) {
            true => self.store.connect_request(id).await?,
            false => None,
        };
        found.ok_or(HubError::NoConnectRequest)
    }

    /// The request that an agent shows the secret of. What is unknown and what has another secret
    /// cost the same and look the same.
    ///
    /// # Errors
    /// As [`Hub::connect_request`].
    pub async fn own_connect_request(
        &self,
        id: &str,
        secret: &Digest,
    ) -> Result<ConnectRequest, HubError> {
        let found = match is_id(id) {
            true => self.store.connect_request(id).await?,
            false => None,
        };
        let held = found.as_ref().map_or([0; 32], |request| request.secret.0);
        let is_own = constant_time_eq(&held, &secret.0);
        found.filter(|_| is_own).ok_or(HubError::NoConnectRequest)
    }

    /// Records what an administrator says. With `new` the cluster is registered by it.
    ///
    /// # Errors
    /// When the request is unknown or over, the cluster is unknown (or known, with `new`), or
    /// nothing can be recorded.
    pub async fn decide_connect_request(
        &self,
        cause: &Cause,
        id: &str,
        decision: Decision,
        new: Option<Spec>,
    ) -> Result<ConnectRequest, HubError> {
        let mut writer = self.turn().await?;
        let now_ms = self.now_ms();
        let held = self.connect_request(id).await?;
        let next = held.decide(decision.clone(), &cause.actor.sub, now_ms)?;
        let (mut steps, mut rows) = (Vec::new(), Vec::new());
        match &decision {
            Decision::Approve(cluster) => {
                if let Some(spec) = new {
                    self.room_for(cluster)?;
                    let made = registry::create(cluster.clone(), spec, now_ms)?;
                    steps.push(Step::Put(Arc::new(made)));
                    rows.push(cause.did(Verb::ClusterCreate, cluster, cluster.as_str(), now_ms));
                } else {
                    self.cluster(cluster)?;
                }
                rows.push(cause.did(Verb::AgentRegister, cluster, id, now_ms));
            }
            Decision::Deny => rows.push(Entry {
                time_unix_ms: now_ms,
                cause: cause.clone(),
                verb: Verb::AgentRegister,
                outcome: Outcome::Denied,
                cluster: String::new(),
                name: id.to_owned(),
                reason: "denied".to_owned(),
            }),
        }
        steps.push(Step::Decide {
            request: Box::new(next.clone()),
            before: held.stage,
        });
        self.commit(&mut writer, steps, rows).await?;
        drop(writer);
        let standing = next.standing(now_ms).as_str();
        tracing::info!(
            request = id,
            standing,
            by = cause.actor.sub,
            "an agent's request is decided"
        );
        self.in_use().await;
        Ok(next)
    }

    /// Gives the agent its token where there is one to fetch: recorded as fetched together with
    /// the token itself, so that of any number of askers one gets it. An answer that is lost on
    /// its way is not given again.
    ///
    /// # Errors
    /// When its cluster is gone or full, or the token cannot be recorded.
    pub async fn fetch_token(&self, cause: &Cause, id: &str) -> Result<Fetched, HubError> {
        let mut writer = self.turn().await?;
        let now_ms = self.now_ms();
        let held = self.connect_request(id).await?;
        let standing = held.standing(now_ms);
        let Standing::Approved(cluster) = standing else {
            return Ok(Fetched::Standing(standing));
        };
        let known = self.seen(&*self.cluster(&cluster)?);
        let (text, new) = token::mint();
        let next = held.consume(&new.id, now_ms)?;
        let row = cause.did(Verb::TokenMint, &cluster, &new.id, now_ms);
        let token = new.id.clone();
        let with_token = registry::add_token(&known, new, None, now_ms)?;
        let steps = vec![
            Step::Put(Arc::new(with_token)),
            Step::Decide {
                request: Box::new(next),
                before: held.stage,
            },
        ];
        self.commit(&mut writer, steps, vec![row]).await?;
        drop(writer);
        tracing::info!(%cluster, token, request = id, "an agent fetched its token");
        self.in_use().await;
        Ok(Fetched::Token { text, cluster })
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

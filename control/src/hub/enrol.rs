//! Certificates of agents: CAs, bootstrap tokens, registrations, renewals. The store is asked
//! each time, so that every process signs with the same CA.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_enrol::{Authority, Request, Signed, certificates};
use culvert_net::crypto;
use culvert_proto::id::ClusterId;
use culvert_proto::token::{Digest, TokenText};
use culvert_proto::update::Change;
use culvert_rpc::NotCertified;

use super::{Hub, HubError};
use crate::audit::{Actor, Cause, Entry, Outcome, Verb};
use crate::enrol::{
    self, AgentCa, CaRefused, CaState, ENROL_TOKEN_LIFE_MS, ENROL_TOKENS_MAX, EnrolToken,
    Enrolment, TokenRefused,
};
use crate::store::Step;

/// Names what the sealing key is for; who holds the key that signs snapshots can derive it.
pub(super) const SEAL_INFO: &[u8] = b"culvert agent CA key/1";
/// Ended tokens and spent CAs are looked for this often (P-27.1).
const REAP: Duration = Duration::from_secs(5 * 60);

/// A bootstrap token that was just minted; this is the only time its text is seen.
pub struct MintedEnrol {
    /// The text.
    pub text: TokenText,
    /// Its end, milliseconds since 1970.
    pub not_after_unix_ms: u64,
}

/// What an agent gets for its bootstrap token.
pub struct Registered {
    /// Its certificate.
    pub signed: Signed,
    /// The CAs that it should trust, PEM.
    pub ca_bundle: String,
}

/// Why an agent gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Its token is not good.
    #[error(transparent)]
    Token(#[from] TokenRefused),
    /// It cannot be done now.
    #[error(transparent)]
    Hub(#[from] HubError),
}

impl Hub {
    /// Says how agents are enrolled. Once, before anything is served.
    pub fn enrol_with(&self, enrolment: Enrolment) {
        self.enrolment.store(Arc::new(enrolment));
    }

    /// The CAs of agents, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn agent_cas(&self) -> Result<Vec<AgentCa>, HubError> {
        Ok(self.store.agent_cas().await?)
    }

    /// Mints a token with which one agent of the cluster gets its certificate.
    ///
    /// # Errors
    /// When the cluster is unknown, too many tokens live, or it cannot be recorded.
    pub async fn mint_enrol_token(
        &self,
        cause: &Cause,
        cluster: &ClusterId,
    ) -> Result<MintedEnrol, HubError> {
        self.cluster(cluster)?;
        self.signing_ca().await?;
        let (text, digest) = enrol::mint(crypto::random_bytes());
        let now_ms = self.now_ms();
        let token = EnrolToken {
            digest,
            cluster: cluster.to_string(),
            created_unix_ms: now_ms,
            not_after_unix_ms: now_ms + ENROL_TOKEN_LIFE_MS,
        };
        let entry = cause.did(Verb::TokenMint, cluster, "bootstrap", now_ms);
        let most = ENROL_TOKENS_MAX;
        if self.store.add_enrol_token(&token, most, &entry).await? > most {
            return Err(HubError::TooManyEnrolTokens);
        }
        self.audited(&entry);
        tracing::info!(%cluster, "bootstrap token minted");
        Ok(MintedEnrol {
            text,
            not_after_unix_ms: token.not_after_unix_ms,
        })
    }

    /// Changes a bootstrap token for a certificate. Whatever comes of it, the token is gone.
    ///
    /// # Errors
    /// [`RegisterError`]; its text is for the log.
    pub async fn register(
        &self,
        cause: &Cause,
        token: &str,
        asked: &str,
        request: &Request,
    ) -> Result<Registered, RegisterError> {
        // First what may fail for no fault of the agent: the token is not burnt by it.
        let (ca, authority) = self.signing_ca().await?;
        let digest = Digest(crypto::sha256(token.as_bytes()));
        let found = self.store.take_enrol_token(&digest).await;
        let found = found.map_err(HubError::from)?;
        let id = ClusterId::new(asked).ok();
        let cluster = id.and_then(|id| self.clusters().get(&id).cloned());
        let since = cluster.as_ref().map(|it| it.created_unix_ms);
        enrol::admit(found.as_ref(), asked, since, self.now_ms())?;
        let Some(cluster) = cluster else {
            return Err(TokenRefused::ClusterGone(asked.to_owned()).into());
        };
        let signed = self.sign(&ca, &authority, &cluster.id, request).await?;
        let serial = culvert_enrol::AgentCertificate::read(&signed.der);
        let serial = serial.map(|it| it.serial).unwrap_or_default();
        let entry = cause.did(Verb::AgentRegister, &cluster.id, &serial, self.now_ms());
        self.store
            .append_audit(&entry)
            .await
            .map_err(HubError::from)?;
        self.audited(&entry);
        tracing::info!(cluster = %cluster.id, serial, "agent enrolled");
        Ok(Registered {
            signed,
            ca_bundle: self.ca_bundle().await?,
        })
    }

    /// Records that a registration was refused.
    pub async fn registration_refused(&self, cause: &Cause, asked: &str, code: &str) {
        let asked = ClusterId::new(asked).map_or_else(|_| String::new(), |id| id.to_string());
        self.refused(Entry {
            time_unix_ms: self.now_ms(),
            cause: cause.clone(),
            verb: Verb::AgentRegister,
            outcome: Outcome::Denied,
            cluster: asked,
            name: String::new(),
            reason: code.to_owned(),
        })
        .await;
    }

    /// Makes a further CA, which signs nothing yet.
    ///
    /// # Errors
    /// When one is staged already, or it cannot be recorded.
    pub async fn stage_agent_ca(&self, cause: &Cause) -> Result<AgentCa, HubError> {
        self.signing_ca().await?;
        let ca = self.new_ca(&self.made()?, CaState::Staged);
        let added = ca.clone();
        self.change_cas(cause, &ca.id, move |cas| {
            enrol::may_stage(cas)?;
            Ok(vec![Step::AgentCa(added)])
        })
        .await?;
        tracing::info!(ca = ca.id, "agent CA staged: trusted, signs nothing yet");
        Ok(ca)
    }

    /// Lets the staged CA sign in place of the present one, which stays trusted.
    ///
    /// # Errors
    /// When none is staged, or it cannot be recorded.
    pub async fn promote_agent_ca(&self, cause: &Cause) -> Result<AgentCa, HubError> {
        let cas = self.store.agent_cas().await?;
        let next = enrol::promoted(&cas)?;
        let id = next.last().map(|ca| ca.id.clone()).unwrap_or_default();
        self.change_cas(cause, &id, |cas| {
            Ok(enrol::promoted(cas)?
                .into_iter()
                .map(Step::AgentCa)
                .collect())
        })
        .await?;
        tracing::info!(ca = id, "agent CA promoted: it signs from now on");
        let found = next.into_iter().next_back();
        found.ok_or_else(|| CaRefused::NothingStaged.into())
    }

    /// Trusts a CA no more. Agents with its certificates have to enrol anew.
    ///
    /// # Errors
    /// When it is unknown or signs, or it cannot be recorded.
    pub async fn retire_agent_ca(&self, cause: &Cause, id: &str) -> Result<(), HubError> {
        self.change_cas(cause, id, |cas| {
            enrol::may_retire(cas, id)?;
            Ok(vec![Step::DropAgentCa(id.to_owned())])
        })
        .await?;
        tracing::info!(ca = id, "agent CA retired");
        Ok(())
    }

    /// The CA of agents exists: made, or taken from `--agent-ca-dir`.
    ///
    /// # Errors
    /// When it cannot be made, read or recorded.
    pub async fn ensure_agent_ca(&self) -> Result<(), HubError> {
        self.signing_ca().await.map(|_| ())
    }

    /// Forgets ended tokens, and CAs whose last certificate has ended. Runs until dropped.
    pub async fn reap_enrolment(&self) {
        let mut tick = tokio::time::interval(REAP);
        loop {
            tick.tick().await;
            if let Err(error) = self.reap().await {
                tracing::warn!(%error, "ended bootstrap tokens stay for now");
            }
        }
    }

    async fn reap(&self) -> Result<(), HubError> {
        self.store.prune_enrol_tokens(self.now_ms()).await?;
        let cas = self.store.agent_cas().await?;
        if let Some(ca) = enrol::spent(&cas, self.now_ms()) {
            let cause = own_cause("upkeep");
            self.retire_agent_ca(&cause, &ca.id).await?;
        }
        Ok(())
    }

    /// Signs for an agent that is connected, or for the data planes' listener of agents.
    pub(super) async fn sign_for(
        &self,
        cluster: Option<ClusterId>,
        csr: &[u8],
    ) -> Result<Vec<u8>, NotCertified> {
        let refused = |why: String| NotCertified::Refused(why);
        let later = |why: HubError| NotCertified::Later(why.to_string());
        let request = Request::read(csr).map_err(|why| refused(why.to_string()))?;
        let Some(id) = cluster else {
            return self.certify_listener(&request).await;
        };
        self.cluster(&id).map_err(|why| refused(why.to_string()))?;
        let (ca, authority) = self.signing_ca().await.map_err(later)?;
        let signed = self.sign(&ca, &authority, &id, &request).await;
        let signed = signed.map_err(later)?;
        tracing::info!(cluster = %id, until_unix_s = signed.validity.until_unix_s, "certificate of an agent renewed");
        Ok(signed.der)
    }

    async fn certify_listener(&self, request: &Request) -> Result<Vec<u8>, NotCertified> {
        let later = |why: HubError| NotCertified::Later(why.to_string());
        let enrolment = self.enrolment.load_full();
        if enrolment.names.is_empty() {
            let why = "control does not know the names of the listener: set --agent-tunnel-sans \
                       there, or --tls-cert at the data plane";
            return Err(NotCertified::Refused(why.to_owned()));
        }
        self.ensure_agent_ca().await.map_err(later)?;
        let cas = self
            .store
            .agent_cas()
            .await
            .map_err(|why| later(why.into()))?;
        let first = enrol::in_order(&cas).into_iter().next();
        let first = first.ok_or_else(|| NotCertified::Later("no agent CA".to_owned()))?;
        let authority = self.unsealed(first).map_err(later)?;
        let now_s = self.now_ms() / 1000;
        let (names, life_s) = (&enrolment.names, enrolment.life_s);
        let signed = authority.sign_listener(request, names, now_s, life_s);
        let signed = signed.map_err(|why| NotCertified::Refused(why.to_string()))?;
        tracing::info!(?names, "certificate of a listener of agents made");
        Ok(signed.der)
    }

    async fn sign(
        &self,
        ca: &AgentCa,
        authority: &Authority,
        id: &ClusterId,
        request: &Request,
    ) -> Result<Signed, HubError> {
        let from_s = self.cluster(id)?.certificates_from_unix_s();
        let issued_s = enrol::issued_at(self.now_ms(), from_s);
        let life_s = self.enrolment.load().life_s;
        let signed = authority.sign_agent(request, id, issued_s, life_s);
        let signed = signed.map_err(|why| HubError::Certificate(why.to_string()))?;
        let until = signed.validity.until_unix_s;
        if !self.store.agent_ca_signed(&ca.id, until).await? {
            return Err(HubError::Overtaken);
        }
        Ok(signed)
    }

    /// The CA that signs, with its key; made now when there is none.
    async fn signing_ca(&self) -> Result<(AgentCa, Authority), HubError> {
        let cas = self.store.agent_cas().await?;
        if let Some(ca) = enrol::signing(&cas) {
            return Ok((ca.clone(), self.unsealed(ca)?));
        }
        let dir = self.enrolment.load().ca_dir.clone();
        let imported = dir.map(|dir| enrol::import(&dir)).transpose();
        let imported = imported.map_err(|why| HubError::Certificate(why.to_string()))?;
        let authority = match imported.flatten() {
            Some(authority) => authority,
            None => self.made()?,
        };
        let ca = self.new_ca(&authority, CaState::Signing);
        let (cause, first) = (own_cause("first use"), ca.clone());
        let made = self.change_cas(&cause, &ca.id, |cas| match enrol::signing(cas) {
            // Another process was first.
            Some(_) => Ok(Vec::new()),
            None => Ok(vec![Step::AgentCa(first)]),
        });
        made.await?;
        let cas = self.store.agent_cas().await?;
        let ca = enrol::signing(&cas).ok_or(HubError::Overtaken)?;
        Ok((ca.clone(), self.unsealed(ca)?))
    }

    fn made(&self) -> Result<Authority, HubError> {
        let made = Authority::generate(self.now_ms() / 1000);
        made.map_err(|why| HubError::Certificate(why.to_string()))
    }

    fn new_ca(&self, authority: &Authority, state: CaState) -> AgentCa {
        let id = authority.id();
        AgentCa {
            certificate: authority.certificate_der().to_vec(),
            sealed_key: crypto::seal(&self.seal, id.as_bytes(), authority.key().pkcs8_der()),
            id,
            state,
            created_unix_ms: self.now_ms(),
            last_unix_s: 0,
        }
    }

    fn unsealed(&self, ca: &AgentCa) -> Result<Authority, HubError> {
        let key = crypto::open(&self.seal, ca.id.as_bytes(), &ca.sealed_key);
        let key = key.ok_or_else(|| HubError::SealedElsewhere(ca.id.clone()))?;
        let authority = Authority::from_der(ca.certificate.clone(), &key);
        authority.map_err(|why| HubError::Certificate(why.to_string()))
    }

    async fn ca_bundle(&self) -> Result<String, HubError> {
        let cas = self.store.agent_cas().await?;
        let all = enrol::in_order(&cas).into_iter();
        Ok(certificates(all.map(|ca| &ca.certificate[..])))
    }

    /// Decides about the CAs under the turn, records it, and gives every data plane all of it.
    async fn change_cas(
        &self,
        cause: &Cause,
        id: &str,
        decide: impl FnOnce(&[AgentCa]) -> Result<Vec<Step>, CaRefused>,
    ) -> Result<(), HubError> {
        let mut writer = self.turn().await?;
        let steps = decide(&self.store.agent_cas().await?)?;
        if steps.is_empty() {
            return Ok(());
        }
        let entry = Entry {
            time_unix_ms: self.now_ms(),
            cause: cause.clone(),
            verb: Verb::CaRotate,
            outcome: Outcome::Success,
            cluster: String::new(),
            name: id.to_owned(),
            reason: String::new(),
        };
        self.commit_whole(&mut writer, steps, vec![entry]).await?;
        drop(writer);
        self.in_use().await;
        Ok(())
    }
}

/// The CAs of a published state, after these steps.
pub(super) fn published(mut cas: Vec<AgentCa>, steps: &[Step]) -> Vec<Bytes> {
    for step in steps {
        match step {
            Step::AgentCa(ca) => match cas.iter_mut().find(|held| held.id == ca.id) {
                Some(held) => held.state = ca.state,
                None => cas.push(ca.clone()),
            },
            Step::DropAgentCa(id) => cas.retain(|held| held.id != *id),
            Step::Put(_) | Step::Remove(_) | Step::End { .. } | Step::Decide { .. } => {}
        }
    }
    let all = enrol::in_order(&cas).into_iter();
    all.map(|ca| Bytes::copy_from_slice(&ca.certificate))
        .collect()
}

/// Puts the CAs into the settings among `changes`.
pub(super) fn with_cas(changes: &mut [Change], cas: &[Bytes]) {
    for change in changes {
        if let Change::Settings(settings) = change {
            settings.agent_cas = cas.to_vec();
        }
    }
}

fn own_cause(what: &str) -> Cause {
    Cause {
        actor: Actor {
            sub: "control".to_owned(),
            email: String::new(),
            groups: Vec::new(),
        },
        request_id: String::new(),
        route: what.to_owned(),
        transport: "unix",
    }
}

//! Enrolment at control: tokens, registrations, CAs, on real stores.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_control::audit::{Actor, Cause, Filter};
use culvert_control::cluster::Spec;
use culvert_control::enrol::{CaState, ENROL_TOKEN_LIFE_MS, TokenRefused};
use culvert_control::hub::{Hub, RegisterError};
use culvert_control::metrics::Metrics;
use culvert_control::store::{Dsn, Store};
use culvert_enrol::{AgentCertificate, Key, Request, issuer_is, read_certificates};
use culvert_net::crypto::SigningKey;
use culvert_proto::id::ClusterId;
use culvert_rpc::Hub as _;

const NOW: u64 = 1_763_683_200_000;

struct Rig {
    hub: Arc<Hub>,
    clock: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

fn cause() -> Cause {
    Cause {
        actor: Actor {
            sub: "uid:0".to_owned(),
            email: String::new(),
            groups: Vec::new(),
        },
        request_id: "r".to_owned(),
        route: "POST /api/agents/tokens".to_owned(),
        transport: "unix",
    }
}

async fn open(dir: &Path, key: SigningKey, clock: &Arc<AtomicU64>) -> Arc<Hub> {
    let (store, loaded) = Store::open(&Dsn::at(dir), NOW).await.unwrap();
    let clock = clock.clone();
    let now = Box::new(move || clock.load(Ordering::Relaxed));
    Arc::new(Hub::new(store, loaded, key, Arc::new(Metrics::new()), now))
}

async fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(AtomicU64::new(NOW));
    let key = SigningKey::load_or_generate(&dir.path().join("signing.key")).unwrap();
    let hub = open(dir.path(), key, &clock).await;
    for id in ["a", "b"] {
        let id = id.parse().unwrap();
        hub.create(&cause(), id, Spec::default()).await.unwrap();
    }
    Rig { hub, clock, dir }
}

fn id(text: &str) -> ClusterId {
    text.parse().unwrap()
}

fn request() -> Request {
    Request::read(&Key::generate().unwrap().request().unwrap()).unwrap()
}

impl Rig {
    async fn token(&self, cluster: &str) -> String {
        let minted = self.hub.mint_enrol_token(&cause(), &id(cluster)).await;
        minted.unwrap().text.expose().to_owned()
    }

    async fn register(&self, token: &str, cluster: &str) -> Result<AgentCertificate, TokenRefused> {
        let got = self
            .hub
            .register(&cause(), token, cluster, &request())
            .await;
        match got {
            Ok(got) => {
                let cas = read_certificates(&got.ca_bundle).unwrap();
                assert!(cas.iter().any(|ca| issuer_is(&got.signed.der, ca)));
                Ok(AgentCertificate::read(&got.signed.der).unwrap())
            }
            Err(RegisterError::Token(why)) => Err(why),
            Err(RegisterError::Hub(why)) => panic!("{why}"),
        }
    }

    fn pass(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_bootstrap_token_is_good_once_for_its_cluster_and_its_time() {
    let rig = rig().await;
    let token = rig.token("a").await;
    assert_eq!(rig.register(&token, "a").await.unwrap().cluster, id("a"));
    assert_eq!(rig.register(&token, "a").await, Err(TokenRefused::Unknown));

    let token = rig.token("a").await;
    let other = rig.register(&token, "b").await;
    assert!(matches!(other, Err(TokenRefused::OtherCluster { .. })));
    let burnt = rig.register(&token, "a").await;
    assert_eq!(burnt, Err(TokenRefused::Unknown), "a wrong name burns it");

    let token = rig.token("a").await;
    rig.pass(ENROL_TOKEN_LIFE_MS);
    assert_eq!(rig.register(&token, "a").await, Err(TokenRefused::Expired));

    let token = rig.token("a").await;
    rig.pass(1_000);
    rig.hub.remove(&cause(), &id("a")).await.unwrap();
    rig.hub
        .create(&cause(), id("a"), Spec::default())
        .await
        .unwrap();
    let gone = rig.register(&token, "a").await;
    assert_eq!(gone, Err(TokenRefused::ClusterGone("a".to_owned())));
    for nonsense in ["", "cve_", "x"] {
        let unknown = rig.register(nonsense, "a").await;
        assert_eq!(unknown, Err(TokenRefused::Unknown));
    }
    let filter = Filter {
        verb: Some("agent_register".to_owned()),
        limit: 10,
        ..Filter::default()
    };
    let (rows, all) = rig.hub.audit(&filter).await.unwrap();
    assert_eq!(all, 1, "successes are recorded with the decision");
    assert_eq!((&*rows[0].cluster, &*rows[0].resource), ("a", "agents"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_uses_at_once_one_wins() {
    let rig = Arc::new(rig().await);
    let token = rig.token("a").await;
    let uses = (0..16).map(|_| {
        let (rig, token) = (rig.clone(), token.clone());
        tokio::spawn(async move { rig.register(&token, "a").await.is_ok() })
    });
    let mut won = 0;
    for used in uses.collect::<Vec<_>>() {
        won += usize::from(used.await.unwrap());
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn certificates_end_with_a_revocation_and_new_ones_are_made_after_it() {
    let rig = rig().await;
    let token = rig.token("a").await;
    let before = rig.register(&token, "a").await.unwrap();
    rig.hub.revoke(&cause(), &id("a")).await.unwrap();
    let from = |rig: &Rig| rig.hub.cluster(&id("a")).unwrap().to_state();
    let from_s = from(&rig).certificates_from_unix_s;
    assert!(before.validity.issued_unix_s < from_s);
    // In the same millisecond.
    let token = rig.token("a").await;
    let after = rig.register(&token, "a").await.unwrap();
    assert!(after.validity.issued_unix_s >= from_s);
    let csr = Key::generate().unwrap().request().unwrap();
    let renewed = Hub::certify(&*rig.hub, Some(id("a")), &csr).await.unwrap();
    let renewed = AgentCertificate::read(&renewed).unwrap();
    assert!(renewed.validity.issued_unix_s >= from_s);
    assert!(Hub::certify(&*rig.hub, Some(id("c")), &csr).await.is_err());
    assert!(Hub::certify(&*rig.hub, Some(id("a")), b"x").await.is_err());
    let nameless = Hub::certify(&*rig.hub, None, &csr).await.unwrap_err();
    assert!(nameless.to_string().contains("--agent-tunnel-sans"));
}

#[tokio::test]
async fn cas_outlive_a_restart_and_open_with_the_same_signing_key_alone() {
    let Rig { hub, clock, dir } = rig().await;
    hub.ensure_agent_ca().await.unwrap();
    let made = hub.agent_cas().await.unwrap();
    hub.close().await;
    drop(hub);
    let key = SigningKey::load(&dir.path().join("signing.key")).unwrap();
    let hub = open(dir.path(), key, &clock).await;
    assert!(hub.agent_cas().await.unwrap() == made);
    hub.mint_enrol_token(&cause(), &id("a")).await.unwrap();
    hub.close().await;
    drop(hub);
    let hub = open(dir.path(), SigningKey::generate().unwrap(), &clock).await;
    let refused = hub.mint_enrol_token(&cause(), &id("a")).await;
    let why = refused.err().unwrap().to_string();
    assert!(why.contains("signing.key"), "{why}");
}

#[tokio::test]
async fn a_staged_ca_signs_once_it_is_promoted() {
    let rig = rig().await;
    let hub = &rig.hub;
    hub.ensure_agent_ca().await.unwrap();
    let first = hub.agent_cas().await.unwrap().remove(0);
    let signer = async |ca: &[u8]| {
        let token = rig.token("a").await;
        let got = hub.register(&cause(), &token, "a", &request()).await;
        issuer_is(&got.unwrap().signed.der, ca)
    };
    assert!(hub.promote_agent_ca(&cause()).await.is_err());
    rig.pass(1);
    let staged = hub.stage_agent_ca(&cause()).await.unwrap();
    assert!(hub.stage_agent_ca(&cause()).await.is_err());
    assert!(signer(&first.certificate).await);
    hub.promote_agent_ca(&cause()).await.unwrap();
    assert!(signer(&staged.certificate).await);
    let states: Vec<_> = hub.agent_cas().await.unwrap();
    let states: Vec<_> = states.iter().map(|ca| ca.state).collect();
    assert_eq!(states, [CaState::Trusted, CaState::Signing]);
    assert!(hub.retire_agent_ca(&cause(), &staged.id).await.is_err());
    assert!(hub.retire_agent_ca(&cause(), "0123").await.is_err());
    hub.retire_agent_ca(&cause(), &first.id).await.unwrap();
    assert_eq!(hub.agent_cas().await.unwrap().len(), 1);
}

#[tokio::test]
async fn no_secret_is_stored_or_shown() {
    let rig = rig().await;
    let token = rig.token("a").await;
    let ca = rig.hub.agent_cas().await.unwrap().remove(0);
    rig.hub.close().await;
    let mut stored = Vec::new();
    for file in std::fs::read_dir(rig.dir.path()).unwrap() {
        let path = file.unwrap().path();
        if path.to_string_lossy().contains("control.db") {
            stored.extend(std::fs::read(path).unwrap());
        }
    }
    let holds = |what: &[u8]| stored.windows(what.len()).any(|it| it == what);
    assert!(holds(&ca.certificate), "the store itself was read");
    assert!(!holds(token.as_bytes()), "only hashes of tokens are stored");
    let secret = token.strip_prefix("cve_").unwrap();
    assert!(!holds(secret.as_bytes()));
    // Every PKCS#8 key of this kind begins so.
    let clear = Key::generate().unwrap().pkcs8_der()[..26].to_vec();
    assert!(!holds(&clear), "the CA's key is sealed");
}

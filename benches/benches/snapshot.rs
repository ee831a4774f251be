//! A snapshot of 10,000 clusters with 20,000 tokens: made, encoded, signed, sent over TCP, verified,
//! decoded and swapped in, and an update after it. Fails over its limits.
//!
//! Both ends run in this process; memory is what the allocator holds for one end's state.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints and may stop"
)]

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cap::Cap;
use culvert_identity::Policy;
use culvert_net::crypto::{SigningKey, sha256};
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::token::{Digest, TokenIndex};
use culvert_proto::update::{
    Access, Change, ClusterState, CookieKey, Grant, Settings, SignIn, Snapshot, State, Tier,
    TokenHash, Update,
};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Cap<Jemalloc> = Cap::new(Jemalloc, usize::MAX);

const CLUSTERS: usize = 10_000;
const TOKENS_EACH: usize = 2;
const ROUNDS: usize = 5;
const SNAPSHOT_MAX: Duration = Duration::from_secs(1);
const UPDATE_MAX: Duration = Duration::from_millis(10);

/// What a data plane holds of a state.
struct Held {
    state: State,
    tokens: TokenIndex,
    policies: HashMap<ClusterId, Arc<Policy>>,
}

fn cluster(number: usize, rate_per_second: u32) -> Arc<ClusterState> {
    let token = |which: usize| TokenHash {
        digest: Digest(sha256(format!("token {number} {which}").as_bytes())),
        id: format!("t{number}-{which}").into(),
        not_after_unix_ms: (which > 0).then_some(1_800_000_000_000),
    };
    let grant = |group: &str, tier| Grant {
        group: group.into(),
        tier,
        not_after_unix_ms: None,
    };
    Arc::new(ClusterState {
        tokens: (0..TOKENS_EACH).map(token).collect(),
        rate_per_second,
        name: Some(format!("Cluster {number}").into()),
        labels: vec![("region".into(), "eu-1".into())],
        access: Access {
            grants: vec![grant("ops", Tier::Write), grant("dev", Tier::Read)],
            ..Access::default()
        },
        ..ClusterState::new(format!("cluster-{number:05}").parse().unwrap())
    })
}

fn state() -> State {
    let key = CookieKey {
        id: [1; 8],
        secret: [2; 32].into(),
    };
    let sign_in = SignIn {
        keys: vec![key],
        idle_s: 1_800,
        life_s: 28_800,
        origins: vec!["https://hub.test".into()],
    };
    let clusters = (0..CLUSTERS).map(|number| cluster(number, 0));
    State {
        generation: Generation(1),
        hub_id: "hub".into(),
        settings: Settings {
            sign_in: Some(Arc::new(sign_in)),
            ..Settings::default()
        },
        clusters: clusters.map(|it| (it.id.clone(), it)).collect(),
        ..State::default()
    }
}

impl Held {
    fn new(state: State) -> Held {
        let entries = state.clusters.values().flat_map(|it| it.token_entries());
        let policy = |it: &Arc<ClusterState>| (it.id.clone(), Arc::new(Policy::from(&it.access)));
        Held {
            tokens: TokenIndex::build(entries.collect::<Vec<_>>()).unwrap(),
            policies: state.clusters.values().map(policy).collect(),
            state,
        }
    }

    /// After one cluster has changed; readers of the state before keep theirs.
    fn follow(&self, step: &Update) -> Held {
        let [Change::Upsert(changed)] = &step.changes[..] else {
            panic!("one cluster changes");
        };
        let mut state = self.state.clone();
        state.apply(step).unwrap();
        let mut policies = self.policies.clone();
        let policy = Arc::new(Policy::from(&changed.access));
        policies.insert(changed.id.clone(), policy);
        let tokens = self
            .tokens
            .with(|id| *id == changed.id, changed.token_entries());
        Held {
            tokens: tokens.unwrap(),
            policies,
            state,
        }
    }
}

/// Over a TCP connection of loopback, as between two hosts.
fn sent(body: &[u8]) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            TcpStream::connect(address)
                .unwrap()
                .write_all(body)
                .unwrap();
        });
        let mut got = Vec::with_capacity(body.len());
        listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
        got
    })
}

fn main() {
    let key = SigningKey::generate().unwrap();
    let mut slowest = [Duration::ZERO; 2];
    for round in 0..ROUNDS {
        let began = Instant::now();
        let built = state();
        let made = began.elapsed();
        let body = built.to_snapshot().encode();
        let signature = key.sign(&body);
        let encoded = began.elapsed();
        let got = sent(&body);
        let arrived = began.elapsed();
        assert!(key.verifying_key().verify(&got, &signature));
        let before = ALLOCATOR.allocated();
        let held = Held::new(State::from_snapshot(Snapshot::decode(&got).unwrap()));
        let swapped = began.elapsed();
        let memory = ALLOCATOR.allocated() - before;
        assert_eq!(held.state, built);

        // As both ends do it: each has a state, and what is sent is the signed step.
        let mut built = built;
        let began = Instant::now();
        let update = Update {
            generation: Generation(2),
            issued_unix_ms: 1,
            changes: vec![Change::Upsert(cluster(77, 5))],
        };
        built.apply(&update).unwrap();
        let step = update.encode();
        let signature = key.sign(&step);
        let got = sent(&step);
        assert!(key.verifying_key().verify(&got, &signature));
        let arrived_update = began.elapsed();
        let before = ALLOCATOR.allocated();
        let next = held.follow(&Update::decode(&got).unwrap());
        let updated = began.elapsed();
        let beside = ALLOCATOR.allocated() - before;
        assert_eq!((next.tokens.len(), next.policies.len()), (20_000, CLUSTERS));
        slowest = [slowest[0].max(swapped), slowest[1].max(updated)];
        println!(
            "round {round}: made {made:?}, encoded and signed {encoded:?}, sent {arrived:?}, in use \
             {swapped:?}; {} bytes, {} KiB held; update sent {arrived_update:?}, in use {updated:?}, \
             {} KiB beside the state before it",
            body.len(),
            memory / 1024,
            beside / 1024
        );
    }
    println!(
        "slowest: snapshot {:?}, update {:?}",
        slowest[0], slowest[1]
    );
    assert!(
        slowest[0] < SNAPSHOT_MAX,
        "a snapshot took {:?}",
        slowest[0]
    );
    assert!(slowest[1] < UPDATE_MAX, "an update took {:?}", slowest[1]);
}

//! Kubernetes Secrets as a store, before the stand-in of `stub.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_pair::{KubeAccess, SecretStore, Store, StoreError, Stored};
use serde_json::json;

use crate::promises::{self, pair};
use crate::stub::{Mood, Stub};

fn store(access: &KubeAccess, prefix: &str) -> SecretStore {
    SecretStore::new(access, "pairs", Some(prefix)).unwrap()
}

#[tokio::test]
async fn it_keeps_what_every_store_promises() {
    let stub = Stub::start().await;
    promises::keeps_registrations(&store(&stub.access, "a")).await;
    promises::lets_one_writer_win(&store(&stub.access, "b")).await;
    promises::keeps_a_code_through_a_bad_request(&store(&stub.access, "c")).await;
    promises::certifies_the_key_that_the_code_stands_for(&store(&stub.access, "d")).await;
    promises::keeps_a_broker(&store(&stub.access, "e")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_brokers_at_once_one_is_certified() {
    let stub = Stub::start().await;
    for (prefix, reissue) in [("a", false), ("b", true)] {
        let store = Arc::new(store(&stub.access, prefix));
        promises::certifies_one_of_many(store, reissue).await;
    }
}

#[tokio::test]
async fn a_pair_is_one_secret_with_our_label_and_others_are_left_alone() {
    let stub = Stub::start().await;
    let foreign = json!({"metadata": {"name": "culvert-pair-ffffffff", "resourceVersion": "7"},
        "data": {"pair.json": "bm90IG91cnM="}});
    let name = "culvert-pair-ffffffff".to_owned();
    stub.state.lock().unwrap().secrets.insert(name, foreign);
    let store = Stored::open_with("secret:pairs", &stub.access).unwrap();
    assert_eq!(store.place(), "secret:pairs/culvert-pair");
    let pair = pair("one", false);
    store.save(&pair, None).await.unwrap();
    let secret = {
        let state = stub.state.lock().unwrap();
        state.secrets[&format!("culvert-pair-{}", pair.id())].clone()
    };
    assert_eq!(
        secret["metadata"]["labels"],
        json!({"app.kubernetes.io/managed-by": "culvert"})
    );
    assert_eq!(
        (&secret["type"], &secret["kind"]),
        (&json!("Opaque"), &json!("Secret"))
    );
    let listing = store.list().await.unwrap();
    assert_eq!(
        (listing.kept.len(), listing.damaged.len()),
        (1, 0),
        "it has not our label"
    );
}

#[tokio::test]
async fn more_pairs_than_a_page_are_all_found() {
    let stub = Stub::start().await;
    let store = store(&stub.access, "p");
    for at in 0..19 {
        store
            .write(&format!("{at:08}"), b"no registration", None)
            .await
            .unwrap();
    }
    assert_eq!(store.all().await.unwrap().len(), 19);
    let pages = stub
        .state
        .lock()
        .unwrap()
        .asked
        .iter()
        .filter(|a| a.starts_with("GET"))
        .count();
    assert_eq!(pages, 3);
    assert_eq!(store.list().await.unwrap().damaged.len(), 19);
}

#[tokio::test]
async fn a_token_that_was_exchanged_is_read_again() {
    let stub = Stub::start().await;
    let store = store(&stub.access, "p");
    let good = std::fs::read(&stub.access.token_file).unwrap();
    std::fs::write(&stub.access.token_file, "another").unwrap();
    let refused = store.list().await.err().unwrap();
    assert!(
        matches!(refused, StoreError::Refused { status: 401, .. }),
        "{refused}"
    );
    assert!(!refused.to_string().contains("another"));
    std::fs::write(&stub.access.token_file, "\n").unwrap();
    let empty = store.list().await.err().unwrap().to_string();
    assert!(empty.contains("holds no token"), "{empty}");
    std::fs::write(&stub.access.token_file, good).unwrap();
    assert!(store.list().await.is_ok());
}

#[tokio::test]
async fn what_goes_wrong_is_named_with_what_to_do() {
    let stub = Stub::start().await;
    let store = store(&stub.access, "p");
    stub.set(Mood::Forbids);
    let forbidden = store
        .save(&pair("x", false), None)
        .await
        .err()
        .unwrap()
        .to_string();
    for part in ["403", "no role", "create", "on secrets"] {
        assert!(forbidden.contains(part), "{part}: {forbidden}");
    }
    stub.set(Mood::Floods);
    let flood = store.list().await.err().unwrap().to_string();
    assert!(flood.contains("the answer:"), "{flood}");
    stub.set(Mood::Babbles);
    let babble = store.list().await.err().unwrap().to_string();
    assert!(
        babble.contains("no Secret") && !babble.contains("cvf_"),
        "{babble}"
    );
    stub.set(Mood::Stalls);
    let since = Instant::now();
    let stalled = store.list().await.err().unwrap().to_string();
    assert!(stalled.contains("no answer within 5 s"), "{stalled}");
    assert!(since.elapsed() < Duration::from_secs(8));
    stub.set(Mood::Sound);
    let elsewhere = SecretStore::new(&stub.access, "elsewhere", None).unwrap();
    let missing = elsewhere.list().await.err().unwrap().to_string();
    assert!(missing.contains("is the namespace there?"), "{missing}");
}

#[tokio::test]
async fn an_api_of_another_ca_is_not_believed() {
    let (stub, other) = (Stub::start().await, Stub::start().await);
    let access = KubeAccess {
        ca_file: other.access.ca_file.clone(),
        ..stub.access.clone()
    };
    let refused = store(&access, "p").list().await.err().unwrap();
    assert!(
        matches!(refused, StoreError::Unreachable { .. }),
        "{refused}"
    );
    assert!(
        stub.state.lock().unwrap().asked.is_empty(),
        "the token was not shown"
    );
    assert!(other.dir.path().exists());
}

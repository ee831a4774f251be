//! What every store promises.

use std::sync::Arc;

use culvert_pair::{
    Authority, BrokerState, CODE_LIFE_S, Key, PairingCode, RedeemError, Refused, Registration,
    RegistrationError, Store, StoreError,
};
use culvert_proto::pair::Role;

pub fn now() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A pair whose code is random, as `culvert pair init` makes it.
pub fn pair(name: &str, reissue: bool) -> Registration {
    let relays = ["relay.example:443".to_owned()];
    Registration::new(name, &relays, PairingCode::random(), false, reissue, now()).unwrap()
}

pub async fn keeps_registrations(store: &impl Store) {
    assert!(store.list().await.unwrap().kept.is_empty());
    let (first, second) = (pair("one", false), pair("two", true));
    let revision = store.save(&first, None).await.unwrap();
    store.save(&second, None).await.unwrap();
    let kept = store.load(first.id()).await.unwrap().unwrap();
    assert_eq!(kept.revision, revision);
    let read = &kept.registration;
    assert_eq!((read.name(), read.relays()), (first.name(), first.relays()));
    assert_eq!(read.info_hash(), first.info_hash());
    assert_eq!(read.bridge().chain(), first.bridge().chain());
    assert_eq!(read.voucher(), first.voucher());
    let (kept, ours) = (read.code(now()).unwrap(), first.code(now()).unwrap());
    assert!(kept.is_same(ours));
    let broker = read.authority().broker(now()).unwrap();
    assert!(broker.check(Role::Broker, now()).is_ok());
    let listing = store.list().await.unwrap();
    let mut names: Vec<&str> = listing.kept.iter().map(|k| k.registration.name()).collect();
    names.sort_unstable();
    assert_eq!((names, listing.damaged.len()), (vec!["one", "two"], 0));
    store.remove(first.id(), &revision).await.unwrap();
    assert!(store.load(first.id()).await.unwrap().is_none());
    assert_eq!(store.list().await.unwrap().kept.len(), 1);
}

pub async fn lets_one_writer_win(store: &impl Store) {
    let mut pair = pair("swap", false);
    let first = store.save(&pair, None).await.unwrap();
    let again = store.save(&pair, None).await;
    assert!(
        matches!(again, Err(StoreError::Conflict { .. })),
        "made twice"
    );
    pair.set_relays(&["other.example:443".to_owned()]).unwrap();
    let second = store.save(&pair, Some(&first)).await.unwrap();
    assert_ne!(first, second);
    let late = store.save(&pair, Some(&first)).await;
    assert!(
        matches!(late, Err(StoreError::Conflict { .. })),
        "an old revision"
    );
    let late = store.remove(pair.id(), &first).await;
    assert!(
        matches!(late, Err(StoreError::Conflict { .. })),
        "an old revision"
    );
    store.remove(pair.id(), &second).await.unwrap();
    let gone = store.save(&pair, Some(&second)).await;
    assert!(
        matches!(gone, Err(StoreError::Conflict { .. })),
        "of what is gone"
    );
    let gone = store.remove(pair.id(), &second).await;
    assert!(
        matches!(gone, Err(StoreError::Conflict { .. })),
        "of what is gone"
    );
}

pub async fn certifies_one_of_many(store: Arc<impl Store + 'static>, reissue: bool) {
    let pair = pair("many", reissue);
    let id = pair.id().clone();
    store.save(&pair, None).await.unwrap();
    let asked: Vec<_> = (0..8u8)
        .map(|key| {
            let (store, id) = (store.clone(), id.clone());
            tokio::spawn(async move {
                let csr = Key::generate().unwrap().request().unwrap();
                store.redeem(&id, &[key; 32], &csr, now()).await
            })
        })
        .collect();
    let mut winners = Vec::new();
    for (key, asked) in (0..8u8).zip(asked) {
        match asked.await.unwrap() {
            Ok(chain) => {
                assert!(chain.check(Role::Broker, now()).is_ok());
                assert_eq!(chain.info_hash(), pair.info_hash());
                winners.push(key);
            }
            Err(RedeemError::Refused(Refused::Consumed)) if !reissue => {}
            Err(RedeemError::Refused(Refused::OtherKey)) if reissue => {}
            Err(other) => panic!("key {key}: {other}"),
        }
    }
    let [winner] = winners[..] else {
        panic!("{winners:?} won");
    };
    let kept = store.load(&id).await.unwrap().unwrap().registration;
    assert_eq!(kept.voucher().unwrap().consumed_by, Some([winner; 32]));
    assert!(kept.code(now()).is_some(), "nobody has confirmed");
    let csr = Key::generate().unwrap().request().unwrap();
    let again = store.redeem(&id, &[winner; 32], &csr, now()).await;
    assert!(
        again.is_ok(),
        "its certificate may have been lost on the way"
    );
    store.confirm(&id).await.unwrap();
    store.confirm(&id).await.unwrap();
    let kept = store.load(&id).await.unwrap().unwrap().registration;
    assert_eq!(
        kept.code(now()).is_some(),
        reissue,
        "the code is forgotten unless needed"
    );
    for late in [now(), now() + CODE_LIFE_S] {
        let again = store.redeem(&id, &[winner; 32], &csr, late).await;
        assert_eq!(again.is_ok(), reissue, "the winner comes back");
    }
}

pub async fn keeps_a_code_through_a_bad_request(store: &impl Store) {
    let pair = pair("bad", false);
    store.save(&pair, None).await.unwrap();
    let bad = store
        .redeem(pair.id(), &[1; 32], b"no request", now())
        .await;
    assert!(matches!(bad, Err(RedeemError::Request(_))));
    let csr = Key::generate().unwrap().request().unwrap();
    let late = store
        .redeem(pair.id(), &[1; 32], &csr, now() + CODE_LIFE_S + 1)
        .await;
    assert!(matches!(
        late,
        Err(RedeemError::Refused(Refused::Expired { .. }))
    ));
    assert!(store.redeem(pair.id(), &[1; 32], &csr, now()).await.is_ok());
    let nobody = "00000000".parse().unwrap();
    let nobody = store.redeem(&nobody, &[1; 32], &csr, now()).await;
    assert!(matches!(nobody, Err(RedeemError::Unknown { .. })));
}

pub async fn certifies_the_key_that_the_code_stands_for(store: &impl Store) {
    let broker = BrokerState::generate().unwrap();
    let spki = broker.boot_key().spki_sha256();
    let mut pair = Registration::new("bound", &[], broker.code(), true, false, now()).unwrap();
    let id = pair.id().clone();
    let revision = store.save(&pair, None).await.unwrap();
    let csr = Key::generate().unwrap().request().unwrap();
    let other = store.redeem(&id, &[9; 32], &csr, now()).await;
    assert!(matches!(
        other,
        Err(RedeemError::Refused(Refused::OtherKey))
    ));
    assert!(store.redeem(&id, &spki, &csr, now()).await.is_ok());
    store.confirm(&id).await.unwrap();
    let twice = store.redeem(&id, &spki, &csr, now()).await;
    assert!(matches!(
        twice,
        Err(RedeemError::Refused(Refused::Consumed))
    ));
    // The repair: the same code once more, the same CA.
    assert!(store.save(&pair, Some(&revision)).await.is_err());
    let kept = store.load(&id).await.unwrap().unwrap();
    let hash = pair.info_hash();
    pair = kept.registration;
    pair.reopen(broker.code(), false, now()).unwrap();
    store.save(&pair, Some(&kept.revision)).await.unwrap();
    assert_eq!(
        store
            .redeem(&id, &spki, &csr, now())
            .await
            .unwrap()
            .info_hash(),
        hash
    );
    let foreign = pair.reopen(PairingCode::random(), false, now());
    assert!(matches!(foreign, Err(RegistrationError::OtherPair { .. })));
}

pub async fn keeps_a_broker(store: &impl Store) {
    assert!(store.load_broker().await.unwrap().is_none());
    let mut state = BrokerState::generate().unwrap();
    let revision = store.save_broker(&state, None).await.unwrap();
    let (read, seen) = store.load_broker().await.unwrap().unwrap();
    assert_eq!(seen, revision);
    assert!(read.code().is_same(&state.code()) && read.identity().is_none());
    let authority = Authority::generate("b", now()).unwrap();
    state.set_identity(Some(authority.broker(now()).unwrap()));
    store.save_broker(&state, Some(&revision)).await.unwrap();
    let (read, _) = store.load_broker().await.unwrap().unwrap();
    assert_eq!(read.identity().unwrap().info_hash(), authority.info_hash());
    let listing = store.list().await.unwrap();
    assert!(listing.kept.is_empty() && listing.damaged.is_empty());
    let lost = store.save_broker(&state, None).await;
    assert!(
        matches!(lost, Err(StoreError::Conflict { .. })),
        "a key is never overwritten blindly"
    );
}

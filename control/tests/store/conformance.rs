//! One suite for both kinds of store.

use std::sync::Arc;

use culvert_control::cluster::{Cluster, Personal, Route};
use culvert_control::connect::{Asked, ConnectRequest, Decision, FETCH_MS_MIN, KEPT_MS, Stage};
use culvert_control::license::LicenseRecord;
use culvert_control::store::{Dsn, Step, Store, Touch};
use culvert_licence::Ladder;
use culvert_proto::id::Generation;
use culvert_proto::token::Digest;
use culvert_proto::update::{self, PersonalToken, RouteKind, ServiceName, SniPattern};

use culvert_audit::{Actor, Attempted, Ended, EventId, Outcome, Record, Resource, Verb};

use super::{NOW, cluster, entry, record, remove, rows, save};
use culvert_control::audit::Filter;

/// Runs every case on a store of its own.
pub async fn all(mut fresh: impl AsyncFnMut(&str) -> Dsn) {
    macro_rules! cases {
        ($($case:ident,)*) => {$(
            eprintln!("case {}", stringify!($case));
            $case(&fresh(stringify!($case)).await).await;
        )*};
    }
    cases! {
        what_is_saved_is_loaded,
        a_change_that_does_not_follow_changes_nothing,
        two_clusters_never_share_a_token,
        one_change_may_move_a_token_from_a_cluster_to_one_before_it,
        a_row_is_recorded_with_its_change_or_not_at_all,
        routes_and_personal_tokens_keep_their_order,
        the_license_is_kept_with_the_row_that_says_why,
        audit_rows_are_filtered_paged_and_pruned,
        an_event_is_kept_once_however_often_it_comes,
        texts_of_any_kind_come_back_as_they_were,
        sessions_end_with_their_generation_and_the_newest_come_first,
        a_request_to_connect_is_kept_and_decided_once,
    }
}

async fn what_is_saved_is_loaded(dsn: &Dsn) {
    let (store, fresh) = Store::open(dsn, NOW).await.unwrap();
    assert_eq!((fresh.generation, fresh.clusters.len()), (Generation(1), 0));
    let mut saved = cluster("prod", 2);
    save(&store, &saved, Generation(2), None).await.unwrap();
    saved.epoch_floor = 77;
    saved.tokens.remove(0);
    save(&store, &saved, Generation(3), None).await.unwrap();
    save(&store, &cluster("gone", 1), Generation(4), None)
        .await
        .unwrap();
    remove(&store, &"gone".parse().unwrap(), Generation(5), None)
        .await
        .unwrap();
    let touch = Touch {
        cluster: "prod".parse().unwrap(),
        last_connected_unix_ms: Some(NOW + 9),
        tokens: vec![("t1".to_owned(), NOW + 8)],
    };
    store.touch(&[touch]).await.unwrap();
    store.close().await;
    drop(store);

    let (_store, loaded) = Store::open(dsn, NOW).await.unwrap();
    assert_eq!(
        (loaded.hub_id, loaded.generation),
        (fresh.hub_id, Generation(5))
    );
    let [held] = &loaded.clusters[..] else {
        panic!("one cluster was saved")
    };
    assert_eq!((held.spec.clone(), held.epoch_floor), (saved.spec, 77));
    assert_eq!(held.last_connected_unix_ms, Some(NOW + 9));
    let [token] = &held.tokens[..] else {
        panic!("one token was saved")
    };
    assert_eq!(
        (token.id.as_str(), token.digest),
        ("t1", saved.tokens[0].digest)
    );
    assert_eq!(token.not_after_unix_ms, Some(NOW + 5_000));
    assert_eq!(token.last_used_unix_ms, Some(NOW + 8));
}

async fn a_change_that_does_not_follow_changes_nothing(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    for wrong in [1, 3] {
        let refused = save(&store, &cluster("a", 1), Generation(wrong), None)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), "store_damaged");
    }
    assert_eq!(store.generation().await.unwrap(), Generation(1));
    save(&store, &cluster("a", 1), Generation(2), None)
        .await
        .unwrap();
}

async fn two_clusters_never_share_a_token(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    let first = cluster("a", 1);
    save(&store, &first, Generation(2), None).await.unwrap();
    let second = Cluster {
        tokens: first.tokens.clone(),
        ..cluster("b", 0)
    };
    assert!(save(&store, &second, Generation(3), None).await.is_err());
    assert_eq!(store.generation().await.unwrap(), Generation(2));
}

async fn one_change_may_move_a_token_from_a_cluster_to_one_before_it(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    let (a, b) = (cluster("a", 1), cluster("b", 1));
    save(&store, &a, Generation(2), None).await.unwrap();
    save(&store, &b, Generation(3), None).await.unwrap();
    let swapped = [(&a, &b), (&b, &a)].map(|(to, from)| {
        Step::Put(Arc::new(Cluster {
            tokens: from.tokens.clone(),
            ..to.clone()
        }))
    });
    record(&store, &swapped, Generation(4), &[]).await.unwrap();
    store.close().await;
    drop(store);
    let (_store, loaded) = Store::open(dsn, NOW).await.unwrap();
    let digests = loaded.clusters.iter().map(|held| held.tokens[0].digest);
    let wanted = [b.tokens[0].digest, a.tokens[0].digest];
    assert_eq!(digests.collect::<Vec<_>>(), wanted);
}

async fn a_row_is_recorded_with_its_change_or_not_at_all(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    let prod = cluster("prod", 1);
    let row = entry("t0", NOW);
    save(&store, &prod, Generation(9), Some(&row))
        .await
        .unwrap_err();
    assert!(rows(&store).await.is_empty());
    save(&store, &prod, Generation(2), Some(&row))
        .await
        .unwrap();
    let gone = entry("gone", NOW);
    remove(&store, &prod.id, Generation(9), Some(&gone))
        .await
        .unwrap_err();
    assert_eq!(rows(&store).await, ["t0"]);
    remove(&store, &prod.id, Generation(3), Some(&gone))
        .await
        .unwrap();
    assert_eq!(rows(&store).await, ["gone", "t0"]);
}

async fn routes_and_personal_tokens_keep_their_order(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    let route = |id: &str, kind| Route {
        id: id.to_owned(),
        route: update::Route {
            service: ServiceName::new("pg").unwrap(),
            kind,
        },
        created_unix_ms: NOW,
    };
    let sni = |name: &str| SniPattern::new(name).unwrap();
    let mut held = cluster("prod", 1);
    held.routes = vec![
        route(
            "z",
            RouteKind::Tcp {
                addr: "127.0.0.1:1".into(),
            },
        ),
        route(
            "a",
            RouteKind::Sealed {
                sni: sni("x.test"),
                addr: None,
            },
        ),
        route(
            "m",
            RouteKind::Sealed {
                sni: sni("*.y.test"),
                addr: Some("[::1]:2".into()),
            },
        ),
    ];
    held.personal = ["z", "a"]
        .map(|id| Personal {
            token: PersonalToken {
                digest: Digest([id.as_bytes()[0]; 32]),
                id: id.into(),
                principal: "ana".into(),
                not_after_unix_ms: (id == "z").then_some(NOW + 1),
                services: vec!["*".into(), "pg".into()],
            },
            created_unix_ms: NOW,
        })
        .into();
    save(&store, &held, Generation(2), None).await.unwrap();
    save(&store, &held, Generation(3), None).await.unwrap();
    store.close().await;
    drop(store);
    let (_store, loaded) = Store::open(dsn, NOW).await.unwrap();
    let again = &loaded.clusters[0];
    assert_eq!(
        (&again.routes, &again.personal),
        (&held.routes, &held.personal)
    );
}

async fn the_license_is_kept_with_the_row_that_says_why(dsn: &Dsn) {
    let (store, loaded) = Store::open(dsn, NOW).await.unwrap();
    assert_eq!(loaded.license, LicenseRecord::default());
    let kept = LicenseRecord {
        token: Some("a.b.c".to_owned()),
        ladder: Ladder {
            seen_unix_ms: NOW,
            without_ms: 7,
        },
        last_success_unix_ms: Some(NOW - 7),
    };
    store
        .save_license(&LicenseRecord::default(), None)
        .await
        .unwrap();
    store
        .save_license(&kept, Some(&entry("license", NOW)))
        .await
        .unwrap();
    assert_eq!(rows(&store).await, ["license"]);
    store.close().await;
    drop(store);
    let (_store, loaded) = Store::open(dsn, NOW).await.unwrap();
    assert_eq!(loaded.license, kept);
}

async fn audit_rows_are_filtered_paged_and_pruned(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    for n in 0..30_u64 {
        store
            .append_audit(&entry(&format!("r{n}"), NOW + n))
            .await
            .unwrap();
    }
    let page = |filter: Filter| {
        let store = &store;
        async move {
            let (rows, total) = store.audit(&filter).await.unwrap();
            (
                rows.into_iter().map(|row| row.name).collect::<Vec<_>>(),
                total,
            )
        }
    };
    let first = Filter {
        limit: 2,
        ..Filter::default()
    };
    assert_eq!(
        page(first.clone()).await,
        (vec!["r29".into(), "r28".into()], 30)
    );
    let next = Filter {
        offset: 29,
        ..first.clone()
    };
    assert_eq!(page(next).await, (vec!["r0".into()], 30));
    let some = Filter {
        actor: Some("test".to_owned()),
        verb: Some("token_mint".to_owned()),
        outcome: Some("success".to_owned()),
        cluster: Some("prod".to_owned()),
        namespace: Some(String::new()),
        from_unix_ms: Some(NOW + 3),
        to_unix_ms: Some(NOW + 5),
        ..first.clone()
    };
    assert_eq!(
        page(some.clone()).await,
        (vec!["r4".into(), "r3".into()], 2)
    );
    for none in [
        Filter {
            actor: Some("x".into()),
            ..some.clone()
        },
        Filter {
            verb: Some("x".into()),
            ..some.clone()
        },
        Filter {
            name: Some("r9".into()),
            ..some.clone()
        },
        Filter {
            request_id: Some("x".into()),
            ..some
        },
    ] {
        assert_eq!(page(none).await.1, 0);
    }
    assert_eq!(store.prune_audit(Some(NOW + 28), None).await.unwrap(), 28);
    assert_eq!(
        store
            .prune_audit(Some(NOW + 28), Some(1 << 30))
            .await
            .unwrap(),
        0
    );
    assert_eq!(rows(&store).await, ["r29", "r28"]);
    assert_eq!(store.prune_audit(None, Some(1)).await.unwrap(), 2);
}

async fn texts_of_any_kind_come_back_as_they_were(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    let odd = "a'b\"c\\d\u{e9}\u{1f600}; DROP TABLE audit; -- $1 ?1 %s";
    let mut held = cluster("prod", 0);
    held.spec.name = odd.to_owned();
    save(&store, &held, Generation(2), Some(&entry(odd, NOW)))
        .await
        .unwrap();
    assert_eq!(rows(&store).await, [odd]);
    store.close().await;
    drop(store);
    let (_store, loaded) = Store::open(dsn, NOW).await.unwrap();
    assert_eq!(loaded.clusters[0].spec.name, odd);
}

async fn sessions_end_with_their_generation_and_the_newest_come_first(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    let end = |subject: &str, epoch| Step::End {
        subject: subject.to_owned(),
        epoch,
    };
    let steps = [end("ana", NOW), end("ben", NOW + 5)];
    record(&store, &steps, Generation(2), &[]).await.unwrap();
    let skipped = record(&store, &[end("eve", NOW)], Generation(9), &[]).await;
    assert!(skipped.is_err());
    record(&store, &[end("ana", NOW + 9)], Generation(3), &[])
        .await
        .unwrap();
    store.close().await;
    drop(store);
    let (store, loaded) = Store::open(dsn, NOW).await.unwrap();
    assert_eq!(loaded.generation, Generation(3));
    for (subject, epoch) in [("ana", NOW + 9), ("ben", NOW + 5), ("eve", 0)] {
        assert_eq!(
            store.session_epoch(subject).await.unwrap(),
            epoch,
            "{subject}"
        );
    }
    let since = |since| store.ended_sessions(since);
    let all = [("ana".to_owned(), NOW + 9), ("ben".to_owned(), NOW + 5)];
    assert_eq!(since(NOW).await.unwrap(), all);
    assert_eq!(since(NOW + 5).await.unwrap(), all[..1]);
    assert_eq!(since(NOW + 9).await.unwrap(), []);
}

async fn an_event_is_kept_once_however_often_it_comes(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    let id = EventId([5; 16]);
    let attempted = Record::Attempted(Attempted {
        id,
        time_unix_ms: NOW,
        request_id: "0190163d-8694-739b-aea5-966c26f8ad91".parse().unwrap(),
        verb: Verb::ExecOpen,
        actor: Actor {
            sub: "somebody\0".to_owned(),
            email: String::new(),
            groups: vec!["g".to_owned()],
        },
        transport: "tunnel".to_owned(),
        route: "GET /tunnel/prod/api/v1/namespaces/n/pods/p/exec".to_owned(),
        cluster: "prod".to_owned(),
        resource: Resource {
            version: "v1".to_owned(),
            resource: "pods/exec".to_owned(),
            namespace: "n".to_owned(),
            name: "p".to_owned(),
            ..Resource::default()
        },
    });
    let ended = |id, verb, stays_open, reason: &str| {
        Record::Ended(Ended {
            id,
            time_unix_ms: NOW + 1,
            verb,
            outcome: Outcome::Success,
            status: 101,
            reason: reason.to_owned(),
            to_service: 1,
            to_client: u64::MAX,
            duration_ms: 3,
            stays_open,
        })
    };
    let opened = ended(id, Verb::ExecOpen, true, "finished");
    let closed = ended(id, Verb::ExecClose, false, "finished");
    let first = [attempted.clone(), opened.clone()];
    assert_eq!(store.take_events(&first).await.unwrap().len(), 2);
    // A data plane that was killed sends again what it does not know to be here, and more.
    let again = [
        attempted,
        opened,
        closed,
        ended(id, Verb::ExecOpen, false, "unknown_end"),
    ];
    let new = store.take_events(&again).await.unwrap();
    assert_eq!(new.len(), 1);
    let closed = &new[0];
    assert_eq!(
        (closed.verb.as_str(), closed.phase),
        ("exec_close", Some(2))
    );
    assert_eq!(
        closed.actor_sub, "somebody\u{FFFD}",
        "as in the row of the attempt"
    );
    assert_eq!(closed.actor_groups, "[\"g\"]");
    assert_eq!(closed.resource, "pods/exec");
    assert_eq!((closed.status, closed.duration_ms), (Some(101), Some(3)));
    assert_eq!(closed.bytes_to_client, Some(i64::MAX));
    // The row of an attempt may have been pruned before its end comes.
    let orphan = ended(EventId([6; 16]), Verb::Apply, false, "finished");
    assert_eq!(store.take_events(&[orphan]).await.unwrap()[0].cluster, "");

    let filter = Filter {
        limit: 500,
        ..Filter::default()
    };
    let (rows, total) = store.audit(&filter).await.unwrap();
    assert_eq!(total, 4);
    let outcomes: Vec<_> = rows.iter().map(|row| row.outcome.as_str()).collect();
    assert_eq!(outcomes, ["success", "success", "success", "attempted"]);
    let first = rows.last().unwrap().seq;
    let since = store.audit_since(&filter, first).await.unwrap();
    let mut numbers: Vec<_> = since.iter().map(|row| row.seq).collect();
    assert!(numbers.is_sorted());
    numbers.reverse();
    let newest: Vec<_> = rows[..3].iter().map(|row| row.seq).collect();
    assert_eq!(numbers, newest);
    assert_eq!(store.audit_newest().await.unwrap(), rows[0].seq);
    let older = Filter {
        before: Some(rows[1].seq),
        limit: 1,
        ..Filter::default()
    };
    let (page, _) = store.audit(&older).await.unwrap();
    assert_eq!(page[0].seq, rows[2].seq);
}

async fn a_request_to_connect_is_kept_and_decided_once(dsn: &Dsn) {
    let (store, _) = Store::open(dsn, NOW).await.unwrap();
    let request = |id: &str, address: &str, created_unix_ms| ConnectRequest {
        id: id.to_owned(),
        secret: Digest([7; 32]),
        code: "BCDF-GHJK".to_owned(),
        asked: Asked::new("prod", "0.1.0", "a \"host\"").unwrap(),
        address: address.to_owned(),
        created_unix_ms,
        expires_unix_ms: created_unix_ms + 1_000,
        stage: Stage::Pending,
    };
    let asked = request("a", "2001:db8::1", NOW);
    let most = (2, 3);
    assert_eq!(
        store.add_connect_request(&asked, most).await.unwrap(),
        (1, 1)
    );
    assert_eq!(
        store.connect_request("a").await.unwrap(),
        Some(asked.clone())
    );
    let neighbour = request("b", "2001:db8::2", NOW);
    assert_eq!(
        store.add_connect_request(&neighbour, most).await.unwrap(),
        (2, 2)
    );
    let third = request("c", "2001:db8::3", NOW);
    assert_eq!(
        store.add_connect_request(&third, most).await.unwrap(),
        (3, 3)
    );
    assert_eq!(
        store.connect_request("c").await.unwrap(),
        None,
        "over the limit"
    );

    let put = |next: &ConnectRequest, before: &Stage, generation| {
        let step = Step::Decide {
            request: Box::new(next.clone()),
            before: before.clone(),
        };
        let store = &store;
        async move { record(store, &[step], Generation(generation), &[]).await }
    };
    let approve = Decision::Approve("prod".parse().unwrap());
    let approved = asked.decide(approve, "root", NOW).unwrap();
    put(&approved, &Stage::Pending, 2).await.unwrap();
    assert_eq!(
        store.connect_request("a").await.unwrap(),
        Some(approved.clone())
    );
    let fetched = approved.consume("t1", NOW).unwrap();
    put(&fetched, &approved.stage, 3).await.unwrap();
    assert_eq!(
        store.connect_request("a").await.unwrap(),
        Some(fetched.clone())
    );
    assert!(put(&fetched, &approved.stage, 4).await.is_err(), "once");
    assert_eq!(store.generation().await.unwrap(), Generation(3));
    let ids = |requests: Vec<ConnectRequest>| -> Vec<String> {
        requests.into_iter().map(|request| request.id).collect()
    };
    assert_eq!(ids(store.connect_requests(NOW).await.unwrap()), ["b"]);
    let denied = neighbour.decide(Decision::Deny, "root", NOW).unwrap();
    put(&denied, &Stage::Pending, 4).await.unwrap();
    assert_eq!(store.connect_request("b").await.unwrap(), Some(denied));

    // What is long over goes with the next one.
    let later = request("d", "192.0.2.1", NOW + KEPT_MS + FETCH_MS_MIN);
    assert_eq!(
        store.add_connect_request(&later, most).await.unwrap(),
        (1, 1)
    );
    assert_eq!(store.connect_request("a").await.unwrap(), None);
    assert_eq!(
        ids(store.connect_requests(later.created_unix_ms).await.unwrap()),
        ["d"]
    );
}

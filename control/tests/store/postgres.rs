//! What PostgreSQL does beyond the suite: TLS as asked for, several control processes,
//! a crash of the server, and a copy of a SQLite store.

use std::sync::Arc;
use std::time::Duration;

use culvert_control::audit::{Actor, Cause, Filter};
use culvert_control::cluster::Spec;
use culvert_control::connect::{Asked, Decision};
use culvert_control::hub::{Fetched, Hub, HubError};
use culvert_control::metrics::Metrics;
use culvert_control::store::migrate::migrate;
use culvert_control::store::{Dsn, Store};
use culvert_control::token;
use culvert_net::crypto::SigningKey;
use culvert_net::tls::dev::DevCa;
use culvert_proto::id::{ClusterId, Generation};
use culvert_rpc::Hub as _;
use sqlx::Connection as _;

use super::server::Server;
use super::{NOW, cluster, conformance, entry, rows, save};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn sqlite_passes_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    conformance::all(async |name: &str| {
        let path = dir.path().join(name);
        Dsn::parse(path.to_str().unwrap()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn postgres_passes_the_suite() {
    let Some(server) = Server::start().await else {
        return;
    };
    conformance::all(async |name: &str| server.database(name).await).await;
    sslmode_is_respected(&server).await;
    a_newer_schema_is_refused(&server).await;
}

async fn sslmode_is_respected(server: &Server) {
    server.database("tls").await;
    server
        .say("CREATE ROLE ana LOGIN PASSWORD 'p w'; ALTER DATABASE tls OWNER TO ana")
        .await;
    let (ip, own) = (&server.ip, server.file("ca.pem"));
    let stranger = server.file("stranger.pem");
    std::fs::write(&stranger, DevCa::new("stranger").unwrap().pem()).unwrap();
    let dsn = |password: &str, mode: &str, ca: Option<&std::path::Path>| {
        let ca = ca.map_or(String::new(), |path| {
            format!("&sslrootcert={}", path.display())
        });
        let text = format!("postgres://ana:{password}@{ip}:5432/tls?sslmode={mode}{ca}");
        Dsn::parse(&text).unwrap()
    };
    for (password, mode, ca, code) in [
        ("p%20w", "disable", None, Some("store_unreachable")),
        ("p%20w", "require", None, None),
        ("p%20w", "prefer", None, None),
        ("p%20w", "verify-ca", Some(&*own), None),
        ("p%20w", "verify-full", Some(&*own), None),
        (
            "p%20w",
            "verify-full",
            Some(&*stranger),
            Some("store_unreachable"),
        ),
        ("p%20w", "verify-full", None, Some("store_unreachable")),
        ("wrong", "require", None, Some("store_unreachable")),
    ] {
        let opened = Store::open(&dsn(password, mode, ca), NOW).await;
        let seen = opened.as_ref().err().map(|why| why.code());
        let said = opened
            .as_ref()
            .err()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert_eq!(seen, code, "sslmode={mode} {ca:?}: {said}");
        assert!(!said.contains("p w") && !said.contains("p%20w"), "{said}");
        if let Ok((store, _)) = opened {
            store.close().await;
        }
    }
}

async fn a_newer_schema_is_refused(server: &Server) {
    let dsn = server.database("newer").await;
    let (store, _) = Store::open(&dsn, NOW).await.unwrap();
    store.close().await;
    let mut connection = sqlx::PgConnection::connect_with(
        &sqlx::postgres::PgConnectOptions::new_without_pgpass()
            .socket(server.file(""))
            .username("postgres")
            .database("newer"),
    )
    .await
    .unwrap();
    sqlx::raw_sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', true, '', 0); UPDATE hub SET written_by = '7.8.9'",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let said = Store::open(&dsn, NOW).await.err().unwrap();
    assert_eq!(said.code(), "store_newer");
    assert!(said.to_string().contains("culvert 7.8.9"), "{said}");
}

pub fn cause() -> Cause {
    Cause {
        actor: Actor {
            sub: "test".to_owned(),
            email: String::new(),
            groups: Vec::new(),
        },
        request_id: String::new(),
        route: "test".to_owned(),
        transport: "unix",
    }
}

pub async fn hub(dsn: &Dsn) -> Arc<Hub> {
    let (store, loaded) = Store::open(dsn, NOW).await.unwrap();
    let key = SigningKey::from_seed(&[7; 32]).unwrap();
    let metrics = Arc::new(Metrics::new());
    let hub = Arc::new(Hub::new(store, loaded, key, metrics, Box::new(|| NOW)));
    let kept = hub.clone();
    tokio::spawn(async move { kept.follow_store().await });
    hub
}

pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let all = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, all).await.is_ok(), "{what}");
}

pub fn id(text: &str) -> ClusterId {
    text.parse().unwrap()
}

/// An agent asks one process and is approved at the other; sixteen who fetch at both get one token.
async fn one_token_whoever_is_asked(a: &Arc<Hub>, b: &Arc<Hub>) {
    let asked = Asked::new("", "", "").unwrap();
    let (request, _) = a.ask_to_connect(asked, "192.0.2.1", 60_000).await.unwrap();
    let approve = Decision::Approve(id("by-device"));
    let approved = b
        .decide_connect_request(&cause(), &request.id, approve, Some(Spec::default()))
        .await
        .unwrap();
    assert_eq!(approved.standing(NOW).as_str(), "approved");
    let fetches: Vec<_> = (0..16)
        .map(|n| {
            let hub = if n % 2 == 0 { a } else { b }.clone();
            let id = request.id.clone();
            tokio::spawn(async move { hub.fetch_token(&cause(), &id).await })
        })
        .collect();
    let mut tokens = Vec::new();
    for fetch in fetches {
        if let Fetched::Token { text, .. } =
            fetch.await.unwrap().unwrap_or_else(|why| panic!("{why}"))
        {
            tokens.push(token::digest(text.expose()));
        }
    }
    let [digest] = &tokens[..] else {
        panic!("{} tokens", tokens.len())
    };
    until("both know the token", || {
        [a, b].iter().all(|hub| hub.owner(digest).is_some())
    })
    .await;
    assert_eq!(b.cluster(&id("by-device")).unwrap().tokens.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_on_one_database_decide_in_turn_and_all_publish() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let dsn = server.database("shared").await;
    let (a, b) = (hub(&dsn).await, hub(&dsn).await);
    assert_eq!((a.id(), a.store_kind()), (b.id(), "postgres"));
    a.create(&cause(), id("of-a"), Spec::default())
        .await
        .unwrap();
    until("b hears of it", || b.cluster(&id("of-a")).is_ok()).await;
    assert_eq!(b.feed().generation(), a.generation(), "b publishes it too");
    let minted = b.mint(&cause(), &id("of-a"), None).await.unwrap();
    let digest = token::digest(minted.text.expose());
    until("a knows the token", || a.owner(&digest).is_some()).await;
    let taken = b.create(&cause(), id("of-a"), Spec::default()).await;
    assert!(matches!(taken, Err(HubError::Exists(_))));

    // Both decide as fast as they can; nobody overtakes, nothing is lost or doubled.
    const EACH: u64 = 60;
    let before = a.generation().0;
    let flood = |hub: Arc<Hub>, name: &'static str| {
        tokio::spawn(async move {
            for n in 0..EACH {
                let id = id(&format!("{name}{n}"));
                hub.create(&cause(), id, Spec::default()).await.unwrap();
            }
        })
    };
    let (one, other) = (flood(a.clone(), "a"), flood(b.clone(), "b"));
    one.await.unwrap();
    other.await.unwrap();
    let wanted = Generation(before + 2 * EACH);
    until("both are there", || {
        a.generation() == wanted && b.generation() == wanted
    })
    .await;
    assert_eq!(a.clusters().len(), b.clusters().len());
    assert_eq!(a.clusters().len() as u64, 1 + 2 * EACH);
    let filter = Filter {
        verb: Some("cluster_create".to_owned()),
        limit: 1,
        ..Filter::default()
    };
    assert_eq!(b.audit(&filter).await.unwrap().1, 1 + 2 * EACH);
    b.remove(&cause(), &id("of-a")).await.unwrap();
    until("a hears of the end", || a.cluster(&id("of-a")).is_err()).await;
    assert!(a.owner(&digest).is_none());

    // Who signs out at one is out at the other.
    a.end_sessions(&cause(), "ana").await.unwrap();
    until("b hears who signed out", || {
        b.generation() == a.generation()
    })
    .await;
    let epoch = b.session_epoch("ana").await.unwrap();
    assert!(epoch > 0 && epoch == a.session_epoch("ana").await.unwrap());

    one_token_whoever_is_asked(&a, &b).await;

    // The server dies; what was answered is there, and both go on.
    let killed = tokio::spawn({
        let hub = a.clone();
        async move {
            let mut done = Vec::new();
            for n in 0..2_000 {
                let id = id(&format!("k{n}"));
                if hub
                    .create(&cause(), id.clone(), Spec::default())
                    .await
                    .is_ok()
                {
                    done.push(id);
                } else if done.len() < n {
                    break;
                }
            }
            done
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.crash().await;
    let done = killed.await.unwrap();
    assert!(!done.is_empty());
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while let Err(why) = b.create(&cause(), id("after"), Spec::default()).await {
        assert!(matches!(why, HubError::Store(_)), "{why}");
        assert!(tokio::time::Instant::now() < deadline, "{why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for id in &done {
        assert!(b.cluster(id).is_ok(), "{id} was answered and is lost");
    }
    until("a hears again", || a.cluster(&id("after")).is_ok()).await;
    until("both agree", || a.generation() == b.generation()).await;
    assert_eq!(a.clusters().len(), b.clusters().len());
}

#[tokio::test]
async fn a_sqlite_store_is_copied_whole_once_and_stays_as_it_is() {
    let Some(server) = Server::start().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let from = Dsn::at(dir.path());
    let (store, fresh) = Store::open(&from, NOW).await.unwrap();
    for n in 2..40_u64 {
        let held = cluster(&format!("c{n}"), 3);
        save(
            &store,
            &held,
            Generation(n),
            Some(&entry(&format!("r{n}"), NOW + n)),
        )
        .await
        .unwrap();
    }
    for n in 0..1_500 {
        store
            .append_audit(&entry(&format!("more{n}"), NOW + 100))
            .await
            .unwrap();
    }
    // A gap in the numbers, as pruning leaves it.
    store.prune_audit(Some(NOW + 3), None).await.unwrap();
    let to = server.database("copy").await;
    // A process that holds the source is in the way.
    let held = migrate(&from, &to, NOW).await.err().unwrap();
    assert!(
        held.to_string()
            .contains("another culvert-control holds it"),
        "{held}"
    );
    store.close().await;
    drop(store);

    let copied = migrate(&from, &to, NOW).await.unwrap();
    assert_eq!(
        (copied.hub_id.as_str(), copied.generation),
        (&*fresh.hub_id, 39)
    );
    let again = migrate(&from, &to, NOW).await.err().unwrap();
    assert!(again.to_string().contains("holds a hub already"), "{again}");
    let back = migrate(&to, &from, NOW).await.err().unwrap();
    assert!(back.to_string().contains("not the other way"), "{back}");

    let (old, before) = Store::open(&from, NOW).await.unwrap();
    let (new, after) = Store::open(&to, NOW).await.unwrap();
    assert_eq!(
        (before.hub_id, before.generation),
        (after.hub_id, after.generation)
    );
    assert_eq!(before.clusters.len(), after.clusters.len());
    for (one, other) in before.clusters.iter().zip(&after.clusters) {
        assert_eq!((&one.id, &one.spec), (&other.id, &other.spec));
        let digests = |held: &culvert_control::cluster::Cluster| {
            held.tokens
                .iter()
                .map(|token| token.digest)
                .collect::<Vec<_>>()
        };
        assert_eq!(digests(one), digests(other));
    }
    assert_eq!(rows(&old).await, rows(&new).await);
    let any = Filter {
        limit: 1,
        ..Filter::default()
    };
    assert_eq!(copied.audit_rows, new.audit(&any).await.unwrap().1);
    assert!(copied.audit_rows > 1_500);
    // The next row follows the copied ones.
    new.append_audit(&entry("next", NOW)).await.unwrap();
    assert_eq!(rows(&new).await[0], "next");
    save(&new, &cluster("later", 1), Generation(40), None)
        .await
        .unwrap();
}

//! What data planes see of decisions: over a real link, with a clock of the test's own.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use culvert_control::audit::{Actor, Cause, Entry, Filter, Outcome, Verb};
use culvert_control::cluster::Spec;
use culvert_control::hub::{Hub, HubError};
use culvert_control::metrics::Metrics;
use culvert_control::registry::file::Listing;
use culvert_control::store::{Dsn, Store};
use culvert_control::token;
use culvert_net::crypto::SigningKey;
use culvert_proto::id::{ClusterId, Epoch, InstanceId};
use culvert_proto::update::{Report, RotatedFact, SessionFact, State, TokenUse};
use culvert_rpc::{
    Access, Address, Event, LinkConfig, PeerCheck, Subscription, Trust, bind_unix, serve,
};
use tokio::time::timeout;

const NOW: u64 = 1_763_683_200_000;
const DAY: u64 = 86_400_000;
const DEADLINE: Duration = Duration::from_secs(20);

struct Site {
    dir: tempfile::TempDir,
    hub: Arc<Hub>,
    clock: Arc<AtomicU64>,
}

fn cause() -> Cause {
    let actor = Actor {
        sub: "test".to_owned(),
        email: String::new(),
        groups: Vec::new(),
    };
    Cause {
        actor,
        request_id: String::new(),
        route: "test".to_owned(),
        transport: "unix",
    }
}

async fn hub(dir: &Path, clock: &Arc<AtomicU64>) -> Hub {
    let (store, loaded) = Store::open(&Dsn::at(dir), clock.load(Ordering::SeqCst))
        .await
        .unwrap();
    let key = SigningKey::load_or_generate(&dir.join("signing.key")).unwrap();
    let clock = clock.clone();
    let now = Box::new(move || clock.load(Ordering::SeqCst));
    Hub::new(store, loaded, key, Arc::new(Metrics::new()), now)
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicU64::new(NOW));
        let hub = Arc::new(hub(dir.path(), &clock).await);
        let listener = bind_unix(&dir.path().join("state.sock"), 0o600).unwrap();
        let access = Access::Unix {
            listener,
            check: PeerCheck::default(),
        };
        tokio::spawn(serve(hub.clone(), access, std::future::pending()));
        let kept = hub.clone();
        tokio::spawn(async move { kept.upkeep().await });
        Self { dir, hub, clock }
    }

    fn pass(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    fn subscribe(&self) -> Mirror {
        let link = Subscription::start(LinkConfig {
            address: Address::Unix(self.dir.path().join("state.sock")),
            peer: PeerCheck::default(),
            tls: None,
            trust: Trust::Key(culvert_rpc::Hub::feed(&*self.hub).verifying_key()),
            held: None,
            outbox: None,
        });
        Mirror {
            link,
            state: State::default(),
            offered: None,
        }
    }
}

/// A data plane's view.
struct Mirror {
    link: Subscription,
    state: State,
    offered: Option<culvert_proto::update::Rotation>,
}

impl Mirror {
    /// Follows until `done` holds; every signature on the way is checked.
    async fn until(&mut self, what: &str, key: &Hub, done: impl Fn(&Self) -> bool) {
        let follow = async {
            while !done(self) {
                match self.link.next().await {
                    Event::Snapshot { snapshot, .. } => {
                        self.state.replace(snapshot).unwrap();
                    }
                    Event::Update { update, signed } => {
                        self.state.apply(&update).unwrap();
                        let key = culvert_rpc::Hub::feed(key).verifying_key();
                        assert!(key.verify(&signed.body, &signed.signature));
                    }
                    Event::Rotation(rotation) => self.offered = Some(rotation),
                    Event::Connected | Event::Disconnected { .. } => {}
                }
            }
        };
        timeout(DEADLINE, follow)
            .await
            .unwrap_or_else(|_| panic!("{what} in time"));
    }

    fn tokens(&self, id: &str) -> usize {
        self.state
            .clusters
            .get(id)
            .map_or(0, |cluster| cluster.tokens.len())
    }
}

fn session(instance: u8, protocol: &str) -> SessionFact {
    let id = "prod".parse().unwrap();
    SessionFact {
        protocol: protocol.into(),
        token_id: "t1".into(),
        last_seen_unix_ms: NOW,
        ..SessionFact::new(id, InstanceId([instance; 16]), Epoch(NOW + 500))
    }
}

fn report(sessions: Vec<SessionFact>) -> Report {
    Report {
        dataplane_id: "dp".into(),
        sessions,
        ..Report::default()
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let polled = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, polled)
        .await
        .unwrap_or_else(|_| panic!("{what} in time"));
}

#[tokio::test]
async fn decisions_reach_every_data_plane_and_outlive_control() {
    let site = Site::new().await;
    let (mut a, mut b) = (site.subscribe(), site.subscribe());
    let id: ClusterId = "prod".parse().unwrap();
    site.hub
        .create(&cause(), id.clone(), Spec::default())
        .await
        .unwrap();
    let minted = site.hub.mint(&cause(), &id, None).await.unwrap();
    let rotated = site.hub.rotate(&cause(), &id, DAY).await.unwrap();
    let owner = |text: &str| {
        let cluster = site.hub.owner(&token::digest(text));
        cluster.map(|cluster| cluster.id.to_string())
    };
    let (old, new) = (minted.text.expose(), rotated.text.expose());
    assert_eq!(
        (owner(old), owner(new)),
        (Some("prod".into()), Some("prod".into()))
    );
    assert_eq!((owner(""), owner(&old[1..])), (None, None));
    for mirror in [&mut a, &mut b] {
        mirror
            .until("both tokens", &site.hub, |mirror| {
                mirror.tokens("prod") == 2
            })
            .await;
        let cluster = &mirror.state.clusters["prod"];
        assert_eq!(
            cluster.tokens[0].digest,
            token::digest(minted.text.expose())
        );
        assert_eq!(cluster.tokens[0].not_after_unix_ms, Some(NOW + DAY));
        assert_eq!(
            cluster.tokens[1].digest,
            token::digest(rotated.text.expose())
        );
    }
    site.pass(DAY);
    assert_eq!((owner(old), owner(new)), (None, Some("prod".into())));
    a.until("the expiry", &site.hub, |mirror| mirror.tokens("prod") == 1)
        .await;
    a.link
        .reporter()
        .report(&report(vec![session(1, "culvert/1")]));
    until("the report", || {
        site.hub.fleet(|fleet| fleet.highest_epoch(&id) > 0)
    })
    .await;
    let revoked = site.hub.revoke(&cause(), &id).await.unwrap();
    assert!(revoked.epoch_floor > NOW + 500);
    assert_eq!(owner(new), None);
    b.until("the revocation", &site.hub, |mirror| {
        mirror.tokens("prod") == 0
    })
    .await;
    assert_eq!(
        b.state.clusters["prod"].epoch_floor,
        Epoch(revoked.epoch_floor)
    );
    let generation = site.hub.generation();

    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(site.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let again = hub(copy.path(), &site.clock).await;
    assert_eq!(again.generation(), generation);
    assert_eq!(again.cluster(&id).unwrap().epoch_floor, revoked.epoch_floor);
}

#[tokio::test]
async fn a_delivered_token_starts_its_overlap_once_every_agent_stored_it() {
    let site = Site::new().await;
    let mut dataplane = site.subscribe();
    let id: ClusterId = "prod".parse().unwrap();
    site.hub
        .create(&cause(), id.clone(), Spec::default())
        .await
        .unwrap();
    let old = site.hub.mint(&cause(), &id, None).await.unwrap();
    let nobody = site.hub.rotate_through_tunnel(&cause(), &id, DAY).await;
    assert!(matches!(nobody, Err(HubError::NobodyToDeliverTo(_))));
    let sessions = || {
        vec![
            session(1, "culvert/1"),
            session(2, "culvert/1"),
            session(3, "radar"),
        ]
    };
    let reporter = dataplane.link.reporter();
    dataplane
        .until("the state", &site.hub, |mirror| mirror.tokens("prod") == 1)
        .await;
    reporter.report(&report(sessions()));
    until("the agents", || {
        site.hub.fleet(|fleet| fleet.connected(&id).count()) == 3
    })
    .await;

    site.hub
        .rotate_through_tunnel(&cause(), &id, DAY)
        .await
        .unwrap();
    dataplane
        .until("the offer", &site.hub, |mirror| mirror.offered.is_some())
        .await;
    let digest = token::digest(dataplane.offered.as_ref().unwrap().token.expose());
    assert!(
        dataplane.state.clusters["prod"]
            .tokens
            .iter()
            .any(|token| token.digest == digest)
    );
    let on_disk = std::fs::read(site.dir.path().join("control.db-wal")).unwrap();
    let text = dataplane
        .offered
        .as_ref()
        .unwrap()
        .token
        .expose()
        .as_bytes()
        .to_vec();
    assert!(
        !on_disk.windows(text.len()).any(|window| window == text),
        "the text is on disk"
    );

    let stored = |instance: u8| RotatedFact {
        cluster: "prod".parse().unwrap(),
        instance: InstanceId([instance; 16]),
        digest,
    };
    site.pass(3 * DAY / 4);
    reporter.report(&Report {
        rotated: vec![stored(1)],
        ..report(sessions())
    });
    let used = TokenUse {
        cluster: id.clone(),
        token_id: old.id.as_str().into(),
        last_used_unix_ms: NOW + 7,
    };
    reporter.report(&Report {
        token_uses: vec![used],
        ..report(sessions())
    });
    until("the use", || {
        site.hub
            .fleet(|fleet| fleet.last_used(&id, &old.id))
            .is_some()
    })
    .await;
    // One of two able agents has it: the old token has no end yet.
    let of_old = |hub: &Hub| {
        let cluster = hub.cluster(&id).unwrap();
        cluster
            .tokens
            .iter()
            .find(|token| token.id == old.id)
            .unwrap()
            .not_after_unix_ms
    };
    assert_eq!(of_old(&site.hub), None);
    reporter.report(&Report {
        rotated: vec![stored(2)],
        ..report(sessions())
    });
    until("the overlap", || of_old(&site.hub).is_some()).await;
    assert_eq!(of_old(&site.hub), Some(NOW + 3 * DAY / 4 + DAY));
    let mut late = site.subscribe();
    late.until("the state", &site.hub, |mirror| mirror.tokens("prod") == 2)
        .await;
    site.hub.revoke(&cause(), &id).await.unwrap();
    late.until("the revocation", &site.hub, |mirror| {
        mirror.tokens("prod") == 0
    })
    .await;
    assert!(late.offered.is_none(), "a delivered token is offered again");
}

#[tokio::test]
async fn routes_and_personal_tokens_reach_data_planes_expire_and_outlive_control() {
    let (site, who) = (Site::new().await, cause());
    let mut dataplane = site.subscribe();
    let (id, other): (ClusterId, ClusterId) = ("prod".parse().unwrap(), "two".parse().unwrap());
    for id in [&id, &other] {
        let made = site.hub.create(&who, id.clone(), Spec::default());
        made.await.unwrap();
    }
    let pg = culvert_config::clusters::route("pg", Some("127.0.0.1:15432"), None, None).unwrap();
    let own = Some("127.0.0.1:9443");
    let web = culvert_config::clusters::route("web", None, Some("*.example.com"), own).unwrap();
    let made = site.hub.add_route(&who, &id, pg.clone()).await.unwrap();
    site.hub.add_route(&who, &other, web.clone()).await.unwrap();
    let taken = site.hub.add_route(&who, &other, pg.clone()).await;
    assert!(taken.err().unwrap().to_string().contains(&made.id));
    let grants = culvert_control::registry::personal::grants(
        "ana",
        &["prod/pg".to_owned(), "two/*".to_owned()],
    );
    let grants = grants.unwrap();
    let short = site.hub.mint_personal(&who, "ana", &grants, DAY);
    let short = short.await.unwrap();
    let long = site.hub.mint_personal(&who, "ana", &grants, 2 * DAY);
    let long = long.await.unwrap();
    let personal = |mirror: &Mirror, id: &str| {
        let cluster = mirror.state.clusters.get(id);
        cluster.map_or(0, |cluster| cluster.personal_tokens.len())
    };
    dataplane
        .until("both tokens", &site.hub, |mirror| {
            personal(mirror, "two") == 2
        })
        .await;
    let prod = dataplane.state.clusters["prod"].clone();
    assert_eq!(prod.routes, [pg]);
    assert_eq!(dataplane.state.clusters["two"].routes, [web]);
    let token = &prod.personal_tokens[0];
    assert_eq!(token.digest, token::digest(short.text.expose()));
    assert_eq!(
        (&*token.principal, token.not_after_unix_ms),
        ("ana", Some(NOW + DAY))
    );
    assert!(token.reaches("pg") && !token.reaches("web"));

    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(site.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let again = hub(copy.path(), &site.clock).await;
    assert_eq!(again.generation(), site.hub.generation());
    assert_eq!(again.cluster(&id).unwrap().to_state(), *prod);
    assert_eq!(again.personal_tokens(), site.hub.personal_tokens());

    site.pass(DAY);
    dataplane
        .until("the expiry", &site.hub, |mirror| {
            personal(mirror, "prod") == 1 && personal(mirror, "two") == 1
        })
        .await;
    let started = std::time::Instant::now();
    // The answer itself waits for reports, which this data plane does not make.
    let revoked = site.hub.revoke_personal(&who, &long.id);
    let seen = async {
        let gone = |mirror: &Mirror| personal(mirror, "prod") + personal(mirror, "two") == 0;
        dataplane.until("the revocation", &site.hub, gone).await;
        started.elapsed()
    };
    let (revoked, took) = tokio::join!(revoked, seen);
    revoked.unwrap();
    assert!(took < Duration::from_secs(1), "revoked after {took:?}");
    site.hub.remove_route(&who, &id, &made.id).await.unwrap();
    site.hub.remove(&who, &other).await.unwrap();
    dataplane
        .until("the removals", &site.hub, |mirror| {
            mirror.state.clusters["prod"].routes.is_empty()
                && !mirror.state.clusters.contains_key("two")
        })
        .await;
    // What the cluster held is free again.
    let freed = culvert_config::clusters::route("web", None, Some("*.example.com"), own);
    site.hub.add_route(&who, &id, freed.unwrap()).await.unwrap();
}

#[tokio::test]
async fn what_the_file_grants_the_api_does_not_take() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new().await;
    let dir = site.dir.path();
    let (path, secret) = (dir.join("clusters.yaml"), dir.join("ana"));
    let (text, _) = token::mint_personal();
    std::fs::write(&secret, text.expose()).unwrap();
    std::fs::write(
        &path,
        format!(
            "- id: filed\n  routes: [{{service: pg, tcp: '127.0.0.1:15432'}}]\n\
             \x20 personalTokens: [{{principal: ana, services: [pg], tokenFile: {}}}]\n",
            secret.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = Listing::read(&path).err().unwrap().to_string();
    assert!(
        exposed.contains("tokenFile") && exposed.contains("0644"),
        "{exposed}"
    );
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let listing = Listing::read(&path).unwrap();
    site.hub.apply_file(listing).await.unwrap();
    let id: ClusterId = "filed".parse().unwrap();
    let filed = site.hub.cluster(&id).unwrap();
    let personal = &filed.personal[0].token;
    assert_eq!(personal.digest, token::digest(text.expose()));
    let route = &filed.routes[0].id;
    for refused in [
        site.hub.remove_route(&cause(), &id, route).await,
        site.hub.revoke_personal(&cause(), &personal.id).await,
    ] {
        let said = refused.err().unwrap();
        assert!(matches!(said, HubError::OwnedByFile { .. }), "{said}");
    }
    let other = culvert_config::clusters::route("pg", Some("127.0.0.1:2"), None, None).unwrap();
    let made = site.hub.add_route(&cause(), &id, other).await.unwrap();
    site.hub
        .remove_route(&cause(), &id, &made.id)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_memory_and_disk_agreed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(AtomicU64::new(NOW));
    let hub = hub(dir.path(), &clock).await;
    let (who, mut cut) = (cause(), 0);
    for turns in 0..120_u32 {
        let id: ClusterId = format!("c{turns}").parse().unwrap();
        let gone = async {
            for _ in 0..turns * 8 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            made = hub.create(&who, id, Spec::default()) => drop(made.unwrap()),
            () = gone => cut += 1,
        }
    }
    assert!(cut > 0, "every call was seen to its end");
    let last: ClusterId = "last".parse().unwrap();
    hub.create(&cause(), last.clone(), Spec::default())
        .await
        .unwrap();
    let (generation, known) = (hub.generation(), hub.clusters().len());
    hub.close().await;
    drop(hub);
    let again = self::hub(dir.path(), &clock).await;
    assert_eq!(
        (again.generation(), again.clusters().len()),
        (generation, known)
    );
}

#[tokio::test]
async fn the_row_of_a_failed_change_waits_for_the_store() {
    use sqlx::Connection as _;
    let site = Site::new().await;
    let path = site.dir.path().join("control.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut other = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let id: ClusterId = "prod".parse().unwrap();
    let failed = site.hub.create(&cause(), id.clone(), Spec::default()).await;
    assert!(matches!(failed, Err(HubError::Store(_))));
    let row = cause().did(Verb::ClusterCreate, &id, "prod", NOW);
    let row = Entry {
        outcome: Outcome::Failure,
        ..row
    };
    site.hub.refused(row).await;
    held.rollback().await.unwrap();
    let filter = Filter {
        limit: 10,
        ..Filter::default()
    };
    let written = async {
        loop {
            let (rows, _) = site.hub.audit(&filter).await.unwrap();
            if let [row] = &rows[..] {
                return row.outcome.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // A round that failed meanwhile rests for 30 s.
    let outcome = timeout(3 * DEADLINE, written).await.unwrap();
    assert_eq!(outcome, "failure");
}

#[tokio::test]
async fn the_registry_file_wins_is_followed_and_outlives_control() {
    let site = Site::new().await;
    let path = site.dir.path().join("clusters.yaml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    let (id, own): (ClusterId, ClusterId) = ("filed".parse().unwrap(), "own".parse().unwrap());
    site.hub
        .create(&cause(), own.clone(), Spec::default())
        .await
        .unwrap();
    write("- id: filed\n  token: 0123456789abcdef\n  name: From the file\n");
    site.hub
        .apply_file(Listing::read(&path).unwrap())
        .await
        .unwrap();
    let (kept, followed) = (site.hub.clone(), path.clone());
    tokio::spawn(async move { kept.follow_file(&followed).await });
    let owner = |text: &str| {
        site.hub
            .owner(&token::digest(text))
            .map(|it| it.id.to_string())
    };
    assert_eq!(owner("0123456789abcdef"), Some("filed".into()));

    let who = cause();
    let renamed = site
        .hub
        .update(&who, &id, |spec| spec.name = "x".to_owned());
    let said = renamed.await.err().unwrap().to_string();
    assert!(
        said.contains("name") && said.contains("clusters.yaml"),
        "{said}"
    );
    let limited = site.hub.update(&who, &id, |spec| spec.requests_max = 3);
    assert_eq!(
        limited.await.unwrap().spec.requests_max,
        3,
        "the file does not say"
    );
    let minted = site.hub.mint(&cause(), &id, None).await.unwrap();
    let filed = site.hub.cluster(&id).unwrap().tokens[0].id.clone();
    for refused in [
        site.hub.remove(&cause(), &id).await.err(),
        site.hub.rotate(&cause(), &id, DAY).await.err(),
        site.hub.revoke(&cause(), &id).await.err(),
        site.hub.remove_token(&cause(), &id, &filed).await.err(),
    ] {
        assert!(
            matches!(refused, Some(HubError::OwnedByFile { .. })),
            "{refused:?}"
        );
    }

    let mut dataplane = site.subscribe();
    write("- id: filed\n  token: fedcba9876543210\n  name: Second\n- id: third\n");
    dataplane
        .until("the change", &site.hub, |mirror| {
            mirror.state.clusters.contains_key("third")
        })
        .await;
    assert_eq!(
        dataplane.state.clusters["filed"].name.as_deref(),
        Some("Second")
    );
    assert_eq!(
        (owner("0123456789abcdef"), owner("fedcba9876543210")),
        (None, Some("filed".into()))
    );
    assert_eq!(owner(minted.text.expose()), Some("filed".into()));

    // A file that is wrong changes nothing, and a later right one is taken.
    let generation = site.hub.generation();
    write("- id: filed\n- id: UPPER\n");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(site.hub.generation(), generation);
    write("- id: third\n");
    dataplane
        .until("the removal", &site.hub, |mirror| {
            !mirror.state.clusters.contains_key("filed")
        })
        .await;
    assert!(
        dataplane.state.clusters.contains_key("own"),
        "the API made it"
    );

    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(site.dir.path()).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            std::fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
        }
    }
    let again = hub(copy.path(), &site.clock).await;
    assert!(again.cluster(&"third".parse().unwrap()).unwrap().from_file);
    write("- id: other\n");
    again
        .apply_file(Listing::read(&path).unwrap())
        .await
        .unwrap();
    let known: Vec<_> = again.clusters().keys().map(ToString::to_string).collect();
    assert_eq!(known, ["other", "own"]);
    let filter = Filter {
        actor: Some("registry-file".to_owned()),
        limit: 100,
        ..Filter::default()
    };
    let (rows, _) = again.audit(&filter).await.unwrap();
    let told = rows
        .iter()
        .rev()
        .map(|row| format!("{} {}", row.verb, row.cluster));
    let wanted = [
        "cluster_create filed",
        "cluster_update filed",
        "cluster_create third",
        "cluster_delete filed",
        "cluster_delete third",
        "cluster_create other",
    ];
    assert_eq!(told.collect::<Vec<_>>(), wanted);
}

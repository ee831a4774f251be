//! The link over real sockets: order, resumption, trust.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_net::crypto::SigningKey;
use culvert_net::listen::{ListenOptions, Listener};
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{
    ClientAuth, ClientTls, ClientTlsOptions, MinVersion, Roots, ServerTls, ServerTlsOptions,
};
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::token::TokenText;
use culvert_proto::update::{Change, ClusterState, Report, Rotation, State, Update};
use culvert_rpc::{
    Access, Address, Event, Feed, Held, Hub, LinkConfig, LinkId, NotCertified, NotTaken, PeerCheck,
    Subscription, Trust, bind_unix, serve,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

struct Control {
    feed: Feed,
    heard: Mutex<Vec<(Generation, Option<Report>)>>,
    open: Mutex<Vec<LinkId>>,
}

impl Hub for Control {
    fn feed(&self) -> &Feed {
        &self.feed
    }
    fn opened(&self, link: LinkId, _: &str) {
        self.open.lock().push(link);
    }
    fn report(&self, _: LinkId, generation: Generation, report: Option<Report>) {
        self.heard.lock().push((generation, report));
    }
    fn closed(&self, link: LinkId) {
        self.open.lock().retain(|open| *open != link);
    }
    async fn audit(&self, _: &[bytes::Bytes]) -> Result<(), NotTaken> {
        Ok(())
    }
    async fn certify(
        &self,
        cluster: Option<ClusterId>,
        csr: &[u8],
    ) -> Result<Vec<u8>, NotCertified> {
        match cluster.as_ref().map(ClusterId::as_str) {
            Some("refused") => Err(NotCertified::Refused("no".to_owned())),
            Some("later") => Err(NotCertified::Later("soon".to_owned())),
            Some(id) => Ok([csr, id.as_bytes()].concat()),
            None => Ok(csr.to_vec()),
        }
    }
}

impl Control {
    fn new(key: SigningKey, generation: u64) -> Arc<Self> {
        let generation = Generation(generation);
        let state = State {
            generation,
            hub_id: "hub".into(),
            ..State::default()
        };
        let feed = Feed::new(key, state);
        Arc::new(Self {
            feed,
            heard: Mutex::default(),
            open: Mutex::default(),
        })
    }

    fn step(&self) {
        let generation = Generation(self.feed.generation().0 + 1);
        let cluster = ClusterState::new(format!("c{}", generation.0).parse().unwrap());
        let changes = vec![Change::Upsert(Arc::new(cluster))];
        self.feed
            .publish(&Update {
                generation,
                issued_unix_ms: 0,
                changes,
            })
            .unwrap();
    }

    async fn serve(self: &Arc<Self>, socket: &Path) -> JoinHandle<()> {
        let mut bound = None;
        // An aborted server gives its socket back a moment later.
        until("the socket is free", || {
            bound = bind_unix(socket, 0o600).ok();
            bound.is_some()
        })
        .await;
        let access = Access::Unix {
            listener: bound.unwrap(),
            check: PeerCheck::default(),
        };
        let hub = self.clone();
        tokio::spawn(async move { serve(hub, access, std::future::pending()).await.unwrap() })
    }
}

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("state.sock")
    }

    /// The same key at each call.
    fn key(&self) -> SigningKey {
        SigningKey::load_or_generate(&self.dir.path().join("key")).unwrap()
    }

    fn subscribe(&self, trust: &str, held: Option<u64>) -> Subscription {
        let held = held.map(|generation| Held {
            hub_id: "hub".to_owned(),
            generation: Generation(generation),
        });
        Subscription::start(LinkConfig {
            address: Address::Unix(self.socket()),
            peer: PeerCheck::default(),
            tls: None,
            trust: Trust::File(self.dir.path().join(trust)),
            held,
            outbox: None,
        })
    }
}

async fn next(subscription: &mut Subscription) -> Event {
    timeout(DEADLINE, subscription.next())
        .await
        .expect("an event in time")
}

/// The generation and kind of the next state.
async fn state(subscription: &mut Subscription) -> (u64, &'static str) {
    loop {
        match next(subscription).await {
            Event::Snapshot { snapshot, .. } => return (snapshot.generation.0, "snapshot"),
            Event::Update { update, .. } => return (update.generation.0, "update"),
            Event::Rotation(_) => return (0, "rotation"),
            Event::Connected | Event::Disconnected { .. } => {}
        }
    }
}

async fn refusal(subscription: &mut Subscription) -> String {
    loop {
        match next(subscription).await {
            Event::Disconnected { why } => return why,
            Event::Connected => {}
            _ => panic!("state was taken"),
        }
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
async fn two_data_planes_see_the_same_history_and_report() {
    let site = Site::new();
    let control = Control::new(site.key(), 1);
    let _server = control.serve(&site.socket()).await;
    let (mut a, mut b) = (site.subscribe("a", None), site.subscribe("b", Some(1)));
    assert_eq!(state(&mut a).await, (1, "snapshot"));
    until("both subscribed", || control.open.lock().len() == 2).await;
    for generation in 2..=5 {
        control.step();
        assert_eq!(state(&mut a).await, (generation, "update"));
        assert_eq!(state(&mut b).await, (generation, "update"));
    }
    a.reporter().report(&Report {
        dataplane_id: "dp-a".into(),
        ..Report::default()
    });
    let is_a = |report: &Report| &*report.dataplane_id == "dp-a";
    until("the report", || {
        control
            .heard
            .lock()
            .iter()
            .any(|(_, report)| report.as_ref().is_some_and(is_a))
    })
    .await;
    until("both acknowledged", || {
        control
            .heard
            .lock()
            .iter()
            .filter(|(seen, _)| seen.0 == 5)
            .count()
            >= 2
    })
    .await;
    drop(a);
    until("the hub hears of it", || control.open.lock().len() == 1).await;
}

#[tokio::test]
async fn after_a_restart_of_control_only_the_news_is_sent() {
    let site = Site::new();
    let control = Control::new(site.key(), 1);
    let server = control.serve(&site.socket()).await;
    let mut dataplane = site.subscribe("a", None);
    assert_eq!(state(&mut dataplane).await, (1, "snapshot"));
    server.abort();
    let why = refusal(&mut dataplane).await;
    assert!(!why.is_empty());
    control.step();
    control.step();
    let _server = control.serve(&site.socket()).await;
    assert_eq!(state(&mut dataplane).await, (2, "update"));
    assert_eq!(state(&mut dataplane).await, (3, "update"));
}

#[tokio::test]
async fn a_data_plane_that_cannot_apply_an_update_gets_a_snapshot() {
    let site = Site::new();
    let control = Control::new(site.key(), 1);
    let _server = control.serve(&site.socket()).await;
    let mut dataplane = site.subscribe("a", Some(1));
    until("subscribed", || control.open.lock().len() == 1).await;
    control.step();
    assert_eq!(state(&mut dataplane).await, (2, "update"));
    dataplane.reporter().need_snapshot();
    assert_eq!(state(&mut dataplane).await, (2, "snapshot"));
}

#[tokio::test]
async fn another_key_or_an_older_state_is_refused_and_said_so() {
    let site = Site::new();
    let control = Control::new(site.key(), 7);
    let server = control.serve(&site.socket()).await;
    let mut dataplane = site.subscribe("a", None);
    assert_eq!(state(&mut dataplane).await, (7, "snapshot"));
    server.abort();
    refusal(&mut dataplane).await;

    let restored = Control::new(site.key(), 6).serve(&site.socket()).await;
    let mut late = site.subscribe("a", Some(7));
    let why = refusal(&mut late).await;
    assert!(
        why.contains("generation 6 is older than generation 7"),
        "{why}"
    );
    restored.abort();

    let stranger = Control::new(SigningKey::generate().unwrap(), 9);
    let _server = stranger.serve(&site.socket()).await;
    let mut again = site.subscribe("a", Some(7));
    let why = loop {
        let why = refusal(&mut again).await;
        if why.contains("signs with key") {
            break why;
        }
    };
    assert!(why.contains("remove the trust file"), "{why}");
}

#[tokio::test]
async fn a_token_reaches_each_data_plane_until_it_is_withdrawn() {
    let site = Site::new();
    let control = Control::new(site.key(), 1);
    let _server = control.serve(&site.socket()).await;
    let rotation = Rotation {
        cluster: "c1".parse().unwrap(),
        token_id: "t".into(),
        not_before_unix_s: 5,
        token: TokenText::new("rhc_0123456789abcdef").unwrap(),
    };
    control.feed.offer(&rotation).unwrap();
    let mut early = site.subscribe("a", None);
    assert_eq!(state(&mut early).await, (1, "snapshot"));
    let Event::Rotation(got) = next(&mut early).await else {
        panic!("a token was expected")
    };
    assert_eq!(got.token.expose(), "rhc_0123456789abcdef");
    control.feed.withdraw(&rotation.cluster);
    control.step();
    let mut late = site.subscribe("a", Some(1));
    assert_eq!(state(&mut late).await, (2, "update"));
    assert_eq!(state(&mut early).await, (2, "update"));
}

#[tokio::test]
async fn tcp_needs_a_certificate_of_the_right_authority() {
    let site = Site::new();
    let dir = site.dir.path();
    let (ours, other) = (DevCa::new("ours").unwrap(), DevCa::new("other").unwrap());
    let ca = ours.write(dir).unwrap();
    let (cert, key) = ours
        .server(&["localhost"])
        .unwrap()
        .write(dir, "server")
        .unwrap();
    let tls = ServerTls::load(ServerTlsOptions {
        cert,
        key,
        client_auth: Some(ClientAuth {
            ca: ca.clone(),
            required: true,
            rsa: false,
        }),
        alpn: vec![b"h2".to_vec()],
        min_version: MinVersion::Tls13,
    });
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), ListenOptions::default());
    let listener = listener.unwrap().start().unwrap();
    let port = listener.local_addr().unwrap().port();
    let access = Access::Tls {
        listener,
        tls: Arc::new(tls.unwrap()),
    };
    let control = Control::new(site.key(), 3);
    tokio::spawn(serve(control.clone(), access, std::future::pending()));

    let subscribe = |name: &str, authority: &DevCa| {
        let identity = authority.client(name).unwrap().write(dir, name).unwrap();
        let tls = ClientTls::load(ClientTlsOptions {
            roots: Roots::File(ca.clone()),
            identity: Some(identity),
            alpn: vec![b"h2".to_vec()],
            min_version: MinVersion::Tls13,
        });
        Subscription::start(LinkConfig {
            address: Address::Tls {
                host: "localhost".to_owned(),
                port,
            },
            peer: PeerCheck::default(),
            tls: Some(Arc::new(tls.unwrap())),
            trust: Trust::Key(control.feed.verifying_key()),
            held: None,
            outbox: None,
        })
    };
    assert_eq!(state(&mut subscribe("dp", &ours)).await, (3, "snapshot"));
    refusal(&mut subscribe("stranger", &other)).await;
}

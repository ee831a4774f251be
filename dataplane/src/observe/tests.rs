//! Clusters that come and go, with the kernel's rows where the host permits an observer.

mod scrape;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use culvert_engine::legs::Leg;
use culvert_observe::{ClusterIndex, Leg as Tagged, Observer, Reason, Settings, Tier};
use culvert_proto::id::ClusterId;
use culvert_proto::update::{ClusterState, State};

use super::socket::Identity;
use super::{Seen, Watched};
use crate::config::Config;
use crate::plane::Plane;
use crate::table::Source;

/// More than have labels and rows at once.
const CLUSTERS: u64 = 1_100;
/// One in so many has a connection: its row rests for two minutes after it.
const WITH_SOCKET: u64 = 100;
const BYTES: usize = 1_000;

/// With the kernel's programs where the test may load them: root must be able to.
fn observer(test: &str) -> Observer {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP {test}, in the kernel: needs root");
        return Observer::absent(Reason::Disabled);
    }
    let settings = Settings {
        pairs_max: 16,
        ..Settings::default()
    };
    let observer = culvert_observe::start(&settings).unwrap();
    assert_eq!(observer.tier(), Tier::Skb, "{}", observer.report());
    observer
}

fn plane(observer: Observer) -> Arc<Plane> {
    let clusters = r#"[{"id":"a","token":"0123456789abcdef"}]"#;
    let argv = ["culvert-dataplane", "--clusters", clusters].map(std::ffi::OsString::from);
    let config = Config::read(argv, &|_| None).unwrap();
    let (engine, _) = crate::engine::start(config.engine, config.io_engine, 1).unwrap();
    Plane::new(config, engine, observer, 16)
}

/// The next table has this cluster alone.
fn adopt(plane: &Plane, generation: u64, name: &str) {
    let id: ClusterId = name.parse().unwrap();
    let mut state = State::default();
    state.generation.0 = generation;
    state
        .clusters
        .insert(id.clone(), Arc::new(ClusterState::new(id)));
    plane.adopt(&state, Source::Control).unwrap();
}

/// An accepted connection of a cluster that takes bytes.
fn connection(plane: &Plane, seen: &Seen) -> (TcpStream, TcpStream, Watched) {
    let sight = &plane.metrics.sight;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    sight.observer.listener(listener.as_fd(), Tagged::Client);
    let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut near, _) = listener.accept().unwrap();
    let mut watched = Watched::accepted(sight, &near, Leg::Client);
    let identity = Identity {
        seen: seen.clone(),
        leg: Leg::Client,
        conn: None,
    };
    watched.becomes(near.as_fd(), &identity);
    let mut bytes = [7; BYTES];
    far.write_all(&bytes).unwrap();
    near.read_exact(&mut bytes).unwrap();
    near.write_all(&bytes).unwrap();
    far.read_exact(&mut bytes).unwrap();
    (near, far, watched)
}

#[test]
fn clusters_that_come_and_go_leave_their_places_to_others() {
    let test = "clusters_that_come_and_go_leave_their_places_to_others";
    let plane = plane(observer(test));
    let is_seen = plane.metrics.sight.observer.tier() == Tier::Skb;
    let mut text = String::new();
    for number in 0..CLUSTERS {
        let name = format!("c{number}");
        adopt(&plane, number + 1, &name);
        let cluster = plane.table.load().get(&name).cloned().unwrap();
        let seen = &cluster.metrics.seen;
        assert_eq!(
            (&*seen.named.label, &*seen.named.histogram),
            (&*name, &*name)
        );
        assert_ne!(seen.index, ClusterIndex::OVERFLOW, "{name}");
        cluster.metrics.bytes_to_service.inc_by(number);
        if number % WITH_SOCKET == WITH_SOCKET - 1 {
            let _open = connection(&plane, seen);
            text = plane.metrics.registry.render();
            let labels = format!("cluster=\"{name}\",direction=\"rx\",leg=\"client\"");
            let counted = format!("culvert_leg_bytes_total{{{labels}}} {BYTES}\n");
            assert!(!is_seen || text.contains(&counted), "{counted} in\n{text}");
        }
    }
    let relayed = format!(
        "culvert_relay_bytes_total{{cluster=\"c{last}\",datapath=\"copy\",direction=\"to_service\"}} {last}",
        last = CLUSTERS - 1
    );
    assert!(text.contains(&relayed), "{text}");
    assert!(text.contains("culvert_metrics_overflow_total{family=\"cluster\"} 0"));
    assert!(
        !text.contains("_overflow\""),
        "nobody shared a place:\n{text}"
    );
    let named = |line: &&str| line.contains("cluster=\"c") && !line.contains("c1099");
    let left: Vec<_> = text.lines().filter(named).collect();
    assert!(
        left.iter().all(|line| line.contains("\"c1098\"")),
        "{left:#?}"
    );
}

#[test]
fn a_cluster_that_left_the_table_keeps_its_place_while_a_socket_is_open() {
    let plane = plane(Observer::absent(Reason::Disabled));
    adopt(&plane, 1, "stays");
    let seen = plane
        .table
        .load()
        .get("stays")
        .unwrap()
        .metrics
        .seen
        .clone();
    let (near, far, mut watched) = connection(&plane, &seen);
    drop(seen);
    adopt(&plane, 2, "other");
    adopt(&plane, 3, "other");
    let open = "culvert_connections{cluster=\"stays\",leg=\"client\"} 1";
    assert!(plane.metrics.registry.render().contains(open));
    watched.ended(near.as_fd(), culvert_proto::close::CloseReason::Finished);
    drop((near, far, watched));
    plane.refresh_metrics();
    assert!(!plane.metrics.registry.render().contains("\"stays\""));
}

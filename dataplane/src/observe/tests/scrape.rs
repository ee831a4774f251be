//! What a scrape costs with a thousand clusters and ten thousand live connections, for a release build:
//! `cargo nextest run --locked --release -p culvert-dataplane --run-ignored only --no-capture -E 'test(a_scrape_of_)'`

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use culvert_engine::legs::Leg;
use culvert_observe::{Leg as Tagged, Offsets, Slot};
use culvert_proto::close::CloseReason;
use http::Method;
use rustix::time::{ClockId, clock_gettime};

use super::super::socket::Identity;
use super::super::{Seen, Watched};
use super::observer;
use crate::config::MetricsConfig;
use crate::metrics::Metrics;

const CLUSTERS: usize = 1_020;
/// Two connections each.
const RELAYS: usize = 5_000;
/// What a scrape may take of a CPU, in a release build.
const CPU_MAX: Duration = Duration::from_millis(5);
const SCRAPES: usize = 21;
/// More than the caches hold: between two scrapes a data plane does other things.
const OTHER_BYTES: usize = 64 << 20;

/// A client, the two sockets of the relay, a service.
struct Relay {
    client: Option<TcpStream>,
    sockets: [TcpStream; 2],
    service: Option<TcpStream>,
    watched: [Watched; 2],
    _slot: Option<Slot>,
}

fn connected(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (far, listener.accept().unwrap().0)
}

impl Relay {
    fn new(metrics: &Metrics, seen: &Seen, listeners: &[TcpListener; 2]) -> Self {
        let sight = &metrics.sight;
        let (client, near) = connected(&listeners[0]);
        let (service, far) = connected(&listeners[1]);
        let conn = sight.number();
        let mut watched = [(&near, Leg::Client), (&far, Leg::Data)].map(|(socket, leg)| {
            let mut watched = Watched::accepted(sight, socket, leg);
            let identity = Identity {
                seen: seen.clone(),
                leg,
                conn: Some(conn),
            };
            watched.becomes(socket.as_fd(), &identity);
            watched
        });
        let tags = watched.each_mut().map(|watched| watched.tag());
        let sockets = [near.as_fd(), far.as_fd()];
        let slot = sight.observer.join(sockets, tags, [Offsets::default(); 2]);
        let mut relay = Self {
            client: Some(client),
            sockets: [near, far],
            service: Some(service),
            watched,
            _slot: slot,
        };
        relay.pass();
        relay
    }

    /// A question and its answer, while the peers are there.
    fn pass(&mut self) {
        let (Some(client), Some(service)) = (&mut self.client, &mut self.service) else {
            return;
        };
        let mut bytes = [7; 200];
        let mut hop = |from: &mut TcpStream, to: &mut TcpStream| {
            from.write_all(&bytes).unwrap();
            to.read_exact(&mut bytes).unwrap();
        };
        let [near, far] = &mut self.sockets;
        hop(client, near);
        hop(far, service);
        hop(service, far);
        hop(near, client);
    }

    /// Only the relay's own descriptors stay: a process has no more than it may.
    fn without_peers(mut self) -> Self {
        (self.client, self.service) = (None, None);
        self
    }
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap(),
    )
}

/// As much as clusters with traffic in both modes tell.
fn uses(metrics: &Metrics, number: usize) -> Arc<crate::metrics::ClusterMetrics> {
    let cluster = metrics.cluster(&format!("cluster-{number}"));
    for status in [200, 404] {
        cluster.count(&Method::GET, status);
    }
    cluster.seconds.observe(0.01);
    cluster.streams_opened.inc();
    cluster.spliced_to_service.inc_by(200);
    cluster.spliced_to_client.inc_by(200);
    cluster
}

#[test]
#[ignore = "measures; for a release build on a quiet machine"]
fn a_scrape_of_a_thousand_clusters_and_ten_thousand_connections_is_cheap() {
    let observer =
        observer("a_scrape_of_a_thousand_clusters_and_ten_thousand_connections_is_cheap");
    let metrics = Metrics::new(observer, &MetricsConfig::default());
    let clusters: Vec<_> = (0..CLUSTERS).map(|number| uses(&metrics, number)).collect();
    let listeners = [Tagged::Client, Tagged::Data].map(|leg| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        metrics.sight.observer.listener(listener.as_fd(), leg);
        listener
    });
    let mut relays: Vec<_> = (0..RELAYS)
        .map(|number| {
            let relay = Relay::new(&metrics, &clusters[number % CLUSTERS].seen, &listeners);
            match number < SCRAPES {
                true => relay,
                false => relay.without_peers(),
            }
        })
        .collect();
    // Some ended before.
    for cluster in &clusters {
        let mut ended = Relay::new(&metrics, &cluster.seen, &listeners);
        for (watched, socket) in ended.watched.iter_mut().zip(&ended.sockets) {
            watched.ended(socket.as_fd(), CloseReason::Finished);
        }
    }
    let (mut out, mut sink) = connected(&TcpListener::bind("127.0.0.1:0").unwrap());
    let reader = std::thread::spawn(move || std::io::copy(&mut sink, &mut std::io::sink()));
    let mut other = vec![0_u8; OTHER_BYTES];
    let mut taken = Vec::new();
    for relay in relays.iter_mut().take(SCRAPES) {
        relay.pass();
        other
            .iter_mut()
            .step_by(64)
            .for_each(|byte| *byte = byte.wrapping_add(1));
        let began = cpu();
        let text = metrics.registry.render();
        let rendered = cpu();
        out.write_all(text.as_bytes()).unwrap();
        taken.push((rendered - began, cpu() - rendered, text));
    }
    drop(out);
    reader.join().unwrap().unwrap();
    taken.sort_by_key(|(render, ..)| *render);
    let (render, send, text) = &taken[SCRAPES / 2];
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    println!(
        "{CLUSTERS} clusters, {RELAYS} relays of two connections: {series} series, {} bytes; CPU of a scrape, median of {SCRAPES}: {render:?} to make it, {send:?} to send it",
        text.len()
    );
    assert!(text.contains("culvert_connections{cluster=\"cluster-7\",leg=\"client\"} "));
    if !cfg!(debug_assertions) {
        assert!(*render < CPU_MAX, "{render:?} of CPU");
    }
}

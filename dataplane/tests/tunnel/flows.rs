//! Port forwards, over every kind of leg.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_net::tls::Roots;
use culvert_proto::hello::Caps;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, Introduction};
use crate::client::connect;
use crate::hub::{Hub, TOKEN, metric, soon, until};
use crate::private::{Private, pattern};
use crate::secure::Pki;

/// A free port of an address that no other test process uses, so that it stays free.
pub fn free() -> SocketAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let own = [127, high | 64, middle, low];
    let probe = std::net::TcpListener::bind((Ipv4Addr::from(own), 0)).unwrap();
    probe.local_addr().unwrap()
}

/// Cluster `dev` with a port forward for each service.
pub fn routed(services: &[(&str, SocketAddr)]) -> String {
    let route =
        |(service, at): &(&str, SocketAddr)| format!(r#"{{"service":"{service}","tcp":"{at}"}}"#);
    let routes: Vec<_> = services.iter().map(route).collect();
    let routes = routes.join(",");
    format!(r#"[{{"id":"dev","token":"{TOKEN}","routes":[{routes}]}}]"#)
}

pub const TRUSTING: &[&str] = &["--allow-plaintext-data-channels"];

pub fn introduction(private: &Arc<Private>, caps: Caps) -> Introduction {
    Introduction {
        caps: caps.with(Caps::DRAIN),
        private: Some(private.clone()),
        ..Introduction::default()
    }
}

pub fn channels() -> Caps {
    Caps::CHANNEL.with(Caps::PLAIN_CHANNEL)
}

/// The listener follows the table in the background.
pub async fn reach(at: SocketAddr) -> TcpStream {
    until("the route listens", || async {
        TcpStream::connect(at).await.ok()
    })
    .await
}

pub async fn parked(hub: &Hub, form: &str, count: f64) {
    let line = format!("culvert_channels_parked{{form=\"{form}\"}} ");
    until("channels wait", || async {
        (metric(hub.at.internal, &line).await == Some(count)).then_some(())
    })
    .await;
}

pub async fn opened(hub: &Hub, mode: &str, datapath: &str) -> f64 {
    let line = format!("culvert_flows_total{{datapath=\"{datapath}\",mode=\"{mode}\"}} ");
    metric(hub.at.internal, &line).await.unwrap_or(0.0)
}

pub async fn echoes(stream: &mut TcpStream, data: &[u8]) {
    let (mut read, mut write) = stream.split();
    let mut back = vec![0; data.len()];
    let (wrote, got) = tokio::join!(
        write.write_all(data),
        soon("the echo", read.read_exact(&mut back))
    );
    wrote.unwrap();
    got.unwrap();
    assert!(back == data, "the echo differs");
}

async fn rest(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut got = Vec::new();
    soon("the end", stream.read_to_end(&mut got)).await?;
    Ok(got)
}

/// Everything a flow has to do, whatever carries it.
async fn behaves(ports: &Ports, private: &Private) {
    // A server that speaks first, to a client that waits.
    let mut stream = reach(ports.banner).await;
    let mut banner = [0; 11];
    soon("the banner", stream.read_exact(&mut banner))
        .await
        .unwrap();
    assert_eq!(&banner, b"220 ready\r\n");
    echoes(&mut stream, &pattern(3 << 20)).await;
    drop(stream);
    // Bytes that are there before the flow is, in order with those that follow.
    let mut stream = connect(ports.echo).await;
    echoes(&mut stream, &pattern(100_000)).await;
    drop(stream);
    // Half-close by the client, then by the service.
    let mut stream = connect(ports.count).await;
    stream.write_all(&pattern(300_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap(), b"300000");
    let mut stream = connect(ports.once).await;
    let got = rest(&mut stream).await.unwrap();
    assert!(got == pattern(1 << 20));
    stream.write_all(b"still heard").await.unwrap();
    drop(stream);
    until("the services saw clean ends", || async {
        let ends = private.ends.lock();
        (ends.len() >= 4 && ends.iter().filter(|it| *it == "clean").count() >= 3).then_some(())
    })
    .await;
    // Breaks travel as breaks.
    let mut stream = connect(ports.reset).await;
    stream.write_all(b"x").await.unwrap();
    let broken = rest(&mut stream).await;
    assert_eq!(
        broken.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    private.ends.lock().clear();
    let mut stream = connect(ports.echo).await;
    echoes(&mut stream, b"until now").await;
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
    let seen = until("the service sees the break", || async {
        private.ends.lock().first().cloned()
    })
    .await;
    assert_ne!(seen, "clean");
    // What the agent cannot reach is a break too, at once.
    let mut stream = connect(ports.refused).await;
    assert!(rest(&mut stream).await.is_err());
}

struct Ports {
    banner: SocketAddr,
    echo: SocketAddr,
    count: SocketAddr,
    once: SocketAddr,
    reset: SocketAddr,
    refused: SocketAddr,
}

fn ports() -> (Ports, String) {
    let ports = Ports {
        banner: free(),
        echo: free(),
        count: free(),
        once: free(),
        reset: free(),
        refused: free(),
    };
    let clusters = routed(&[
        ("banner", ports.banner),
        ("echo", ports.echo),
        ("count", ports.count),
        ("once", ports.once),
        ("reset", ports.reset),
        ("refused", ports.refused),
    ]);
    (ports, clusters)
}

#[tokio::test]
async fn over_streams_of_the_carrier() {
    let (ports, clusters) = ports();
    let hub = Hub::with(&clusters, &[]);
    let private = Private::new(hub.at.public, false);
    let _agent = Agent::with(hub.at.public, introduction(&private, Caps::DRAIN)).await;
    let granted = private.granted.lock().clone();
    assert!(granted.iter().any(|name| &**name == "echo"), "{granted:?}");
    behaves(&ports, &private).await;
    assert!(opened(&hub, "tcp", "stream").await >= 5.0);
    let line = "culvert_flow_fallbacks_total{reason=\"no_capability\"} ";
    assert!(metric(hub.at.internal, line).await.unwrap() >= 5.0);
    let header = private.headers.lock()[0].clone();
    assert!(header.request_id.is_some() && header.client_addr.is_some());
    assert_eq!(header.dial_deadline_ms, Some(30_000));
}

#[tokio::test]
async fn over_plain_channels_the_engine_splices() {
    let (ports, clusters) = ports();
    for backend in ["epoll", "auto"] {
        let engine = format!("--io-engine={backend}");
        let hub = Hub::with(&clusters, &[TRUSTING[0], &engine]);
        let private = Private::new(hub.at.public, true);
        let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
        parked(&hub, "plain", 2.0).await;
        behaves(&ports, &private).await;
        assert!(opened(&hub, "tcp", "splice").await >= 6.0);
        assert!(private.carried.lock().contains(&"parked"));
        assert!(!private.carried.lock().contains(&"stream"));
        let line = "culvert_engine_spliced_bytes_total ";
        assert!(metric(hub.at.internal, line).await.unwrap() > 1_000_000.0);
        let line = "culvert_relay_bytes_total{cluster=\"dev\",datapath=\"splice\",direction=\"to_client\"} ";
        assert!(metric(hub.at.internal, line).await.unwrap() > 4_000_000.0);
        assert_eq!(
            metric(hub.at.internal, "culvert_flows{mode=\"tcp\"} ").await,
            Some(0.0)
        );
    }
}

#[tokio::test]
async fn over_channels_with_tls() {
    let (ports, clusters) = ports();
    let pki = Pki::new();
    let hub = pki.hub_with(&clusters, false);
    let tls = pki.client(false, "http/1.1");
    let private = Private::over(hub.at.public, true, Some(tls));
    let intro = Introduction {
        scheme: "wss",
        roots: Roots::File(pki.path("ca.crt")),
        ..introduction(&private, channels())
    };
    let _agent = Agent::with(hub.at.public, intro).await;
    let line = "culvert_channels_parked{form=\"tls\"} ";
    until("channels wait", || async {
        let client = pki.client(false, "http/1.1");
        let text = crate::secure::get_over(&client, hub.at.internal, "/metrics").await;
        let found = text.lines().find_map(|found| found.strip_prefix(line))?;
        (found.trim() == "2").then_some(())
    })
    .await;
    behaves(&ports, &private).await;
    let client = pki.client(false, "http/1.1");
    let text = crate::secure::get_over(&client, hub.at.internal, "/metrics").await;
    let line = "culvert_flows_total{datapath=\"copy\",mode=\"tcp\"} ";
    let copied = text.lines().find_map(|found| found.strip_prefix(line));
    assert!(copied.unwrap().parse::<f64>().unwrap() >= 6.0);
}

#[tokio::test]
async fn a_burst_is_offered_what_does_not_wait_and_loses_nothing() {
    let at = free();
    let hub = Hub::with(&routed(&[("echo", at)]), TRUSTING);
    let private = Private::new(hub.at.public, true);
    let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    parked(&hub, "plain", 2.0).await;
    drop(reach(at).await);
    let flows: Vec<_> = (0..100)
        .map(|number: u32| {
            tokio::spawn(async move {
                let mut stream = connect(at).await;
                echoes(&mut stream, &number.to_be_bytes().repeat(5_000)).await;
            })
        })
        .collect();
    for flow in flows {
        soon("a flow", flow).await.unwrap();
    }
    let carried = private.carried.lock().clone();
    assert!(carried.contains(&"offered") && carried.contains(&"parked"));
    assert!(opened(&hub, "tcp", "splice").await >= 100.0);
    // And more wait now than before.
    until("the pool grew", || async {
        let line = "culvert_channels_parked{form=\"plain\"} ";
        (metric(hub.at.internal, line).await? > 2.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_opens_no_channel_answers_on_the_stream() {
    let at = free();
    let hub = Hub::with(&routed(&[("echo", at)]), TRUSTING);
    let private = Private::new(hub.at.public, false);
    let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    let mut stream = reach(at).await;
    echoes(&mut stream, &pattern(200_000)).await;
    assert_eq!(*private.carried.lock(), ["stream"]);
    assert!(private.headers.lock()[0].offer.is_some());
    let line = "culvert_flow_fallbacks_total{reason=\"channel_failed\"} ";
    assert_eq!(metric(hub.at.internal, line).await, Some(1.0));
}

#[tokio::test]
async fn without_an_agent_a_client_is_refused_at_once() {
    let at = free();
    let hub = Hub::with(&routed(&[("echo", at)]), &[]);
    let mut stream = reach(at).await;
    assert!(rest(&mut stream).await.is_err(), "RST, not an empty answer");
    let line = "culvert_flows_refused_total{mode=\"tcp\",reason=\"agent_absent\"} ";
    assert!(metric(hub.at.internal, line).await.unwrap() >= 1.0);
}

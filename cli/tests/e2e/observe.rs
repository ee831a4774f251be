//! The eBPF observer over real connections: what the kernel measured against what the
//! applications did, delays that are put in one place at a time, and hosts that permit less.

mod bytes;
mod closes;
mod delays;
mod endpoint;
mod lives;
mod pair;
mod prometheus;
mod tiers;
mod trace;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_perf::testbed::{HUB_FOR_CLIENT, Namespace, SITE, Spawn, Testbed, wait_for};
use serde_json::Value;

use crate::client;
use crate::hub::{PUBLIC, START_MAX, binary, internal, ready};
use crate::routed::{PLAINTEXT, agent, at_hub, bed, tcp, wait_listening, write_routes};
use crate::watched::Watched;

/// The port of the forward, and of the service.
const PORT: u16 = 15_000;
const SERVICE: u16 = 5_000;
/// The admin listener, which the observer does not watch.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
/// What `ip netns exec` hides: the process's own cgroup.
const WITH_CGROUP: &str = "mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";

/// Capabilities that a data plane is started with.
#[derive(Clone, Copy)]
enum Rights {
    /// Root's.
    All,
    /// These alone.
    Only(&'static [&'static str]),
}

/// A hub whose observer runs, an agent, one forward.
struct Observed {
    agent: Watched,
    dataplane: Watched,
    bed: Testbed,
}

/// What a scrape says.
struct Scrape(String);

impl Observed {
    fn start(flags: &[&str]) -> Result<Self> {
        Self::with(bed()?, Rights::All, flags, None)
    }

    /// `hub` is where the agent dials, if that is another address.
    fn with(bed: Testbed, rights: Rights, flags: &[&str], hub: Option<String>) -> Result<Self> {
        let clusters = write_routes(&bed, &[tcp("raw", PORT)])?;
        let flags = [&["--clusters", &clusters, PLAINTEXT][..], flags].concat();
        let dataplane = dataplane(&bed, "dataplane", rights, &flags)?;
        let service = format!("raw={SITE}:{SERVICE}");
        let mut agent = agent(&bed.site, &["--service", &service, PLAINTEXT]);
        agent.server = hub.unwrap_or(agent.server);
        let agent = agent.start(&bed)?;
        wait_listening(&bed, PORT)?;
        Ok(Self {
            agent,
            dataplane,
            bed,
        })
    }

    /// What the data plane exposes now.
    fn scrape(&self) -> Result<Scrape> {
        scrape(&self.bed)
    }

    fn connections(&self, query: &str) -> Result<Value> {
        let answer = client::get(&self.bed.hub, ADMIN, &format!("/connections?{query}"))?;
        anyhow::ensure!(answer.status == 200, "{query}: {}", answer.text());
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// A connection of a client that has echoed once.
    fn connect(&self) -> Result<TcpStream> {
        wait_for("an echo", START_MAX, || {
            self.bed.client.run(|| {
                let mut stream = TcpStream::connect(at_hub(PORT)).ok()?;
                stream.set_nodelay(true).ok()?;
                stream
                    .set_read_timeout(Some(Duration::from_secs(10)))
                    .ok()?;
                stream.write_all(b"first").ok()?;
                let mut answer = [0; 5];
                stream.read_exact(&mut answer).ok()?;
                (&answer == b"first").then_some(stream)
            })
        })
    }
}

fn scrape(bed: &Testbed) -> Result<Scrape> {
    Ok(Scrape(client::get(&bed.hub, ADMIN, "/metrics")?.text()))
}

/// A data plane on the usual ports, not waited for, that sees its cgroup.
fn spawn(bed: &Testbed, name: &str, rights: Rights, flags: &[&str]) -> Result<Watched> {
    let program = binary("culvert-dataplane")?.to_string_lossy().into_owned();
    let mut arguments = vec!["-c".to_owned(), WITH_CGROUP.to_owned(), "sh".to_owned()];
    if let Rights::Only(rights) = rights {
        let set: String = rights.iter().map(|right| format!(",+{right}")).collect();
        arguments.push("setpriv".to_owned());
        arguments.push(format!("--bounding-set=-all{set}"));
        arguments.push("--inh-caps=-all".to_owned());
    }
    arguments.push(program);
    arguments
        .extend(["--addr", "0.0.0.0:8443", "--internal-addr", "0.0.0.0:8080"].map(str::to_owned));
    arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
    Watched::start(Spawn::new("sh").args(arguments), bed, &bed.hub, name)
}

fn dataplane(bed: &Testbed, name: &str, rights: Rights, flags: &[&str]) -> Result<Watched> {
    let mut process = spawn(bed, name, rights, flags)?;
    process.wait_port(&bed.client, internal(), START_MAX)?;
    process.wait_port(&bed.client, (HUB_FOR_CLIENT, PUBLIC).into(), START_MAX)?;
    Ok(process)
}

impl Scrape {
    /// The sum of the series of `name` that carry these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        let series = self.0.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        series
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The mean in seconds of what a histogram took in since `before`, and how much that is.
    fn mean(&self, before: &Self, name: &str, labels: &[(&str, &str)]) -> (f64, f64) {
        let of = |part: &str| {
            let name = format!("{name}_{part}");
            self.sum(&name, labels) - before.sum(&name, labels)
        };
        let count = of("count");
        (of("sum") / count.max(1.0), count)
    }

    fn tier(&self) -> &'static str {
        let is = |tier| self.sum("culvert_ebpf_tier", &[("tier", tier)]) == 1.0;
        ["tcp_info", "sockops", "skb"]
            .into_iter()
            .find(|tier| is(tier))
            .unwrap_or("none")
    }
}

/// A service on the private site that answers every read with the same bytes, as late as it is told.
struct Echo {
    delay_us: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Echo {
    fn start(site: &Namespace) -> Result<Self> {
        let listener = site.run(|| TcpListener::bind((SITE, SERVICE)))?;
        let delay_us = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let late = delay_us.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let late = late.clone();
                std::thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    let mut piece = vec![0; 65_536];
                    while let Ok(got @ 1..) = stream.read(&mut piece) {
                        let us = late.load(std::sync::atomic::Ordering::Relaxed);
                        if us > 0 {
                            std::thread::sleep(Duration::from_micros(us));
                        }
                        if stream.write_all(&piece[..got]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(Self { delay_us })
    }

    fn delay(&self, late: Duration) {
        let us = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        self.delay_us
            .store(us, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A question and its answer.
fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[7; 200])?;
    stream.read_exact(&mut [0; 200]).context("an answer")
}

/// Whether the kernel lets these tests run.
fn observing(test: &str, programs: &[&'static str]) -> bool {
    ready(test, programs)
}

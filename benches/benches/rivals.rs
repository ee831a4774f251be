//! Our mux with the product's own carrier driver beside the `yamux` crate, in one run.
//!
//! Both ends run on one current-thread runtime over the same kind of byte stream, so that the
//! CPU time of this thread is the cost of both ends. Variants are interleaved; each round gives a
//! ratio, and the median with its range is printed. `CULVERT_ROUNDS` sets the rounds (default 5).
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints and may stop"
)]

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use cap::Cap;
use culvert_mux::Budget;
use culvert_net::carrier::{CarrierConfig, End, carrier};
use tikv_jemallocator::Jemalloc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::compat::{FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

#[global_allocator]
static ALLOCATOR: Cap<Jemalloc> = Cap::new(Jemalloc, usize::MAX);

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}
type BoxStream = Pin<Box<dyn Stream>>;

#[derive(Clone, Copy, PartialEq)]
enum Variant {
    Culvert,
    Yamux,
    /// No mux: one connection per stream.
    Direct,
}

#[derive(Clone, Copy)]
enum Link {
    Tcp,
    Memory,
}

#[derive(Clone, Copy)]
enum Work {
    /// Bytes that the agent sends on each of so many streams.
    Bulk { streams: usize, bytes: usize },
    /// Round trips of 64 bytes on each of so many streams.
    Echo { streams: usize, rounds: usize },
}

/// CPU time of this thread, seconds.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let ns: u64 = text.split(' ').next().unwrap().parse().unwrap();
    ns as f64 / 1e9
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
        // The host's default may be bbr, whose pacing on loopback costs more than what is measured.
        rustix::net::sockopt::set_tcp_congestion(end, "cubic").unwrap();
    }
    (near, far)
}

async fn io_pair(link: Link) -> (BoxStream, BoxStream) {
    match link {
        Link::Tcp => {
            let (near, far) = tcp_pair().await;
            (Box::pin(near), Box::pin(far))
        }
        Link::Memory => {
            let (near, far) = tokio::io::duplex(256 << 10);
            (Box::pin(near), Box::pin(far))
        }
    }
}

/// Streams of one session: the hub's ends and the agent's, in the same order.
async fn streams(variant: Variant, link: Link, count: usize) -> Vec<(BoxStream, BoxStream)> {
    match variant {
        Variant::Culvert => culvert_streams(link, count, 256 << 10).await,
        Variant::Yamux => yamux_streams(link, count).await,
        Variant::Direct => {
            let mut pairs = Vec::new();
            for _ in 0..count {
                pairs.push(io_pair(link).await);
            }
            pairs
        }
    }
}

async fn culvert_streams(link: Link, count: usize, window: u32) -> Vec<(BoxStream, BoxStream)> {
    let budget = Arc::new(Budget::new(1 << 30));
    let (near, far) = io_pair(link).await;
    let config = |end| {
        let mut config = CarrierConfig::radar(end);
        config.mux.window_initial = window;
        config
    };
    let (hub, hub_driver) = carrier(near, config(End::Hub), Arc::clone(&budget));
    let (agent, agent_driver) = carrier(far, config(End::Agent), budget);
    tokio::spawn(hub_driver);
    tokio::spawn(agent_driver);
    let mut pairs: Vec<(BoxStream, BoxStream)> = Vec::new();
    for _ in 0..count {
        let mine = hub.open(None).map_err(|_| "open").unwrap();
        let theirs = agent.accept().await.unwrap().stream;
        pairs.push((Box::pin(mine), Box::pin(theirs)));
    }
    // The handles live as long as the process: dropping them would not end the session.
    std::mem::forget((hub, agent));
    pairs
}

async fn yamux_streams(link: Link, count: usize) -> Vec<(BoxStream, BoxStream)> {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(1_024);
    let (near, far) = io_pair(link).await;
    let mut hub = yamux::Connection::new(near.compat(), config.clone(), yamux::Mode::Client);
    let mut agent = yamux::Connection::new(far.compat(), config, yamux::Mode::Server);
    let (accepted, mut accepting) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(stream)) = poll_fn(|cx| agent.poll_next_inbound(cx)).await {
            let _ = accepted.send(stream);
        }
    });
    let (open, mut opening) = mpsc::unbounded_channel::<()>();
    let (opened, mut opened_streams) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut wanted = 0;
        poll_fn(|cx| {
            while let std::task::Poll::Ready(Some(())) = opening.poll_recv(cx) {
                wanted += 1;
            }
            while wanted > 0
                && let std::task::Poll::Ready(stream) = hub.poll_new_outbound(cx)
            {
                wanted -= 1;
                let _ = opened.send(stream.unwrap());
            }
            hub.poll_next_inbound(cx).map(drop)
        })
        .await;
    });
    let mut pairs: Vec<(BoxStream, BoxStream)> = Vec::new();
    for _ in 0..count {
        open.send(()).unwrap();
        let mut mine = opened_streams.recv().await.unwrap().compat();
        // The crate announces a stream with its first byte only.
        mine.write_all(b"!").await.unwrap();
        let mut theirs = accepting.recv().await.unwrap().compat();
        theirs.read_exact(&mut [0]).await.unwrap();
        // And the acceptor's ACK rides on its first byte; it opens 256 without.
        theirs.write_all(b"!").await.unwrap();
        mine.read_exact(&mut [0]).await.unwrap();
        pairs.push((Box::pin(mine), Box::pin(theirs)));
    }
    std::mem::forget(open);
    pairs
}

/// CPU seconds of the work: per GiB, or per round trip.
fn measure(variant: Variant, link: Link, work: Work) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let count = match work {
            Work::Bulk { streams, .. } | Work::Echo { streams, .. } => streams,
        };
        let mut tasks = JoinSet::new();
        let pairs = streams(variant, link, count).await;
        let before = cpu_seconds();
        for (mine, theirs) in pairs {
            match work {
                Work::Bulk { bytes, .. } => bulk(&mut tasks, mine, theirs, bytes),
                Work::Echo { rounds, .. } => echo(&mut tasks, mine, theirs, rounds),
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let spent = cpu_seconds() - before;
        match work {
            Work::Bulk { streams, bytes } => spent / (streams * bytes) as f64 * 1024_f64.powi(3),
            Work::Echo { streams, rounds } => spent / (streams * rounds) as f64,
        }
    })
}

fn bulk(tasks: &mut JoinSet<()>, mut mine: BoxStream, mut theirs: BoxStream, bytes: usize) {
    tasks.spawn(async move {
        let block = vec![7; 64 << 10];
        for _ in 0..bytes / block.len() {
            theirs.write_all(&block).await.unwrap();
        }
        theirs.shutdown().await.unwrap();
        theirs.read_to_end(&mut Vec::new()).await.unwrap();
    });
    tasks.spawn(async move {
        let mut block = vec![0; 64 << 10];
        let mut received = 0;
        loop {
            match mine.read(&mut block).await.unwrap() {
                0 => break,
                n => received += n,
            }
        }
        assert_eq!(received, bytes);
        mine.shutdown().await.unwrap();
    });
}

fn echo(tasks: &mut JoinSet<()>, mut mine: BoxStream, mut theirs: BoxStream, rounds: usize) {
    tasks.spawn(async move {
        let mut message = [0; 64];
        while theirs.read_exact(&mut message).await.is_ok() {
            theirs.write_all(&message).await.unwrap();
            theirs.flush().await.unwrap();
        }
        theirs.shutdown().await.unwrap();
    });
    tasks.spawn(async move {
        let mut message = [7; 64];
        for _ in 0..rounds {
            mine.write_all(&message).await.unwrap();
            mine.flush().await.unwrap();
            mine.read_exact(&mut message).await.unwrap();
        }
        mine.shutdown().await.unwrap();
        mine.read_to_end(&mut Vec::new()).await.unwrap();
    });
}

/// Heap of both ends with 1,000 streams whose hub side does not read.
fn stalled(variant: Variant, streams: usize) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let before = ALLOCATOR.allocated();
        let pairs = match variant {
            Variant::Culvert => culvert_streams(Link::Memory, streams, 32 << 10).await,
            other => self::streams(other, Link::Memory, streams).await,
        };
        let mut mine = Vec::new();
        for (near, mut far) in pairs {
            mine.push(near);
            tokio::spawn(async move { while far.write_all(&[7; 4_096]).await.is_ok() {} });
        }
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        ALLOCATOR.allocated() - before
    })
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
}

fn main() {
    let rounds: usize = std::env::var("CULVERT_ROUNDS").map_or(5, |n| n.parse().unwrap());
    let only = std::env::args()
        .nth(1)
        .filter(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    let mib = 1 << 20;
    let works = [
        (
            "bulk, 1 stream, tcp, s/GiB",
            Link::Tcp,
            Work::Bulk {
                streams: 1,
                bytes: 512 * mib,
            },
        ),
        (
            "bulk, 16 streams, tcp, s/GiB",
            Link::Tcp,
            Work::Bulk {
                streams: 16,
                bytes: 32 * mib,
            },
        ),
        (
            "bulk, 1 stream, memory, s/GiB",
            Link::Memory,
            Work::Bulk {
                streams: 1,
                bytes: 512 * mib,
            },
        ),
        (
            "bulk, 16 streams, memory, s/GiB",
            Link::Memory,
            Work::Bulk {
                streams: 16,
                bytes: 32 * mib,
            },
        ),
        (
            "64 B, 1 stream, tcp, us",
            Link::Tcp,
            Work::Echo {
                streams: 1,
                rounds: 40_000,
            },
        ),
        (
            "64 B, 64 streams, tcp, us",
            Link::Tcp,
            Work::Echo {
                streams: 64,
                rounds: 1_000,
            },
        ),
        (
            "64 B, 1 stream, memory, us",
            Link::Memory,
            Work::Echo {
                streams: 1,
                rounds: 40_000,
            },
        ),
        (
            "64 B, 64 streams, memory, us",
            Link::Memory,
            Work::Echo {
                streams: 64,
                rounds: 1_000,
            },
        ),
    ];
    println!(
        "{:34} {:>9} {:>9} {:>9}  ratio to yamux [min-max]",
        "both ends", "culvert", "yamux", "no mux"
    );
    for (name, link, work) in works.into_iter().filter(|(name, ..)| name.contains(&only)) {
        let unit = if name.ends_with("us") { 1e6 } else { 1.0 };
        let (mut ours, mut theirs, mut none, mut ratios) = (vec![], vec![], vec![], vec![]);
        for round in 0..rounds {
            let mut order = [Variant::Culvert, Variant::Yamux, Variant::Direct];
            if round % 2 == 1 {
                order.reverse();
            }
            let mut seen = [0.0; 3];
            for variant in order {
                let value = measure(variant, link, work) * unit;
                seen[variant as usize] = value;
            }
            ours.push(seen[0]);
            theirs.push(seen[1]);
            none.push(seen[2]);
            ratios.push(seen[0] / seen[1]);
        }
        let (ours, theirs, none) = (median(ours).0, median(theirs).0, median(none).0);
        let (ratio, least, most) = median(ratios);
        println!("{name:34} {ours:9.3} {theirs:9.3} {none:9.3}  {ratio:.2} [{least:.2}-{most:.2}]");
    }
    if "stalled".contains(&only) {
        let (ours, theirs) = (
            stalled(Variant::Culvert, 1_000),
            stalled(Variant::Yamux, 1_000),
        );
        let mib = |bytes: usize| bytes as f64 / 1024_f64.powi(2);
        println!(
            "1,000 stalled streams, MiB of heap  {:.1} {:.1}",
            mib(ours),
            mib(theirs)
        );
    }
}

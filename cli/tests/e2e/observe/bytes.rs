//! Bytes of connections of random sizes: the kernel's count, ours and the applications' are one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use culvert_perf::testbed::SITE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::*;

/// A slice of what the issue asks for; `cargo xtask soak` runs all of it.
const CONNECTIONS: u64 = 1_500;
const AT_ONCE: usize = 64;

/// What one connection carries each way, to a service that reads late, out of a receive buffer that
/// holds more than one read of the relay from the start: then a read is full, and the relay splices.
const BULK_BYTES: u64 = 16 << 20;
const LATE: Duration = Duration::from_millis(200);
const WINDOW: &str = "net.ipv4.tcp_rmem=4096 1048576 6291456";

/// Sizes over five orders of magnitude; `number` decides. The first is bulk.
fn sizes(number: u64) -> (u64, u64) {
    if number == 0 {
        return (BULK_BYTES, BULK_BYTES);
    }
    let mix = |value: u64| (value ^ (value >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 20;
    let size = |seed: u64| {
        let most = [1, 200, 4_000, 70_000, 700_000][usize::try_from(mix(seed) % 5).unwrap_or(0)];
        mix(seed.wrapping_mul(77)) % most + 1
    };
    (size(number * 2 + 1), size(number * 2 + 2))
}

/// Sends as much as `sends` says and reads to the end of the other side, which sends `other`.
async fn exchange(mut stream: TcpStream, sends: u64, other: u64) -> Result<()> {
    let (mut reader, mut writer) = stream.split();
    let sent = async {
        let piece = vec![5; 65_536];
        let mut left = usize::try_from(sends)?;
        while left > 0 {
            let now = left.min(piece.len());
            writer.write_all(&piece[..now]).await?;
            left -= now;
        }
        writer.shutdown().await?;
        anyhow::Ok(())
    };
    let read = async {
        let mut sink = tokio::io::sink();
        anyhow::Ok(tokio::io::copy(&mut reader, &mut sink).await?)
    };
    let (read, sent) = tokio::join!(read, sent);
    sent?;
    ensure!(read? == other, "one side read less than was sent");
    Ok(())
}

/// The service: its first 16 bytes say what the client sends and what it wants.
async fn serve(mut stream: TcpStream) -> Result<()> {
    let (up, down) = (stream.read_u64().await?, stream.read_u64().await?);
    if up == BULK_BYTES {
        tokio::time::sleep(LATE).await;
    }
    exchange(stream, down, up).await
}

async fn ask(to: SocketAddr, number: u64) -> Result<(u64, u64)> {
    let (up, down) = sizes(number);
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    stream.write_u64(up).await?;
    stream.write_u64(down).await?;
    exchange(stream, up, down).await?;
    Ok((up + 16, down))
}

fn counts_agree(test: &str, flags: &[&str]) -> Result<()> {
    if !observing(test, &[]) {
        return Ok(());
    }
    let bed = bed()?;
    bed.hub.output("sysctl", &["-qw", WINDOW])?;
    let flags = [&["--ebpf", "require"], flags].concat();
    let rig = Observed::with(bed, Rights::All, &flags, None)?;
    let connections = crate::heavy::routed::amount("CULVERT_OBSERVE_CONNECTIONS", CONNECTIONS)?;
    let (services, clients) = (rig.bed.site.runtime()?, rig.bed.client.runtime()?);
    let listener = services.run(TcpListener::bind((SITE, SERVICE)))?;
    services.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    let began = Instant::now();
    let (up, down) = clients.run(async move {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut all = tokio::task::JoinSet::new();
        for number in 0..connections {
            let place = places.clone().acquire_owned().await?;
            all.spawn(async move {
                let bytes = ask(at_hub(PORT), number).await;
                drop(place);
                bytes
            });
        }
        let mut sum = (0, 0);
        while let Some(one) = all.join_next().await {
            let (up, down) = one??;
            sum = (sum.0 + up, sum.1 + down);
        }
        anyhow::Ok(sum)
    })?;
    let took = began.elapsed();
    // Close records come a moment later.
    let limit = Duration::from_secs(20);
    let told = wait_for("the last bytes and records", limit, || {
        let told = rig.scrape().ok()?;
        let dev = ("cluster", "dev");
        let open = told.sum("culvert_connections", &[("leg", "client"), dev]);
        let first = told.sum("culvert_first_byte_duration_seconds_count", &[dev]);
        (open == 0.0 && first >= connections as f64).then_some(told)
    })?;
    let relayed = |direction| told.sum("culvert_relay_bytes_total", &[("direction", direction)]);
    let client = |direction| {
        let labels = [("leg", "client"), ("direction", direction)];
        told.sum("culvert_leg_bytes_total", &labels)
    };
    let spliced = told.sum("culvert_engine_spliced_bytes_total", &[]);
    println!(
        "{connections} connections, {up} bytes up, {down} down in {took:?}: relayed {} and {}, kernel {} and {}, {spliced} spliced, {} pipes refused",
        relayed("to_service"),
        relayed("to_client"),
        client("rx"),
        client("tx"),
        told.sum("culvert_pipe_pool_exhausted_total", &[]),
    );
    assert_eq!(told.tier(), "skb");
    assert_eq!(
        (relayed("to_service"), relayed("to_client")),
        (up as f64, down as f64)
    );
    assert_eq!((client("rx"), client("tx")), (up as f64, down as f64));
    let skipped = told.sum(
        "culvert_relay_residence_unsampled_total",
        &[("reason", "offset")],
    );
    assert_eq!(skipped, 0.0, "offsets disagree");
    let sampled = told.sum(
        "culvert_relay_residence_seconds_count",
        &[("cluster", "dev")],
    );
    assert!(sampled >= connections as f64, "{sampled} residences");
    let slots = |state| told.sum("culvert_ebpf_pair_slots", &[("state", state)]);
    assert_eq!(slots("used"), 0.0, "no slot is left behind");
    let lost = told.sum("culvert_ebpf_events_lost_total", &[]);
    assert_eq!(lost, 0.0);
    match flags.contains(&"--pipes") {
        true => assert_eq!(spliced, 0.0),
        false => assert!(spliced > 0.0),
    }
    Ok(())
}

#[test]
fn kernel_and_application_count_the_same_bytes_over_splice() -> Result<()> {
    counts_agree(
        "kernel_and_application_count_the_same_bytes_over_splice",
        &[],
    )
}

#[test]
fn kernel_and_application_count_the_same_bytes_over_copy() -> Result<()> {
    let flags = ["--pipes", "0", "--io-engine", "epoll"];
    counts_agree(
        "kernel_and_application_count_the_same_bytes_over_copy",
        &flags,
    )
}

//! As nobody: a user without capabilities has 16,384 pages of pipes, which are
//! 256 of 256 KiB, all processes together.

use std::time::Duration;

use culvert_engine::Settings;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::integrity::suite;
use crate::rig::{
    Rig, become_nobody, engines, in_a_child, is_root, lift_descriptor_limit, pattern, soon,
};

/// Each with bulk both ways: more directions than a user may have small pipes.
const PAIRS: usize = 550;
/// More than the sockets between two ends hold.
const BYTES: u64 = 1 << 20;
/// Kept small: all directions are stuck at once.
const SOCKET_BYTES: usize = 128 << 10;

/// Sends bulk, and reads only when everybody is stuck.
async fn stuck_then_read(socket: TcpStream, stream: u64, all_stuck: &Barrier) {
    let (mut reader, mut writer) = socket.into_split();
    let send = async {
        let data: Vec<u8> = (0..BYTES).map(|at| pattern(stream, at)).collect();
        writer.write_all(&data).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async {
        all_stuck.wait().await;
        let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            let got = reader.read(&mut buffer).await.unwrap();
            if got == 0 {
                break;
            }
            for byte in &buffer[..got] {
                assert_eq!(*byte, pattern(stream ^ 1, at), "stream {stream} at {at}");
                at += 1;
            }
        }
        assert_eq!(at, BYTES, "stream {stream}");
    };
    tokio::join!(send, read);
}

async fn more_bulk_than_pipes(name: &str, mut settings: Settings) {
    settings.threads = 1;
    settings.share.pipes_max = 4 * PAIRS;
    settings.share.rest_bytes_max = 256 << 20;
    let rig = Rig::new(&settings);
    let all_stuck: &'static Barrier = Box::leak(Box::new(Barrier::new(2 * PAIRS + 1)));
    let (mut tasks, mut ends) = (tokio::task::JoinSet::new(), Vec::new());
    for number in 0..PAIRS as u64 {
        let pair = rig.join_narrow(number as u32, SOCKET_BYTES);
        for (socket, side) in [(pair.client, 0), (pair.service, 1)] {
            SockRef::from(&socket)
                .set_recv_buffer_size(16 << 10)
                .unwrap();
            tasks.spawn(stuck_then_read(socket, number * 2 + side, all_stuck));
        }
        ends.push(pair.joined.ended);
    }
    let exhausted = || {
        use std::sync::atomic::Ordering::Relaxed;
        let counts = rig
            .engine
            .gauges()
            .map(|gauges| gauges.pipes_exhausted.load(Relaxed));
        counts.sum::<u64>()
    };
    soon("every direction is stuck", async {
        let (mut held, mut since) = ((0, 0, 0), 0);
        while held.1 == 0 || since < 20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = rig.held();
            since = if now == held { since + 1 } else { 0 };
            held = now;
        }
    })
    .await;
    let (pairs, pipes, bytes) = rig.held();
    println!(
        "{name}: {pairs} pairs are stuck with {pipes} pipes and {bytes} bytes copied; {} times there was no pipe",
        exhausted()
    );
    assert_eq!(pairs, PAIRS);
    assert!(pipes <= 256, "the kernel gives no more");
    assert!(
        exhausted() >= (2 * PAIRS - 256) as u64,
        "the others copy, counted"
    );
    all_stuck.wait().await;
    soon("every byte", tasks.join_all()).await;
    let (mut moved, mut spliced) = (0, 0);
    for end in ends {
        let summary = soon("an end", end).await.unwrap();
        moved += summary.to_client + summary.to_service;
        spliced += summary.spliced;
    }
    assert_eq!(moved, 2 * PAIRS as u64 * BYTES);
    assert!(
        0 < spliced && spliced < moved,
        "{spliced} of {moved} spliced"
    );
    assert_eq!(rig.held(), (0, 0, 0), "{name}: pairs, pipes, bytes");
}

#[test]
#[ignore = "run by the test below"]
fn everything() {
    lift_descriptor_limit();
    become_nobody();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for (name, settings) in engines() {
        runtime.block_on(suite(name, &settings));
        runtime.block_on(more_bulk_than_pipes(name, settings));
    }
}

#[test]
fn without_privileges_bulk_beyond_the_users_pipes_is_copied_and_exact() {
    if is_root("without_privileges_bulk_beyond_the_users_pipes_is_copied_and_exact") {
        in_a_child("poor::everything", "nobody");
    }
}

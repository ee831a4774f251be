//! Hand-over, cuts, limits, stalls and leaks.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use culvert_engine::Join;
use culvert_proto::close::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{Ends, Rig, descriptors, descriptors_but_pipes, engines, soon};

/// Reads to the end: everything, and whether that was FIN.
async fn rest(mut socket: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    let read = soon("an end", (&mut socket).read_to_end(&mut got)).await;
    (got, read.is_ok())
}

#[tokio::test]
async fn early_bytes_come_first_and_each_direction_ends_alone() {
    for (name, settings) in engines() {
        let rig = Rig::new(&settings);
        let mut ends = rig.join_with(1, b"GET ".to_vec(), b"hello ".to_vec());
        ends.client.write_all(b"/").await.unwrap();
        ends.client.shutdown().await.unwrap();
        assert_eq!(
            rest(&mut ends.service).await,
            (b"GET /".to_vec(), true),
            "{name}"
        );
        ends.service.write_all(b"world").await.unwrap();
        let mut hello = [0; 11];
        soon("the answer", ends.client.read_exact(&mut hello))
            .await
            .unwrap();
        assert_eq!(&hello, b"hello world");
        let live = &ends.joined.live;
        soon("the counters of a living pair", async {
            while (live.to_service.load(Relaxed), live.to_client.load(Relaxed)) != (5, 11) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        ends.service.shutdown().await.unwrap();
        assert_eq!(rest(&mut ends.client).await, (vec![], true));
        let summary = soon("the end", ends.joined.ended).await.unwrap();
        assert_eq!(summary.reason, CloseReason::Finished);
        assert_eq!((summary.to_service, summary.to_client), (5, 11));
    }
}

#[tokio::test]
async fn a_cut_and_the_end_of_the_engine_are_resets_on_both_ends() {
    for (name, settings) in engines() {
        let rig = Rig::new(&settings);
        let mut cut = rig.join(1);
        let mut kept = rig.join(2);
        for ends in [&mut cut, &mut kept] {
            ends.client.write_all(b"x").await.unwrap();
            ends.service.read_u8().await.unwrap();
        }
        cut.joined.cut(CloseReason::Revoked);
        for end in [&mut cut.client, &mut cut.service] {
            assert!(!rest(end).await.1, "{name}: a cut is no clean end");
        }
        let summary = soon("the end", &mut cut.joined.ended).await.unwrap();
        assert_eq!(
            (summary.reason, summary.to_service),
            (CloseReason::Revoked, 1)
        );
        kept.client.write_all(b"y").await.unwrap();
        assert_eq!(
            soon("the neighbour", kept.service.read_u8()).await.unwrap(),
            b'y'
        );
        cut.joined.cut(CloseReason::Revoked);
        drop(rig);
        for end in [&mut kept.client, &mut kept.service] {
            assert!(
                !rest(end).await.1,
                "{name}: the engine's end is no clean end"
            );
        }
        let summary = soon("the end", kept.joined.ended).await.unwrap();
        assert_eq!(summary.reason, CloseReason::Shutdown);
    }
}

#[tokio::test]
async fn a_reset_amid_bulk_is_never_told_as_an_end() {
    static BULK: [u8; 1 << 20] = [7; 1 << 20];
    let tries: usize = std::env::var("CULVERT_ENGINE_RESETS").map_or(300, |n| n.parse().unwrap());
    for (name, settings) in engines() {
        let rig = Rig::new(&settings);
        let mut told = 0;
        for turn in 0..tries {
            let Ends {
                mut client,
                mut service,
                joined,
            } = rig.join(1);
            client.write_all(b"go").await.unwrap();
            let serves = tokio::spawn(async move {
                let wrote = service.write_all(&BULK).await;
                (wrote.is_ok(), rest(&mut service).await)
            });
            let mut left = turn * 7_919 % BULK.len();
            let mut got = vec![0; 64 << 10];
            while left > 0 {
                let most = left.min(got.len());
                let read = client.read(&mut got[..most]);
                left -= soon("bytes of the service", read).await.unwrap();
            }
            client.set_zero_linger().unwrap();
            drop(client);
            let (wrote, heard) = soon("an end", serves).await.unwrap();
            // A write that met the reset took it from the read behind it.
            if wrote {
                told += 1;
                assert!(!heard.1, "{name}, {turn}: told as an end");
            }
            let summary = soon("the end", joined.ended).await.unwrap();
            assert_eq!(summary.reason, CloseReason::ClientReset, "{name}, {turn}");
        }
        println!("{name}: {told} of {tries} resets told to a reader");
        assert!(told > 0);
    }
}

#[tokio::test]
async fn a_pair_over_a_limit_is_reset_and_its_neighbours_stay() {
    let (_, mut settings) = engines().remove(0);
    (settings.pairs_max, settings.cluster_pairs_max) = (3, 2);
    let rig = Rig::new(&settings);
    let mut held = vec![rig.join(1), rig.join(1)];
    for (cluster, reason) in [(1, CloseReason::TooManyStreams), (2, CloseReason::Overload)] {
        if cluster == 2 {
            held.push(rig.join(2));
        }
        let (mut client, client_near) = rig.connection();
        let (_service, service_near) = rig.connection();
        let refused = rig.engine.join(Join {
            client: client_near,
            service: service_near,
            from_client: Vec::new(),
            from_service: Vec::new(),
            cluster,
        });
        assert_eq!(refused.err(), Some(reason));
        assert!(!rest(&mut client).await.1, "a refusal is no clean end");
    }
    for ends in &mut held {
        ends.client.write_all(b"x").await.unwrap();
        assert_eq!(
            soon("a neighbour", ends.service.read_u8()).await.unwrap(),
            b'x'
        );
    }
}

#[tokio::test]
async fn stalled_readers_hold_little_and_keep_nobody_up() {
    for (name, settings) in engines() {
        let rig = Rig::new(&settings);
        let mut stalled = Vec::new();
        for number in 0..200 {
            let ends = rig.join(number % 8);
            stalled.push(tokio::spawn(async move {
                let (mut client, data) = (ends.client, vec![7; 1 << 20]);
                while tokio::time::timeout(Duration::from_secs(1), client.write_all(&data))
                    .await
                    .is_ok()
                {}
                (client, ends.service, ends.joined)
            }));
        }
        let mut held = Vec::new();
        for task in stalled {
            held.push(soon("a sender stalls", task).await.unwrap());
        }
        let (mut pipes, mut bytes) = (0, 0);
        for gauges in rig.engine.gauges() {
            pipes += gauges.pipes.load(Relaxed);
            bytes += gauges.rest_bytes.load(Relaxed);
        }
        println!("{name}: 200 stalled readers hold {pipes} pipes and {bytes} bytes");
        assert!(pipes <= 2 * settings.share.pipes_max);
        assert!(bytes <= 2 * settings.share.rest_bytes_max + 400 * 4096);
        let mut quick = rig.join(99);
        let began = Instant::now();
        for _ in 0..200 {
            quick.client.write_all(b"ping").await.unwrap();
            soon("a ping", quick.service.read_exact(&mut [0; 4]))
                .await
                .unwrap();
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        // Whoever reads on gets everything.
        let (mut client, mut service, _) = held.pop().unwrap();
        client.shutdown().await.unwrap();
        assert!(rest(&mut service).await.1, "{name}");
    }
}

#[tokio::test]
async fn churn_leaks_nothing() {
    let count = std::env::var("CULVERT_ENGINE_CHURN");
    let count: u32 = count.map_or(2_000, |text| text.parse().unwrap());
    for (name, settings) in engines() {
        let before = descriptors();
        let rig = Rig::new(&settings);
        let (all, started) = (descriptors(), descriptors_but_pipes());
        for number in 0..count {
            let mut ends = rig.join(number % 5);
            if number % 50 == 0 {
                // Bulk, so that pipes come and go too.
                let (data, mut got) = (vec![2; 300_000], vec![0; 300_000]);
                let (wrote, read) = tokio::join!(
                    ends.client.write_all(&data),
                    ends.service.read_exact(&mut got)
                );
                wrote.and(read).unwrap();
            }
            ends.client.write_all(&[1; 1024]).await.unwrap();
            ends.service.read_exact(&mut [0; 1024]).await.unwrap();
            match number % 3 {
                0 => {
                    ends.client.shutdown().await.unwrap();
                    ends.service.shutdown().await.unwrap();
                    assert!(rest(&mut ends.client).await.1 && rest(&mut ends.service).await.1);
                }
                1 => {
                    socket2::SockRef::from(&ends.client)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                    drop(ends.client);
                    assert!(!rest(&mut ends.service).await.1, "RST travels");
                }
                _ => ends.joined.cut(CloseReason::Revoked),
            }
            soon("an end", ends.joined.ended).await.unwrap();
        }
        soon("descriptors come back", async {
            while descriptors_but_pipes() > started {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(rig.held(), (0, 0, 0), "{name}: pairs, pipes, bytes");
        let kept = descriptors() - all;
        assert!(
            kept <= 2 * 4,
            "{kept} descriptors of pipes kept for four directions"
        );
        drop(rig);
        soon("the engine's own come back", async {
            while descriptors() > before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        println!("{name}: {count} connections came and went");
    }
}

/// splice has no flag against it.
#[test]
fn sigpipe_is_ignored() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
    assert_ne!(ignored & 1 << (13 - 1), 0, "{ignored:x}");
}

//! Every byte by its position, over connections that end in every way.

use std::time::Duration;

use culvert_engine::{Settings, Summary};
use culvert_proto::close::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{Random, Rig, descriptors, engines, lift_descriptor_limit, pattern, soon};

/// What one end sends, and how it behaves.
#[derive(Clone, Copy, Debug)]
struct Plan {
    stream: u64,
    bytes: u64,
    /// Resets after so many bytes sent.
    resets_at: Option<u64>,
    /// Reads with pauses.
    slow: bool,
    /// Ends its direction only after it has read the other's end.
    last: bool,
}

/// What one end read.
struct Seen {
    bytes: u64,
    /// FIN, not RST.
    clean: bool,
}

/// Connections for each backend.
fn connections() -> u64 {
    let count = std::env::var("CULVERT_ENGINE_CONNECTIONS");
    count.map_or(400, |text| text.parse().unwrap())
}

async fn end(socket: TcpStream, own: Plan, other: Plan) -> Seen {
    let (mut reader, mut writer) = socket.into_split();
    let (told, mut read_all) = tokio::sync::watch::channel(false);
    let reading = async move {
        let (mut buffer, mut at) = (vec![0; 100_000], 0);
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) => {
                    told.send_replace(true);
                    return (
                        Seen {
                            bytes: at,
                            clean: true,
                        },
                        reader,
                    );
                }
                Ok(got) => {
                    for byte in &buffer[..got] {
                        assert_eq!(*byte, pattern(other.stream, at), "{other:?} at {at}");
                        at += 1;
                    }
                    if own.slow && at % 7 == 0 {
                        tokio::time::sleep(Duration::from_millis(3)).await;
                    }
                }
                Err(_) => {
                    return (
                        Seen {
                            bytes: at,
                            clean: false,
                        },
                        reader,
                    );
                }
            }
        }
    };
    let writing = async move {
        let mut random = Random(own.stream + 1);
        let mut at = 0;
        let until = own.resets_at.unwrap_or(own.bytes);
        while at < until {
            let piece = (1 + random.below(150_000)).min(until - at);
            let data: Vec<u8> = (at..at + piece).map(|at| pattern(own.stream, at)).collect();
            if writer.write_all(&data).await.is_err() {
                return (writer, false);
            }
            at += piece;
            if random.below(20) == 0 {
                tokio::time::sleep(Duration::from_millis(random.below(5))).await;
            }
        }
        if own.resets_at.is_none() {
            if own.last {
                let _ = read_all.wait_for(|all| *all).await;
            }
            let ended = writer.shutdown().await.is_ok();
            return (writer, ended);
        }
        (writer, true)
    };
    if own.resets_at.is_some() {
        let reading = tokio::spawn(reading);
        let (writer, _) = writing.await;
        reading.abort();
        let _ = reading.await;
        let socket = socket2::SockRef::from(writer.as_ref());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        // Dropped, it would send FIN first.
        writer.forget();
        return Seen {
            bytes: 0,
            clean: false,
        };
    }
    let ((mut seen, reader), (writer, wrote)) = tokio::join!(reading, writing);
    drop((reader, writer));
    // A reset is told once, to whoever asks first; then a read shows an end.
    seen.clean &= wrote;
    seen
}

fn plans(number: u64) -> [Plan; 2] {
    let mut random = Random((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut plan = |side| {
        let sizes = [1, 100, 10_000, 300_000, 3_000_000];
        let most = sizes[random.below(5) as usize];
        let bytes = random.below(most);
        Plan {
            stream: number * 2 + side,
            bytes,
            resets_at: (random.below(6) == 0).then(|| random.below(bytes + 1)),
            slow: random.below(6) == 0,
            last: false,
        }
    };
    let mut plans = [plan(0), plan(1)];
    match random.below(3) {
        0 => plans[0].last = true,
        1 => plans[1].last = true,
        _ => {}
    }
    plans
}

fn judge(plans: [Plan; 2], seen: &[Seen; 2], summary: Summary) {
    let resets = plans.iter().any(|plan| plan.resets_at.is_some());
    let counts = [summary.to_client, summary.to_service];
    for side in [0, 1] {
        let (own, other, told) = (&seen[side], plans[1 - side], counts[side]);
        if own.clean {
            assert!(
                other.resets_at.is_none(),
                "a reset looked like an end: {plans:?}"
            );
            assert_eq!(own.bytes, other.bytes, "{plans:?}");
        }
        assert!(
            own.bytes <= told && told <= other.bytes,
            "{plans:?} {summary:?}"
        );
        assert!(
            own.clean || resets,
            "reset without a cause: {plans:?} {summary:?}"
        );
    }
    match summary.reason {
        CloseReason::Finished => assert!(!resets, "{plans:?}"),
        CloseReason::ClientReset => assert!(plans[0].resets_at.is_some(), "{plans:?}"),
        CloseReason::UpstreamReset => assert!(plans[1].resets_at.is_some(), "{plans:?}"),
        reason => panic!("{reason} for {plans:?}"),
    }
}

/// Connections of every kind through an engine: what they sent, what arrived,
/// how they ended, and what is left afterwards.
pub async fn suite(name: &str, settings: &Settings) {
    lift_descriptor_limit();
    let before = descriptors();
    let rig = Rig::new(settings);
    let mut tasks = Vec::new();
    for number in 0..connections() {
        let plans = plans(number);
        let ends = rig.join(number as u32 % 3);
        let name = name.to_owned();
        tasks.push(tokio::spawn(async move {
            let what = |which| format!("{name}: {which} of {plans:?}");
            let seen = tokio::join!(
                soon(what("the client"), end(ends.client, plans[0], plans[1])),
                soon(what("the service"), end(ends.service, plans[1], plans[0]))
            );
            let summary = soon(what("the end"), ends.joined.ended).await.unwrap();
            judge(plans, &seen.into(), summary);
            summary
        }));
    }
    let (mut moved, mut spliced) = (0, 0);
    for task in tasks {
        let summary = task.await.unwrap();
        moved += summary.to_client + summary.to_service;
        spliced += summary.spliced;
    }
    println!("{name}: {moved} bytes, {spliced} spliced");
    assert!(spliced > moved / 4, "{name}: bulk is spliced");
    assert_eq!(rig.held(), (0, 0, 0), "{name}: pairs, pipes, bytes");
    assert_eq!(rig.moved(), (moved, spliced), "{name}: in all");
    drop(rig);
    soon("descriptors come back", async {
        // A ring lets go of them a moment after it is gone.
        while descriptors() > before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_changed_or_reordered_and_no_end_is_a_lie() {
    for (name, settings) in engines() {
        suite(name, &settings).await;
    }
}

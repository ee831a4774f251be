//! 1,000 readers that stop in the middle of a flood: memory has a bound, the others answer.

use super::*;

const STALLED: usize = 1_000;
/// What the hub and the agent may hold in user space, all pairs together, KiB: copies that were
/// read and not sent, and the processes themselves.
const RESIDENT_KIB_MAX: u64 = 192 << 10;

/// Floods whoever says `f`, echoes everything else.
fn serve(mut stream: TcpStream) {
    let mut first = [0];
    if stream.read_exact(&mut first).is_err() {
        return;
    }
    if first[0] == b'f' {
        let piece = vec![7; 64 << 10];
        while stream.write_all(&piece).is_ok() {}
        return;
    }
    let mut piece = [0; 64];
    while let Ok(got @ 1..) = stream.read(&mut piece) {
        if stream.write_all(&piece[..got]).is_err() {
            return;
        }
    }
}

/// Round trips of 64 bytes on one connection, sorted.
fn round_trips(rig: &Routed, count: usize) -> Result<Vec<Duration>> {
    rig.bed.client.run(|| {
        let mut stream = TcpStream::connect(at_hub(PORT))?;
        stream.set_nodelay(true)?;
        stream.write_all(b"e")?;
        let (sent, mut got) = ([3; 64], [0; 64]);
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            stream.write_all(&sent)?;
            stream.read_exact(&mut got)?;
            ensure!(got == sent, "an echo");
            times.push(start.elapsed());
        }
        times.sort();
        Ok(times)
    })
}

#[test]
fn a_thousand_stalled_readers_cost_little() -> Result<()> {
    if !ready("a_thousand_stalled_readers_cost_little", &[]) {
        return Ok(());
    }
    let rig = rig(&[PLAINTEXT])?;
    let listener = rig
        .bed
        .site
        .run(|| std::net::TcpListener::bind(service()))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
    let quiet = round_trips(&rig, 2_000)?;
    let mut stalled = Vec::new();
    rig.bed.client.run(|| -> Result<()> {
        for number in 0..STALLED {
            let mut stream =
                TcpStream::connect(at_hub(PORT)).with_context(|| number.to_string())?;
            stream.write_all(b"f")?;
            stalled.push(stream);
        }
        Ok(())
    })?;
    wait_for(
        "every reader to be stalled",
        Duration::from_secs(60),
        || {
            let before = rig.metric("culvert_engine_bytes_total").ok()?;
            std::thread::sleep(Duration::from_millis(500));
            let after = rig.metric("culvert_engine_bytes_total").ok()?;
            let pairs = rig.metric("culvert_engine_pairs").ok()?;
            (before > 0.0 && after - before < 1e6 && pairs >= 1_000.0).then_some(())
        },
    )?;
    let busy = round_trips(&rig, 2_000)?;
    let (hub, agent) = (rig.dataplane.resident_kib()?, rig.agent.resident_kib()?);
    let p99 = |times: &[Duration]| times[times.len() * 99 / 100];
    let ratio = p99(&busy).as_secs_f64() / p99(&quiet).as_secs_f64();
    println!("{STALLED} stalled readers: hub {hub} KiB, agent {agent} KiB resident");
    println!(
        "p99 of 64 bytes: quiet {:?}, beside them {:?}: {ratio:.2}",
        p99(&quiet),
        p99(&busy)
    );
    assert!(hub < RESIDENT_KIB_MAX && agent < RESIDENT_KIB_MAX);
    // Those who read again get on, and those who go leave nothing.
    let mut again = stalled.pop().context("one of them")?;
    let mut sum = 0;
    let mut piece = vec![0; 64 << 10];
    while sum < 32 << 20 {
        let got = again.read(&mut piece)?;
        ensure!(got > 0, "cut at {sum}");
        assert!(piece[..got].iter().all(|byte| *byte == 7));
        sum += got;
    }
    drop((again, stalled));
    wait_idle(&rig)
}

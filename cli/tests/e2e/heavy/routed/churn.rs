//! Connections that come and go: no descriptor, pipe or pair is left behind.

use super::*;

/// A slice of the 100,000 of `cargo xtask soak`.
const CONNECTIONS: u64 = 6_000;
const AT_ONCE: u64 = 8;

#[test]
fn churn_leaves_nothing_behind() -> Result<()> {
    if !ready("churn_leaves_nothing_behind", &[]) {
        return Ok(());
    }
    let total = amount("CULVERT_CHURN", CONNECTIONS)?;
    let rig = rig(&[PLAINTEXT])?;
    let listener = rig
        .bed
        .site
        .run(|| std::net::TcpListener::bind(service()))?;
    for _ in 0..AT_ONCE {
        let listener = listener.try_clone()?;
        std::thread::spawn(move || {
            let mut piece = vec![0; 128 << 10];
            for mut stream in listener.incoming().map_while(Result::ok) {
                // An echo until the client's FIN or RST.
                while let Ok(got @ 1..) = stream.read(&mut piece) {
                    if stream.write_all(&piece[..got]).is_err() {
                        break;
                    }
                }
            }
        });
    }
    let churn = |count: u64| -> Result<()> {
        rig.bed.client.run(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..AT_ONCE)
                    .map(|_| scope.spawn(|| (0..count / AT_ONCE).try_for_each(one)))
                    .collect();
                let mut joined = threads.into_iter().map(|thread| thread.join());
                joined.try_for_each(|ended| ended.expect("a client does not panic"))
            })
        })
    };
    churn(400)?;
    wait_idle(&rig)?;
    // What waits in advance comes and goes too.
    let settle = || -> Result<[(usize, usize); 2]> {
        std::thread::sleep(Duration::from_secs(1));
        Ok([descriptors(&rig.dataplane)?, descriptors(&rig.agent)?])
    };
    let before = settle()?;
    let start = Instant::now();
    churn(total)?;
    let took = start.elapsed();
    wait_idle(&rig)?;
    let pooled = 64 + 2 * 192;
    let limit = |before: usize| before + pooled;
    let after = settle()?;
    println!(
        "{total} connections in {took:?}: (fds, pipe ends) of hub and agent {before:?} -> {after:?}"
    );
    for (before, after) in before.iter().zip(&after) {
        assert!(after.0 <= limit(before.0) && after.1 <= 2 * 192);
    }
    // The same again leaves the same: nothing grows.
    churn(total / 2)?;
    wait_idle(&rig)?;
    let again = settle()?;
    println!("and {} more: {again:?}", total / 2);
    for (once, twice) in after.iter().zip(&again) {
        assert!(twice.0 <= once.0 + 32, "{once:?} -> {twice:?}");
    }
    Ok(())
}

/// One connection; some end by reset, some send enough to be spliced.
fn one(number: u64) -> Result<()> {
    let mut stream = TcpStream::connect(at_hub(PORT))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let size = match number % 16 {
        0 => 300 << 10,
        _ => 100,
    };
    let sent = vec![5; size];
    let mut got = vec![0; size];
    std::thread::scope(|scope| -> Result<()> {
        let mut writer = stream.try_clone()?;
        let writing = scope.spawn(move || writer.write_all(&sent));
        stream
            .read_exact(&mut got)
            .with_context(|| number.to_string())?;
        writing.join().expect("writing does not panic")?;
        Ok(())
    })?;
    ensure!(got.iter().all(|byte| *byte == 5), "an echo");
    if number.is_multiple_of(5) {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    Ok(())
}

//! Why connections ended, as counters and as lines of the flow log.

use std::net::Shutdown;

use socket2::SockRef;

use super::*;

/// Lines of the flow log in what the data plane printed.
fn lines(rig: &Observed) -> Vec<Value> {
    let log = rig.dataplane.log();
    let lines = log.lines().filter(|line| line.contains("\"closer\":"));
    lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// A service whose connections end as they are told by their first byte.
fn serve(site: &Namespace) -> Result<()> {
    let listener = site.run(|| TcpListener::bind((SITE, SERVICE)))?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut first = [0];
                if stream.read_exact(&mut first).is_err() {
                    return;
                }
                let _ = stream.write_all(b"here");
                if first[0] == b'-' {
                    let _ = stream.read_to_end(&mut Vec::new());
                    return;
                }
                // The client has its answer.
                let _ = stream.read_exact(&mut [0]);
                if first[0] == b'r' {
                    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                }
            });
        }
    });
    Ok(())
}

#[test]
fn each_end_has_its_reason_and_its_side() -> Result<()> {
    if !observing("each_end_has_its_reason_and_its_side", &[]) {
        return Ok(());
    }
    let mut rig = Observed::start(&["--ebpf", "require", "--flowlog", "all"])?;
    // Lines of the flow log are no complaints.
    rig.dataplane.expect(&["\"closer\":"]);
    serve(&rig.bed.site)?;
    let open = |first: u8| -> Result<TcpStream> {
        wait_for("an answer", START_MAX, || {
            rig.bed.client.run(|| {
                let mut stream = TcpStream::connect(at_hub(PORT)).ok()?;
                stream
                    .set_read_timeout(Some(Duration::from_secs(10)))
                    .ok()?;
                stream.write_all(&[first]).ok()?;
                stream.read_exact(&mut [0; 4]).ok()?;
                Some(stream)
            })
        })
    };
    // FIN of the client, FIN of the service, RST of the client, RST of the service.
    let mut stream = open(b'-')?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    let mut stream = open(b'f')?;
    stream.write_all(b"!")?;
    stream.read_to_end(&mut Vec::new())?;
    drop(stream);
    let stream = open(b'-')?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    let mut stream = open(b'r')?;
    stream.write_all(b"!")?;
    assert!(stream.read_to_end(&mut Vec::new()).is_err());
    let wanted = [
        ("finished", "client"),
        ("finished", "service"),
        ("client_reset", "client"),
        ("upstream_reset", "service"),
    ];
    // Those that had an answer: a look at the listener is a connection too.
    let end = |line: &Value| {
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        (text("reason"), text("closer"))
    };
    let told = wait_for("the lines of four ends", Duration::from_secs(15), || {
        let mut lines = lines(&rig);
        lines.retain(|line| line["to_client"] == 4);
        (lines.len() >= wanted.len()).then_some(lines)
    })?;
    let ends: Vec<_> = told.iter().map(end).collect();
    println!("{ends:?}\n{}", told[0]);
    for (reason, closer) in wanted {
        let is_told = ends.contains(&(reason.to_owned(), closer.to_owned()));
        assert!(is_told, "{reason} by {closer} is not among {ends:?}");
    }
    for line in &told {
        for leg in line["legs"].as_array().context("legs")? {
            assert_eq!(leg["kernel"], true, "{line}");
            assert!(
                leg["rtt_min_us"].as_u64().is_some_and(|us| us > 0),
                "{line}"
            );
        }
    }
    // Killed, the agent takes its pairs along; its kernel resets them.
    let mut stream = open(b'-')?;
    rig.agent.expect(&["\"session ended\""]);
    rig.agent.kill_9()?;
    assert!(stream.read_to_end(&mut Vec::new()).is_err());
    let after = wait_for("the last close", Duration::from_secs(15), || {
        let after = rig.scrape().ok()?;
        let labels = [
            ("cluster", "dev"),
            ("leg", "client"),
            ("reason", "upstream_reset"),
        ];
        (after.sum("culvert_connections_closed_total", &labels) == 2.0).then_some(after)
    })?;
    let closed = |reason| {
        let labels = [("cluster", "dev"), ("leg", "data"), ("reason", reason)];
        after.sum("culvert_connections_closed_total", &labels)
    };
    assert_eq!(
        (closed("client_reset"), closed("upstream_reset")),
        (1.0, 2.0)
    );
    assert!(closed("finished") >= 2.0, "warm channels end too");
    Ok(())
}

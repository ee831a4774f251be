//! Why connections ended, as counters and as lines of the flow log.

use std::net::Shutdown;

use culvert_perf::testbed::{BlackHole, Way};

use socket2::SockRef;

use super::*;

/// From the first answer of a service to its next words.
const LATE: Duration = Duration::from_secs(3);

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
                if first[0] == b'l' {
                    // Late, when nobody acknowledges any more.
                    std::thread::sleep(LATE);
                    let _ = stream.write_all(&[7; 4096]);
                }
                if first[0] == b'-' || first[0] == b'l' {
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

/// A connection that told the service how it ends, and has its answer.
fn open(bed: &Testbed, first: u8) -> Result<TcpStream> {
    wait_for("an answer", START_MAX, || {
        bed.client.run(|| {
            let mut stream = TcpStream::connect(at_hub(PORT)).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .ok()?;
            stream.write_all(&[first]).ok()?;
            stream.read_exact(&mut [0; 4]).ok()?;
            Some(stream)
        })
    })
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
    let open = |first| open(&rig.bed, first);
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

/// A client's host that is gone says nothing: one connection idles and its keep-alive finds out, one
/// has bytes on the way that nobody acknowledges.
#[test]
fn a_client_that_vanished_is_dead_and_not_done() -> Result<()> {
    if !observing("a_client_that_vanished_is_dead_and_not_done", &[]) {
        return Ok(());
    }
    let mut rig = Observed::start(&["--ebpf", "require", "--flowlog", "all"])?;
    rig.dataplane.expect(&["\"closer\":"]);
    serve(&rig.bed.site)?;
    let _idle = open(&rig.bed, b'-')?;
    let _busy = open(&rig.bed, b'l')?;
    // What the hub sends leaves it, and nothing of the client comes: to TCP it is on the way.
    let hole = BlackHole::dig(&rig.bed.hub, &rig.bed.client, Way::In, at_hub(PORT))?;
    // A keep-alive begins after 15 s and gives up 15 s later; bytes on the way, sooner.
    let told = wait_for("the lines of both", Duration::from_secs(100), || {
        let mut lines = lines(&rig);
        // A probe of the port is a connection that had no answer.
        lines.retain(|line| line["to_client"].as_u64().is_some_and(|bytes| bytes >= 4));
        (lines.len() >= 2).then_some(lines)
    })?;
    println!("after {:?}: {told:#?}", hole.since().elapsed());
    for line in &told {
        assert_eq!(
            (&line["reason"], &line["closer"]),
            (&"client_dead".into(), &"client".into())
        );
        let client = &line["legs"][0];
        assert_eq!(
            (&client["leg"], &client["kernel"]),
            (&"client".into(), &true.into())
        );
    }
    let unacked = |line: &Value| line["legs"][0]["unacked"].as_u64().unwrap_or(0);
    let lost = told.iter().filter(|line| unacked(line) > 0).count();
    assert_eq!(
        lost, 1,
        "bytes that were on the way, and in one of them only"
    );
    let after = rig.scrape()?;
    let labels = [
        ("cluster", "dev"),
        ("leg", "client"),
        ("reason", "client_dead"),
    ];
    assert_eq!(after.sum("culvert_connections_closed_total", &labels), 2.0);
    drop(hole);
    Ok(())
}

/// A service's process that is killed with bytes of the client unread: its kernel resets.
#[test]
fn a_service_that_is_killed_resets_and_does_not_finish() -> Result<()> {
    if !observing("a_service_that_is_killed_resets_and_does_not_finish", &[]) {
        return Ok(());
    }
    let mut rig = Observed::start(&["--ebpf", "require", "--flowlog", "all"])?;
    rig.dataplane.expect(&["\"closer\":"]);
    // In front of somebody who never reads: the bytes of the client stay in the process.
    let deaf = rig.bed.site.run(|| TcpListener::bind((SITE, 0)))?;
    let relay = Spawn::new(binary("culvert-perf")?)
        .args([
            "relay",
            "epoll-copy",
            "--listen",
            &format!("{SITE}:{SERVICE}"),
        ])
        .args(["--to", &deaf.local_addr()?.to_string()]);
    let mut service = relay.start(&rig.bed, &rig.bed.site, "service")?;
    service.wait_port(&rig.bed.site, (SITE, SERVICE).into(), START_MAX)?;
    let mut client = rig.bed.client.run(|| TcpStream::connect(at_hub(PORT)))?;
    client.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut sent = 0;
    // Until every buffer on the way is full.
    while let Ok(wrote) = client.write(&[7; 65_536]) {
        sent += wrote;
    }
    service.kill_9()?;
    client.set_read_timeout(Some(Duration::from_secs(20)))?;
    let ended = client.read(&mut [0]);
    assert!(ended.is_err(), "{ended:?}");
    let told = wait_for("its line", Duration::from_secs(20), || {
        let mut lines = lines(&rig);
        lines.retain(|line| line["to_service"].as_u64().is_some_and(|bytes| bytes > 0));
        lines.pop()
    })?;
    println!("{sent} bytes taken from the client: {told:#}");
    assert_eq!(
        (&told["reason"], &told["closer"]),
        (&"upstream_reset".into(), &"service".into())
    );
    let delivered = told["to_service"].as_u64().context("bytes")?;
    assert!(delivered < sent as u64, "{delivered} of {sent}");
    let data = &told["legs"][1];
    assert_eq!(
        (&data["leg"], &data["kernel"]),
        (&"data".into(), &true.into())
    );
    let after = rig.scrape()?;
    for leg in ["client", "data"] {
        let labels = [
            ("cluster", "dev"),
            ("leg", leg),
            ("reason", "upstream_reset"),
        ];
        assert_eq!(
            after.sum("culvert_connections_closed_total", &labels),
            1.0,
            "{leg}"
        );
    }
    Ok(())
}

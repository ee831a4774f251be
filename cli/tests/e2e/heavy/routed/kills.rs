//! kill -9 of either end at every stage of a flow: nobody is told a clean end, and what comes
//! after works.

use std::net::TcpListener;
use std::sync::mpsc;

use super::*;
use crate::flood::{end_of, serve};
use crate::routed::agent;
use crate::watched::HUB_GONE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The service does not answer the agent's dial.
    Dialling,
    /// Joined, nothing said.
    Joined,
    /// In the middle of a flood to the client.
    Bulk,
    /// The client's FIN is through, the flood goes on.
    HalfClosed,
}

const STAGES: [Stage; 4] = [
    Stage::Dialling,
    Stage::Joined,
    Stage::Bulk,
    Stage::HalfClosed,
];

/// The first client that says something: others only looked whether somebody listens.
fn speaker(listener: &TcpListener) -> TcpStream {
    loop {
        let (stream, _) = listener.accept().expect("a listener accepts");
        if matches!(stream.peek(&mut [0]), Ok(1)) {
            return stream;
        }
    }
}

fn killed_at(rig: &mut Routed, stage: Stage, hub: bool) -> Result<()> {
    let listener = rig.bed.site.run(|| TcpListener::bind(service()))?;
    if stage == Stage::Dialling {
        rig.bed.site.nft(&format!(
            "table inet mute {{ chain in {{ type filter hook input priority -200; \
             tcp dport {SERVICE} drop; }}; }}"
        ))?;
    }
    let (tell, told) = mpsc::channel();
    let floods = matches!(stage, Stage::Bulk | Stage::HalfClosed);
    let serving = std::thread::spawn(move || serve(speaker(&listener), floods, &tell));
    let mut stream = rig.bed.client.run(|| TcpStream::connect(at_hub(PORT)))?;
    stream.write_all(b"hello")?;
    if stage != Stage::Dialling {
        wait_for("the pair", Duration::from_secs(20), || {
            (rig.metric("culvert_engine_pairs").ok()? == 1.0).then_some(())
        })?;
    } else {
        wait_for("the agent's dial", Duration::from_secs(20), || {
            let dials = rig.bed.site.output("ss", &["-Htn", "state", "syn-sent"]);
            dials.ok().filter(|dials| !dials.trim().is_empty())
        })?;
    }
    if floods {
        let mut piece = vec![0; 4 << 20];
        stream.read_exact(&mut piece)?;
    }
    if stage == Stage::HalfClosed {
        stream.shutdown(std::net::Shutdown::Write)?;
        let ended = told.recv_timeout(Duration::from_secs(20))?;
        assert!(ended.is_ok(), "{stage:?}: FIN comes through: {ended:?}");
    }
    let killed = match hub {
        true => &mut rig.dataplane,
        false => &mut rig.agent,
    };
    killed.kill_9()?;
    let start = Instant::now();
    let ended = end_of(&mut stream);
    let seen = ended.as_ref().err().map(std::io::Error::kind);
    println!(
        "{stage:?}, hub {hub}: the client hears {seen:?} after {:?}",
        start.elapsed()
    );
    assert_eq!(
        seen,
        Some(std::io::ErrorKind::ConnectionReset),
        "{stage:?}: {ended:?}"
    );
    if matches!(stage, Stage::Joined | Stage::Bulk) {
        let ended = told.recv_timeout(Duration::from_secs(20))?;
        assert!(
            ended.is_err(),
            "{stage:?}: the service was told a clean end"
        );
    }
    if stage == Stage::Dialling {
        rig.bed.site.nft("delete table inet mute")?;
        // Ends the service, which nobody reached.
        let mut last = rig.bed.site.run(|| TcpStream::connect(service()))?;
        last.write_all(b"bye")?;
    }
    drop(stream);
    serving.join().expect("the service does not panic");
    Ok(())
}

/// A flow that works from end to end.
fn works(rig: &Routed) -> Result<()> {
    let listener = rig.bed.site.run(|| TcpListener::bind(service()))?;
    let serving = std::thread::spawn(move || -> Result<()> {
        let mut stream = speaker(&listener);
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)?;
        Ok(())
    });
    let answer = wait_for("a flow", Duration::from_secs(30), || {
        rig.bed.client.run(|| {
            let mut stream = TcpStream::connect(at_hub(PORT)).ok()?;
            stream.write_all(b"once more").ok()?;
            stream.shutdown(std::net::Shutdown::Write).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            (!answer.is_empty()).then_some(answer)
        })
    })?;
    assert_eq!(answer, "once more");
    serving.join().expect("the service does not panic")
}

#[test]
fn the_agent_is_killed_at_every_stage() -> Result<()> {
    if !ready("the_agent_is_killed_at_every_stage", &[]) {
        return Ok(());
    }
    let mut rig = rig(&[PLAINTEXT])?;
    works(&rig)?;
    let before = descriptors(&rig.dataplane)?.0;
    for stage in STAGES {
        killed_at(&mut rig, stage, false)?;
        let raw = format!("raw={SITE}:{SERVICE}");
        let flags = ["--service", raw.as_str(), PLAINTEXT];
        rig.agent = agent(&rig.bed.site, &flags).start(&rig.bed)?;
        works(&rig)?;
    }
    wait_idle(&rig)?;
    let after = descriptors(&rig.dataplane)?.0;
    println!("descriptors of the hub: {before} before, {after} after");
    assert!(after <= before + 16);
    Ok(())
}

#[test]
fn the_hub_is_killed_at_every_stage() -> Result<()> {
    if !ready("the_hub_is_killed_at_every_stage", &[]) {
        return Ok(());
    }
    let mut rig = rig(&[PLAINTEXT])?;
    rig.agent.expect(HUB_GONE);
    works(&rig)?;
    let before = descriptors(&rig.agent)?.0;
    for (number, stage) in STAGES.into_iter().enumerate() {
        killed_at(&mut rig, stage, true)?;
        let clusters = rig.bed.path("clusters.json").to_string_lossy().into_owned();
        let flags = ["--clusters", &clusters, PLAINTEXT];
        rig.dataplane = crate::hub::dataplane(&rig.bed, &format!("dataplane-{number}"), &flags)?;
        wait_listening(&rig.bed, PORT)?;
        works(&rig)?;
    }
    wait_for("the agent to let go", Duration::from_secs(30), || {
        let after = descriptors(&rig.agent).ok()?.0;
        (after <= before + 16).then_some(())
    })
}

//! Routes and personal tokens from control's command line to a client's connection, and what
//! taking them away does to connections that live.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_perf::testbed::{HUB_FOR_CLIENT, Namespace, SITE, Spawn, wait_for};

use super::{PLAINTEXT, at_hub, bed, run, wait_listening};
use crate::control::Control;
use crate::hub::{Agent, PUBLIC, START_MAX, binary, dataplane, ready};
use crate::watched::Watched;

const PORT: u16 = 15_001;
const LOCAL: u16 = 15_555;
/// From a decision of control to the end of what it took the right from.
const CUT_MAX: Duration = Duration::from_secs(1);

fn echo(listener: &TcpListener) {
    for mut stream in listener.incoming().map_while(Result::ok) {
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(got @ 1..) = stream.read(&mut piece) {
                if stream.write_all(&piece[..got]).is_err() {
                    return;
                }
            }
        });
    }
}

/// A connection that has echoed.
fn echoed(from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    wait_for("an echo", START_MAX, || {
        from.run(|| {
            let mut stream = TcpStream::connect(to).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            stream.write_all(b"who is there?").ok()?;
            let mut answer = [0; 13];
            stream.read_exact(&mut answer).ok()?;
            (&answer == b"who is there?").then_some(stream)
        })
    })
}

/// A text in what the command line printed of a new thing.
fn text(json: &str, pointer: &str) -> Result<String> {
    let value: serde_json::Value = serde_json::from_str(json)?;
    let text = value.pointer(pointer).and_then(|it| it.as_str());
    Ok(text
        .with_context(|| format!("{pointer} in {json}"))?
        .to_owned())
}

/// How long until `stream` is broken off; FIN would be a lie.
fn cut(stream: &mut TcpStream) -> Result<Duration> {
    let start = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    match stream.read(&mut [0; 16]) {
        Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => Ok(start.elapsed()),
        other => anyhow::bail!("not a reset: {other:?}"),
    }
}

#[test]
fn control_leads_clients_to_services_and_takes_it_back() -> Result<()> {
    if !ready("control_leads_clients_to_services_and_takes_it_back", &[]) {
        return Ok(());
    }
    let bed = bed()?;
    let listener = bed.site.run(|| TcpListener::bind((SITE, 5_000)))?;
    std::thread::spawn(move || echo(&listener));
    let control = Control::start(&bed, "control")?;
    let agent_token = control.add("dev")?;
    let state = bed.path("dataplane-state").to_string_lossy().into_owned();
    let arguments = ["--control", &control.link, "--state-dir", &state, PLAINTEXT];
    let _dataplane = dataplane(&bed, "dataplane", &arguments)?;
    control.settled()?;
    let service = format!("echo={SITE}:5000");
    let _agent = Agent::plain(&bed.site, "agent", &agent_token, (SITE, 1).into())
        .with(&["--service", &service, PLAINTEXT])
        .start(&bed)?;
    let culvert = binary("culvert")?.to_string_lossy().into_owned();
    let api = format!("unix:{}", bed.path("admin.sock").display());
    let ask = |arguments: &[&str]| {
        run(
            &bed.hub,
            &culvert,
            &[arguments, &["--api", &api, "-o", "json"]].concat(),
        )
    };

    let listen = format!("0.0.0.0:{PORT}");
    let route = ask(&["route", "add", "dev", "echo", "--tcp", &listen])?;
    wait_listening(&bed, PORT)?;
    let mut forwarded = echoed(&bed.client, at_hub(PORT))?;

    let grant = ["--principal", "alice", "--grant", "dev/echo"];
    let minted = ask(&[&["personal-token", "mint"], &grant[..]].concat())?;
    let file = bed.path("alice.token");
    std::fs::write(&file, text(&minted, "/token")?)?;
    let spawn = Spawn::new(binary("culvert-agent")?)
        .args([
            "forward",
            "--hub",
            &format!("http://{HUB_FOR_CLIENT}:{PUBLIC}"),
        ])
        .args(["--token-file", &file.to_string_lossy()])
        .args(["--cluster", "dev", "--service", "echo"])
        .args(["--listen", &format!("127.0.0.1:{LOCAL}")])
        .args(["--allow-insecure-server"]);
    let mut laptop = Watched::start(spawn, &bed, &bed.client, "forward")?;
    laptop.expect(&["forwarding 127.0.0.1", "unauthenticated"]);
    let local = ([127, 0, 0, 1], LOCAL).into();
    let mut personal = echoed(&bed.client, local)?;

    ask(&[
        "route",
        "remove",
        "dev",
        &text(&route, "/route/route_id")?,
        "--yes",
    ])?;
    let took = cut(&mut forwarded)?;
    println!("the route is removed: its connection is cut after {took:?}");
    assert!(took < CUT_MAX);
    wait_for("the port to close", START_MAX, || {
        (!bed.client.probe(at_hub(PORT))).then_some(())
    })?;
    personal.write_all(b"still")?;
    personal.read_exact(&mut [0; 5])?;

    ask(&[
        "personal-token",
        "revoke",
        &text(&minted, "/token_id")?,
        "--yes",
    ])?;
    let took = cut(&mut personal)?;
    println!("the token is revoked: its connection is cut after {took:?}");
    assert!(took < CUT_MAX);
    let mut late = bed.client.run(|| TcpStream::connect(local))?;
    let refused = late
        .write_all(b"hello")
        .and_then(|()| late.read(&mut [0; 5]));
    assert!(!matches!(refused, Ok(1..)), "{refused:?}");
    Ok(())
}

//! The six commands of docs/pair.md as they stand there, and what comes after them: a second use of
//! the join string, a restart from the state, `validate`, `debug` and `register`.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{
    HUB_FOR_CLIENT, HUB_FOR_SITE, Namespace, Process, SITE, Spawn, Testbed,
};

use super::{BROKER, RELAY, bed, wait_ready};
use crate::hub::{START_MAX, binary, ready};
use crate::mtls::Authority;
use crate::routed::postgres::{Postgres, USER};
use crate::routed::run;
use crate::watched::Watched;

const PAGE: &str = include_str!("../../../../docs/pair.md");
/// The relay's name in the page.
const NAME: &str = "relay.example.com";
/// The store and the state of the page.
const STORE: &str = "file:/var/lib/culvert-bridge";
const STATE: &str = "file:/var/lib/culvert-broker";
/// A bridge notices what was registered within this time.
const NOTICE_MAX: Duration = Duration::from_secs(5);

/// The commands of the page's first section.
fn commands() -> Result<[&'static str; 6]> {
    let section = PAGE
        .split("## From nothing to psql in six commands\n")
        .nth(1);
    let section = section.and_then(|rest| rest.split("\n## ").next());
    let lines = section.context("the section")?.lines();
    let found: Vec<&str> = lines.filter_map(|line| line.strip_prefix("    ")).collect();
    let count = found.len();
    found
        .try_into()
        .ok()
        .with_context(|| format!("{count} commands"))
}

/// One side's computer: a directory to type in, a `/var/lib`, an `/etc/hosts` and roots of its own.
struct Host<'a> {
    bed: &'a Testbed,
    at: &'a Namespace,
    home: PathBuf,
    set_up: String,
}

impl<'a> Host<'a> {
    fn new(bed: &'a Testbed, at: &'a Namespace, name: &str, hosts: &str, ca: &str) -> Result<Self> {
        let home = bed.path(name);
        std::fs::create_dir_all(home.join("var-lib"))?;
        std::fs::write(
            home.join("hosts"),
            format!("127.0.0.1 localhost\n{hosts}\n"),
        )?;
        let programs = binary("culvert")?;
        let programs = programs.parent().context("a directory")?.display();
        let set_up = format!(
            "set -e; cd {}; mount --bind var-lib /var/lib; mount --bind hosts /etc/hosts; \
             export PATH={programs}:$PATH SSL_CERT_FILE={ca}; umask 022; ",
            home.display()
        );
        Ok(Host {
            bed,
            at,
            home,
            set_up,
        })
    }

    /// Types a command and waits for its end.
    fn types(&self, command: &str, input: &str) -> Result<Output> {
        let mut shell = self
            .at
            .command("sh")
            .args(["-c", &format!("{}{command}", self.set_up)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = shell.stdin.take().context("its input")?;
        // One that reads nothing has ended already.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        Ok(shell.wait_with_output()?)
    }

    /// Types a command that has to succeed; what it printed.
    fn succeeds(&self, command: &str, input: &str) -> Result<String> {
        let output = self.types(command, input)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{command}: {}: {said}",
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Types a command that goes on.
    fn starts(&self, command: &str, name: &str) -> Result<Watched> {
        let line = format!("{}exec {command}", self.set_up);
        let spawn = Spawn::new("sh").args(["-c", &line]);
        Watched::start(spawn, self.bed, self.at, name)
    }
}

/// The three computers of the page, with what their owners have before they begin.
struct Hosts<'a> {
    relay: Host<'a>,
    service: Host<'a>,
    app: Host<'a>,
}

impl<'a> Hosts<'a> {
    fn new(bed: &'a Testbed) -> Result<Hosts<'a>> {
        let authority = Authority::new()?;
        let ca = authority.write(&bed.path("roots.pem"))?;
        let host = |at, name, address| {
            let hosts = format!("{address} {NAME}");
            Host::new(bed, at, name, &hosts, &ca)
        };
        let relay = host(&bed.hub, "relay-host", HUB_FOR_CLIENT)?;
        let (cert, _) = authority.issue(&[NAME.to_owned()], false, &relay.home.join("relay"))?;
        std::fs::rename(cert, relay.home.join("relay.crt"))?;
        Ok(Hosts {
            relay,
            service: host(&bed.site, "db-host", HUB_FOR_SITE)?,
            app: host(&bed.client, "app-host", HUB_FOR_CLIENT)?,
        })
    }
}

/// How often a log says a message.
fn says(process: &Process, message: &str) -> usize {
    process.log().matches(message).count()
}

/// A second broker with the same word hears that it is used, from both sides.
fn second_use(hosts: &Hosts<'_>, broker: &str, bridge: &mut Watched) -> Result<()> {
    let again = broker
        .replace("8199", "8200")
        .replace("culvert-broker", "culvert-second");
    let again = format!("{again} --health-addr 127.0.0.1:8082");
    // The bridge has seen in its store that the word is used.
    bridge.wait_log("the pairing code is over", START_MAX)?;
    bridge.expect(&["a broker got no certificate"]);
    let begun = Instant::now();
    let mut second = hosts.app.starts(&again, "second")?;
    second.expect(&["\"no certificate\""]);
    second.wait_log("the pairing code is wrong, used or expired", START_MAX)?;
    bridge.wait_log("the pairing code has been used", START_MAX)?;
    println!("the second broker was refused after {:?}", begun.elapsed());
    second.terminate()?;
    second.wait_end(START_MAX)?;
    Ok(())
}

/// What the two verbs say of a pair that is well, and of one that is not.
fn looked_at(hosts: &Hosts<'_>) -> Result<()> {
    let good = [
        (&hosts.service, format!("--store {STORE}")),
        (&hosts.app, format!("--state {STATE} --relay {NAME}")),
    ];
    for (host, flags) in &good {
        let said = host.succeeds(&format!("culvert pair validate {flags}"), "")?;
        ensure!(said.contains("ok") && !said.contains("FAILED"), "{said}");
        let debug = format!("culvert pair debug {flags} --file bundle.json");
        host.succeeds(&debug, "")?;
        let bundle = std::fs::read_to_string(host.home.join("bundle.json"))?;
        let word = ["PRIVATE KEY", "cvf_", "cvr_"];
        ensure!(bundle.contains("info_hash") && !word.iter().any(|it| bundle.contains(it)));
        // The file is there by now.
        let twice = host.types(&debug, "")?;
        ensure!(twice.status.code() == Some(2), "{twice:?}");
    }
    let bad = format!("culvert pair validate --state {STATE} --relay {NAME}:444");
    let output = hosts.app.types(&bad, "")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(said.contains("FAILED"), "{said}");
    let empty = hosts
        .app
        .types("culvert pair validate --store file:/var/lib/none", "")?;
    ensure!(!empty.status.success(), "{empty:?}");
    let nothing = hosts.app.types("culvert pair validate", "")?;
    ensure!(nothing.status.code() == Some(2), "{nothing:?}");
    Ok(())
}

/// A second pair, begun by the broker's side: the running bridge serves it within seconds.
fn registered(hosts: &Hosts<'_>, bridge: &mut Watched) -> Result<()> {
    let state = "--state file:/var/lib/other";
    let code = hosts
        .app
        .succeeds(&format!("culvert pair fingerprint {state}"), "")?;
    let served = says(bridge, "the pair is served");
    let register =
        format!("culvert pair register --fingerprint - --store {STORE} --relay {NAME}:443");
    hosts.service.succeeds(&register, &code)?;
    let since = Instant::now();
    bridge.wait_until("the new pair is served", NOTICE_MAX, |process| {
        (says(process, "the pair is served") > served).then_some(())
    })?;
    println!("noticed {:?} after it was registered", since.elapsed());
    let broker = format!(
        "culvert-agent broker --listen 127.0.0.1:8201 {state} --relay {NAME} \
         --health-addr 127.0.0.1:8083"
    );
    let mut broker = hosts.app.starts(&broker, "other")?;
    broker.wait_log("the bridge gave this broker its certificate", START_MAX)?;
    let psql = "psql -h 127.0.0.1 -p 8201 -U app -Atc 'select 1'";
    ensure!(hosts.app.succeeds(psql, "")?.trim() == "1");
    Ok(())
}

#[test]
fn the_six_commands_of_the_page() -> Result<()> {
    if !ready(
        "the_six_commands_of_the_page",
        &["psql", "setpriv", "mount"],
    ) {
        return Ok(());
    }
    let [relay, init, bridge, scp, broker, psql] = commands()?;
    ensure!(scp.starts_with("scp ") && psql.starts_with("psql "));
    let bed = bed()?;
    let _postgres = Postgres::start(&bed)?;
    let at = SITE.to_string();
    for sql in ["create role app login", "create database app owner app"] {
        run(&bed.site, "psql", &["-h", &at, "-U", USER, "-c", sql])?;
    }
    let hosts = Hosts::new(&bed)?;
    let begun = Instant::now();
    let step = |what: &str| println!("{:>9.3?} {what}", begun.elapsed());

    let mut relay = hosts.relay.starts(relay, "relay")?;
    relay.wait_port(&bed.client, (HUB_FOR_CLIENT, RELAY).into(), START_MAX)?;
    hosts.service.succeeds(init, "")?;
    let mut bridge = hosts.service.starts(bridge, "bridge")?;
    // Carried there on a way that we trust.
    let word = "db-eu.join";
    std::fs::copy(hosts.service.home.join(word), hosts.app.home.join(word))?;
    let mut first = hosts.app.starts(broker, "broker")?;
    first.wait_port(&bed.client, BROKER, START_MAX)?;
    let asked = |sql: &str| hosts.app.succeeds(psql, &format!("\\t\n{sql};\n"));
    let answer = asked("select 6 * 7")?;
    ensure!(answer.contains("42"), "{answer}");
    wait_ready(&mut bridge, &bed.site)?;
    wait_ready(&mut first, &bed.client)?;
    step("psql");

    second_use(&hosts, broker, &mut bridge)?;

    // From its state, with the used word still there, and without it.
    first.terminate()?;
    ensure!(first.wait_end(START_MAX)?.success(), "{}", first.log());
    step("the second use is refused, the first broker stopped");
    let mut again = hosts.app.starts(broker, "again")?;
    wait_ready(&mut again, &bed.client)?;
    ensure!(asked("select 6 * 8")?.contains("48"));
    step("the broker is back");
    again.terminate()?;
    again.wait_end(START_MAX)?;
    std::fs::remove_file(hosts.app.home.join(word))?;
    let kept =
        format!("culvert-agent broker --listen 127.0.0.1:8199 --state {STATE} --relay {NAME}");
    let mut kept = hosts.app.starts(&kept, "kept")?;
    wait_ready(&mut kept, &bed.client)?;
    ensure!(asked("select 6 * 9")?.contains("54"));
    for process in [&again, &kept] {
        ensure!(says(process, "gave this broker its certificate") == 0);
    }

    step("the broker is back without the word");

    looked_at(&hosts)?;
    step("validate and debug");
    registered(&hosts, &mut bridge)?;
    step("a second pair");
    Ok(())
}

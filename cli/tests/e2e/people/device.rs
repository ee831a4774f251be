//! An agent without a credential asks, and an administrator decides (C-11): the real programs.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{HUB_FOR_SITE, Layout, Namespace, Spawn, Testbed, wait_for};
use serde_json::{Value, json};

use super::hub::{CONTROL_API, PASSWORD, start_dataplane};
use crate::client::{self, Answer};
use crate::control::Control;
use crate::hub::{PUBLIC, START_MAX, binary, public, ready, wait_served};
use crate::upstream::Upstream;
use crate::watched::Watched;

/// Two answers to polls, and what lies between.
const DECIDED_MAX: Duration = Duration::from_secs(20);
const PLAIN: &str = "Accept: application/json";
const WAITING: &str = "waiting for an administrator";

struct Site {
    _dataplane: Watched,
    control: Control,
    upstream: Upstream,
    bed: Testbed,
}

impl Site {
    fn start(further: &[&str]) -> Result<Site> {
        let bed = Testbed::new(Layout::default())?;
        let password = bed.path("cookie-password");
        std::fs::write(&password, PASSWORD)?;
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600))?;
        let (url, file) = (front(), password.to_string_lossy().into_owned());
        let mut flags = vec!["--public-url", &url, "--listen", CONTROL_API];
        flags.extend(["--cookie-password-file", &file]);
        flags.extend(further);
        let flags: Vec<_> = flags.into_iter().map(str::to_owned).collect();
        let store = bed.path("control.db");
        let control = Control::told(&bed, "control", "state.sock", &store, &flags)?;
        let dataplane = start_dataplane(&bed, "dataplane", &control.link, &[])?;
        let upstream = Upstream::start(&bed.site)?;
        let site = Site {
            _dataplane: dataplane,
            control,
            upstream,
            bed,
        };
        wait_for("control behind the data plane", START_MAX, || {
            let answer = site.ask("GET", "/api/auth/config", PLAIN).ok()?;
            (answer.status == 200).then_some(())
        })?;
        Ok(site)
    }

    fn ask(&self, method: &str, path: &str, line: &str) -> Result<Answer> {
        ask(&self.bed.site, method, path, line)
    }

    /// An agent that has nothing but the hub's address.
    fn agent(&self, name: &str) -> Result<Watched> {
        let spawn = Spawn::new(binary("culvert-agent")?)
            .args(["connect", "prod", "--hub", &front()])
            .args(["--allow-insecure-server", "--plain-target"])
            .args(["--target-kind", "http"])
            .args(["--target", &self.upstream.address.to_string()])
            .args(["--health-addr", "127.0.0.1:8081"])
            .args([
                "--state-dir",
                &self.bed.path("agent-state").to_string_lossy(),
            ]);
        Watched::start(spawn, &self.bed, &self.bed.site, name)
    }

    /// The command line on control's machine.
    fn cli(&self, arguments: &[&str]) -> Result<String> {
        let api = format!("unix:{}", self.bed.path("admin.sock").display());
        let mut all = vec!["--api", &api];
        all.extend(arguments);
        let program = binary("culvert")?;
        self.bed.hub.output(&program.to_string_lossy(), &all)
    }

    fn requests(&self) -> Result<Vec<Value>> {
        let text = self.cli(&["connect", "ls", "--output", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().context("a list")?.clone())
    }
}

fn front() -> String {
    format!("http://{HUB_FOR_SITE}:{PUBLIC}")
}

/// From the private side to the front, which has the name that control knows.
fn ask(from: &Namespace, method: &str, path: &str, line: &str) -> Result<Answer> {
    let raw = format!(
        "{method} {path} HTTP/1.1\r\nHost: {HUB_FOR_SITE}:{PUBLIC}\r\nConnection: close\r\n\
         {line}\r\nContent-Length: 0\r\n\r\n"
    );
    let answer = client::exchange(from, public(), raw.as_bytes())?;
    Answer::parse(&answer)
}

/// The code that an agent shows.
fn code(agent: &mut Watched) -> Result<String> {
    agent.wait_log(WAITING, START_MAX)?;
    let log = agent.log();
    let line = log.lines().find(|line| line.contains(WAITING));
    let line: Value = serde_json::from_str(line.context("its line")?)?;
    Ok(line["code"].as_str().context("a code")?.to_owned())
}

#[test]
fn an_administrator_lets_an_agent_in_and_it_serves() -> Result<()> {
    if !ready("an_administrator_lets_an_agent_in_and_it_serves", &[]) {
        return Ok(());
    }
    let site = Site::start(&[])?;
    let mut agent = site.agent("agent")?;
    let code = code(&mut agent)?;
    // A probe finds it alive, and with nothing to serve yet.
    for (path, status) in [("/healthz", 200), ("/readyz", 503), ("/metrics", 200)] {
        let health = ([127, 0, 0, 1], 8081).into();
        let answer = client::get(&site.bed.site, health, path)?;
        ensure!(answer.status == status, "{path}: {}", answer.status);
    }
    let listed = site.requests()?;
    ensure!(listed.len() == 1, "{listed:?}");
    let request = &listed[0];
    assert_eq!(
        (
            &request["user_code"],
            &request["cluster"],
            &request["status"]
        ),
        (&json!(code), &json!("prod"), &json!("pending"))
    );
    assert_eq!(request["agent_version"], env!("CARGO_PKG_VERSION"));
    let from = request["address"].as_str().context("an address")?;
    ensure!(from.parse::<std::net::IpAddr>().is_ok(), "{from}");
    let table = site.cli(&["connect", "ls"])?;
    ensure!(
        table.contains(&code) && table.contains("SAYS HOST"),
        "{table}"
    );
    let mut approve = vec!["connect", "approve", &code, "--cluster", "prod", "--yes"];
    approve.extend(["--create", "--target-kind", "http"]);
    site.cli(&approve)?;
    wait_served(&site.bed, "prod", DECIDED_MAX)?;
    let kept = site.bed.path("agent-state/agent-token");
    let mode = std::fs::metadata(&kept)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = std::fs::read_to_string(&kept)?;
    let token = token.lines().find_map(|line| line.strip_prefix("token "));
    let token = token.context("a token")?.to_owned();
    for log in [agent.log(), site.control.process.log()] {
        ensure!(!log.contains(&token), "a token in a log");
    }
    let rows = site.control.ok("GET", "/api/audit?cluster=prod", None)?;
    let rows = rows["items"].as_array().context("rows")?;
    let verbs: Vec<_> = rows.iter().map(|row| row["verb"].clone()).collect();
    assert_eq!(verbs, ["token_mint", "agent_register", "cluster_create"]);

    // The next start has the token, and asks nobody.
    agent.terminate()?;
    agent.wait_end(START_MAX)?;
    let again = site.agent("agent-again")?;
    wait_served(&site.bed, "prod", DECIDED_MAX)?;
    ensure!(!again.log().contains(WAITING), "{}", again.log());
    ensure!(site.requests()?.is_empty());
    Ok(())
}

#[test]
fn a_refused_and_a_forgotten_agent_end_and_say_why() -> Result<()> {
    if !ready("a_refused_and_a_forgotten_agent_end_and_say_why", &[]) {
        return Ok(());
    }
    let site = Site::start(&["--connect-life", "5s"])?;
    let mut agent = site.agent("refused")?;
    agent.expect(&["culvert-agent cannot run"]);
    let code = code(&mut agent)?;
    site.cli(&["connect", "deny", &code, "--yes"])?;
    let status = agent.wait_end(DECIDED_MAX)?;
    ensure!(status.code() == Some(1), "{status}");
    let log = agent.log();
    ensure!(log.contains("an administrator refused this agent"), "{log}");

    let mut agent = site.agent("forgotten")?;
    agent.expect(&["culvert-agent cannot run"]);
    let status = agent.wait_end(DECIDED_MAX)?;
    ensure!(status.code() == Some(1), "{status}");
    let log = agent.log();
    ensure!(log.contains("nobody decided in time"), "{log}");
    ensure!(!site.bed.path("agent-state/agent-token").exists());
    let refused = site.cli(&["connect", "approve", &code, "--cluster", "prod", "--yes"]);
    let said = format!("{:#}", refused.err().context("nothing is left to approve")?);
    ensure!(said.contains("unknown_connect_request"), "{said}");
    Ok(())
}

#[test]
fn of_sixteen_polls_at_once_one_carries_the_token() -> Result<()> {
    if !ready("of_sixteen_polls_at_once_one_carries_the_token", &[]) {
        return Ok(());
    }
    let site = Site::start(&[])?;
    site.control
        .ok("POST", "/api/clusters", Some(json!({"id": "prod"})))?;
    let begun = site.ask("POST", "/api/connect/requests", PLAIN)?;
    ensure!(begun.status == 201, "{begun:?}");
    let begun: Value = serde_json::from_slice(&begun.body)?;
    let text = |field: &str| begun[field].as_str().unwrap_or_default();
    assert_eq!(
        begun["connect_url"],
        json!(format!("{}/enrol/{}", front(), text("request_id")))
    );
    assert_eq!(
        begun["wss_url"],
        json!(format!("ws://{HUB_FOR_SITE}:{PUBLIC}/agent"))
    );
    let path = format!("/api/connect/requests/{}", text("request_id"));
    let bearer = format!("Authorization: Bearer {}", text("device_secret"));
    let stranger = site.ask("GET", &path, "Authorization: Bearer cvd_x")?;
    ensure!(stranger.status == 404, "{stranger:?}");
    let body = json!({"cluster": "prod"});
    site.control
        .ok("POST", &format!("{path}/approve"), Some(body))?;
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let from = &site.bed.site;
        let poll = || ask(from, "GET", &path, &bearer);
        let polls: Vec<_> = (0..16).map(|_| scope.spawn(poll)).collect();
        let polls = polls.into_iter();
        polls
            .map(|poll| poll.join().expect("no panic"))
            .collect::<Result<_>>()
    })?;
    let mut tokens = 0;
    for answer in &answers {
        let said: Value = serde_json::from_slice(&answer.body)?;
        let has_token = said["token"].is_string();
        ensure!(
            has_token || answer.status == 429 || said["status"] == "consumed",
            "{answer:?}"
        );
        tokens += usize::from(has_token);
    }
    assert_eq!(tokens, 1);
    let held = site.control.ok("GET", "/api/clusters/prod/tokens", None)?;
    assert_eq!(held["items"].as_array().map(Vec::len), Some(1));
    // What is in the store opens nothing.
    let store = std::fs::read(site.bed.path("control.db"))?;
    let wal = std::fs::read(site.bed.path("control.db-wal")).unwrap_or_default();
    for secret in [text("device_secret"), "rhc_"] {
        let is_in = |bytes: &[u8]| {
            bytes
                .windows(secret.len())
                .any(|it| it == secret.as_bytes())
        };
        ensure!(!is_in(&store) && !is_in(&wal), "{secret} lies in the store");
    }
    Ok(())
}

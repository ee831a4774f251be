//! The command line logs in to a hub over TLS, as the administrator and as a machine.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::PROGRAMS;
use super::site::{HUB, PASSWORD, Site};
use crate::hub::{binary, ready};

/// The command line with a login file of its own, away from control's socket.
struct Cli<'a> {
    site: &'a Site,
    login: PathBuf,
}

impl Cli<'_> {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let program = binary("culvert")?;
        let file = self.login.to_string_lossy();
        let mut all = vec!["--login-file", &file];
        all.extend(arguments);
        self.site.bed.hub.output(&program.to_string_lossy(), &all)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["--output", "json"]].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What it says when it fails.
    fn fails(&self, arguments: &[&str]) -> Result<String> {
        let why = self.run(arguments).err().context("it should fail")?;
        Ok(format!("{why:#}"))
    }

    /// It fails, and says this.
    fn fails_with(&self, word: &str, arguments: &[&str]) -> Result<()> {
        let said = self.fails(arguments)?;
        ensure!(said.contains(word), "{word}: {said}");
        Ok(())
    }

    /// Logs in over TLS.
    fn login(&self, arguments: &[&str]) -> Result<String> {
        let ca = self.site.bed.path("ca.crt");
        let ca = ca.to_string_lossy();
        let at = ["login", "--api", HUB, "--api-ca", &ca];
        self.run(&[&at, arguments].concat())
    }
}

fn file(site: &Site, name: &str, text: &str) -> Result<String> {
    let path = site.bed.path(name);
    std::fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
fn a_login_is_tried_kept_used_and_ended() -> Result<()> {
    if !ready("a_login_is_tried_kept_used_and_ended", &PROGRAMS) {
        return Ok(());
    }
    let mut site = Site::start()?;
    site.control.process.expect(&["break-glass login"]);
    let cli = Cli {
        site: &site,
        login: site.bed.path("login/admin.json"),
    };
    let wrong = file(&site, "wrong", "not the password\n")?;
    let email = ["--email", "root@example.test", "--password-file"];
    let said = cli.login(&[&email[..], &[&wrong]].concat());
    let said = format!("{:#}", said.err().context("refused")?);
    ensure!(said.contains("bad_login"), "{said}");
    ensure!(!cli.login.exists(), "a login that failed is kept");
    let right = file(&site, "right", &format!("{PASSWORD}\n"))?;
    cli.login(&[&email[..], &[&right]].concat())?;
    let mode = std::fs::metadata(&cli.login)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept = std::fs::read_to_string(&cli.login)?;
    ensure!(!kept.contains(PASSWORD), "the password is kept");

    // From now on it goes there, and may change something.
    let who = cli.json(&["whoami"])?;
    assert_eq!(who["subject"], "break-glass:root@example.test");
    assert_eq!(who["tier"], "admin");
    cli.run(&["cluster", "add", "prod", "--hub", "wss://hub.test/agent"])?;
    assert_eq!(cli.json(&["cluster", "show", "prod"])?["id"], "prod");
    std::fs::set_permissions(&cli.login, std::fs::Permissions::from_mode(0o644))?;
    cli.fails_with("chmod 600", &["whoami"])?;
    std::fs::set_permissions(&cli.login, std::fs::Permissions::from_mode(0o600))?;

    cli.run(&["logout"])?;
    ensure!(!cli.login.exists());
    let rows = site
        .control
        .ok("GET", "/api/audit?verb=cluster_create", None)?;
    let actor = &rows["items"][0]["actor"]["sub"];
    assert_eq!(actor, "break-glass:root@example.test");
    Ok(())
}

#[test]
fn a_machine_logs_in_with_a_token_that_is_made_and_ended_by_cli() -> Result<()> {
    if !ready(
        "a_machine_logs_in_with_a_token_that_is_made_and_ended_by_cli",
        &PROGRAMS,
    ) {
        return Ok(());
    }
    let site = Site::start()?;
    let cli = Cli {
        site: &site,
        login: site.bed.path("machine.json"),
    };
    let socket = format!("unix:{}", site.bed.path("admin.sock").display());
    let root = ["--api", socket.as_str(), "token", "api"];
    let create = ["create", "CI", "--scope", "read", "--ttl", "1h"];
    let made = cli.json(&[&root[..], &create].concat())?;
    let (id, token) = (made["token_id"].as_str(), made["token"].as_str());
    let (id, token) = (id.context("an id")?, token.context("a token")?);
    let listed = cli.json(&[&root[..], &["ls"]].concat())?;
    assert_eq!(listed["items"][0]["name"], "CI");
    ensure!(!listed.to_string().contains(token));

    let nonsense = file(&site, "nonsense", "cvp_nonsense\n")?;
    let said = cli.login(&["--token-file", &nonsense]);
    let said = format!("{:#}", said.err().context("refused")?);
    ensure!(said.contains("unauthenticated"), "{said}");
    let good = file(&site, "good", &format!("{token}\n"))?;
    cli.login(&["--token-file", &good])?;
    assert_eq!(cli.json(&["whoami"])?["actor"], format!("api-token:{id}"));
    cli.run(&["cluster", "ls"])?;
    let add = ["cluster", "add", "prod", "--hub", "wss://hub.test/agent"];
    cli.fails_with("the right clusters", &add)?;

    cli.run(&[&root[..], &["revoke", id, "--yes"]].concat())?;
    cli.fails_with("culvert login again", &["whoami"])?;
    let listed = cli.json(&[&root[..], &["ls"]].concat())?;
    assert_eq!(listed["items"], Value::Array(Vec::new()));
    Ok(())
}

//! A hub that people sign in to: control with a cookie password, a data plane, the agents of a
//! Kubernetes-like and of an HTTP service, and sessions sealed as control seals them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use culvert_identity::{Key, Life, Ring, SESSION_COOKIE, Session, Tier};
use culvert_net::crypto::{hkdf_sha256, random_bytes};
use culvert_perf::testbed::{HUB_FOR_CLIENT, Layout, Testbed, wait_for};
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::control::{Control, token};
use crate::hub::{Agent, PUBLIC, START_MAX, binary, dataplane};
use crate::upstream::Upstream;
use crate::watched::Watched;

pub const PASSWORD: &str = "Zq3v8xW1pL0sT7yB9nK4mR2cV6hJ5gDe";
pub const NEXT_PASSWORD: &str = "q8Rk1Vd5Yx0Wn7Jt3Hs9Lb2Pc6Mf4Zg=";
pub const ADMIN: &str = "root@example.test";
pub const ADMIN_PASSWORD: &str = "correct horse battery";
/// Where pages of the hub come from.
pub const OWN: &str = "Origin: https://hub.test";
pub const CONTROL_API: &str = "127.0.0.1:8088";
/// The agent serves a Kubernetes API outside of a cluster here.
pub const NO_TOKEN: &str = "requests go to the target without a bearer token";
pub const LOGINS: &[&str] = &["break-glass login"];

pub struct People {
    pub kube_agent: Watched,
    pub web_agent: Watched,
    pub dataplane: Watched,
    pub control: Control,
    pub kube: Upstream,
    pub web: Upstream,
    pub bed: Testbed,
}

/// Where people reach the hub.
pub fn front() -> SocketAddr {
    (HUB_FOR_CLIENT, PUBLIC).into()
}

impl People {
    pub fn start() -> Result<People> {
        People::with(&[], &[])
    }

    pub fn with(dataplane_args: &[&str], kube_args: &[&str]) -> Result<People> {
        let bed = Testbed::new(Layout::default())?;
        let control = start_control(&bed, "control", PASSWORD, None)?;
        let access = json!({"grants": [
            {"group": "ops", "tier": "write"},
            {"group": "dev", "tier": "read"},
        ]});
        let mut tokens = Vec::new();
        for kind in ["kube", "http"] {
            let id = if kind == "kube" { "kube" } else { "web" };
            let body = json!({"id": id, "target_kind": kind, "access": access});
            control.ok("POST", "/api/clusters", Some(body))?;
            tokens.push(control.mint(id)?);
        }
        let dataplane = start_dataplane(&bed, "dataplane", &control.link, dataplane_args)?;
        let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
        // An agent that comes before the first table is refused, and complains.
        wait_for("the first table", START_MAX, || {
            let answer = client::ask(&bed.client, front(), "GET", "/c/web/x", &[&ana], b"");
            (answer.ok()?.header("culvert-error") == Some("agent_absent")).then_some(())
        })?;
        let (kube, web) = (Upstream::start(&bed.site)?, Upstream::start(&bed.site)?);
        let mut agent = Agent::plain(&bed.site, "kube-agent", &tokens[0], kube.address);
        agent.arguments[3] = "kube".to_owned();
        agent
            .arguments
            .extend(kube_args.iter().map(|it| (*it).to_owned()));
        let mut kube_agent = agent.spawn(&bed)?;
        kube_agent.expect(&[NO_TOKEN]);
        let mut agent = Agent::plain(&bed.site, "web-agent", &tokens[1], web.address);
        agent.health = 8082;
        let web_agent = agent.start(&bed)?;
        let people = People {
            kube_agent,
            web_agent,
            dataplane,
            control,
            kube,
            web,
            bed,
        };
        wait_for("both clusters to serve", START_MAX, || {
            let served = |path| people.get(path, &[&ana]).is_ok_and(|it| it.status == 200);
            (served("/c/kube/id/up") && served("/c/web/id/up")).then_some(())
        })?;
        // Control hears of agents from the data plane's reports.
        wait_for("control to see both agents", START_MAX, || {
            let seen = people.control.ok("GET", "/api/clusters", None).ok()?;
            let mut all = seen["items"].as_array()?.iter();
            all.all(|cluster| cluster["agents"] == 1).then_some(())
        })?;
        Ok(people)
    }

    /// A request to the front.
    pub fn ask(&self, method: &str, target: &str, lines: &[&str]) -> Result<Answer> {
        self.ask_with(method, target, lines, b"")
    }

    pub fn ask_with(
        &self,
        method: &str,
        target: &str,
        lines: &[&str],
        body: &[u8],
    ) -> Result<Answer> {
        client::ask(&self.bed.client, front(), method, target, lines, body)
    }

    pub fn get(&self, target: &str, lines: &[&str]) -> Result<Answer> {
        self.ask("GET", target, lines)
    }

    /// Gives a cluster another access policy, which is in use when this returns.
    #[expect(clippy::needless_pass_by_value, reason = "made for the call")]
    pub fn access(&self, cluster: &str, access: Value) -> Result<()> {
        let path = format!("/api/clusters/{cluster}");
        self.control
            .ok("PATCH", &path, Some(json!({"access": access})))?;
        self.control.settled()
    }

    /// Signs the administrator in through the data plane: the line of their cookie.
    pub fn break_glass(&mut self) -> Result<String> {
        self.control.process.expect(LOGINS);
        let body = json!({"email": ADMIN, "password": ADMIN_PASSWORD}).to_string();
        let lines = [OWN, "Content-Type: application/json"];
        let answer = self.ask_with("POST", "/api/auth/login", &lines, body.as_bytes())?;
        ensure!(answer.status == 200, "{answer:?}");
        let cookie = answer.header("set-cookie").context("a cookie")?;
        let pair = cookie.split(';').next().unwrap_or_default();
        Ok(format!("Cookie: {pair}"))
    }
}

/// Control with this cookie password, and with another that still opens.
pub fn start_control(
    bed: &Testbed,
    name: &str,
    password: &str,
    previous: Option<&str>,
) -> Result<Control> {
    let file = |what: &str, content: &str| -> Result<String> {
        use std::os::unix::fs::PermissionsExt;
        let path = bed.path(&format!("{name}-{what}"));
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(path.to_string_lossy().into_owned())
    };
    let mut arguments = vec![
        "--public-url".to_owned(),
        "https://hub.test".to_owned(),
        "--listen".to_owned(),
        CONTROL_API.to_owned(),
        "--data-plane-url".to_owned(),
        format!("http://127.0.0.1:{PUBLIC}"),
        "--cookie-password-file".to_owned(),
        file("password", password)?,
        "--admin-email".to_owned(),
        ADMIN.to_owned(),
        "--admin-password-hash-file".to_owned(),
        file("hash", &hashed()?)?,
    ];
    if let Some(previous) = previous {
        arguments.push("--cookie-password-previous-file".to_owned());
        arguments.push(file("previous", previous)?);
    }
    Control::told(bed, name, "state.sock", &bed.path("control.db"), &arguments)
}

fn hashed() -> Result<String> {
    let mut child = Command::new(binary("culvert-control")?)
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its input")?;
    stdin.write_all(ADMIN_PASSWORD.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "hash-password: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A data plane of this hub with its own copy of the state, in front of control.
pub fn start_dataplane(bed: &Testbed, name: &str, link: &str, further: &[&str]) -> Result<Watched> {
    let state = bed.path("dataplane-state");
    let state = state.to_string_lossy();
    let api = format!("http://{CONTROL_API}");
    let mut arguments = vec![
        "--control",
        link,
        "--state-dir",
        &state,
        "--control-api",
        &api,
    ];
    arguments.extend_from_slice(further);
    dataplane(bed, name, &arguments)
}

/// A session as control would seal it.
pub struct Signed {
    pub session: Session,
    pub life: Life,
    pub begun_unix_s: u64,
}

impl Signed {
    pub fn new(subject: &str) -> Signed {
        let session = Session {
            subject: subject.to_owned(),
            email: String::new(),
            groups: Vec::new(),
            tier: Some(Tier::Read),
            provider: "corp".to_owned(),
            issued_unix_s: 0,
            sealed_unix_s: 0,
            idle_until_unix_s: 0,
            expires_unix_s: 0,
            epoch: 0,
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Signed {
            session,
            life: Life {
                idle_s: 1_800,
                absolute_s: 28_800,
            },
            begun_unix_s: since.map_or(0, |since| since.as_secs()),
        }
    }

    pub fn of(mut self, groups: &[&str]) -> Signed {
        self.session.groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self
    }

    pub fn begun_ago(mut self, seconds: u64) -> Signed {
        self.begun_unix_s -= seconds;
        self
    }

    /// The sealed text.
    pub fn text(&self, cookie: &str, password: &str) -> Result<String> {
        let ring = Ring {
            current: key(password),
            previous: None,
        };
        let session = self.session.clone().begin(self.life, self.begun_unix_s);
        Ok(ring.seal(cookie, &session, random_bytes())?)
    }

    /// The line of a request.
    pub fn cookie(&self, password: &str) -> Result<String> {
        let text = self.text(SESSION_COOKIE, password)?;
        Ok(format!("Cookie: {SESSION_COOKIE}={text}"))
    }
}

/// The key of a password, as docs/sign-in.md says.
fn key(password: &str) -> Key {
    let id = hkdf_sha256(password.as_bytes(), b"culvert/session/1 id");
    let mut short = [0; 8];
    short.copy_from_slice(&id[..8]);
    let secret = hkdf_sha256(password.as_bytes(), b"culvert/session/1 key");
    Key::new(short, secret)
}

/// The values of a field in a raw head.
pub fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

/// A personal token for every service of a cluster.
pub fn personal_token(control: &Control, principal: &str, grant: &str) -> Result<String> {
    let body = json!({"principal": principal, "grants": [grant]});
    let minted = control.ok("POST", "/api/personal-tokens", Some(body))?;
    control.settled()?;
    token(&minted)
}

/// Waits until the agent of a fleet or hub serves; for tests that restart things.
pub fn wait_ready(people: &People, target: &str, line: &str) -> Result<()> {
    wait_for(target, START_MAX, || {
        let answer = people.get(target, &[line]).ok()?;
        (answer.status == 200).then_some(())
    })?;
    Ok(())
}

//! The control process, its admin API over the Unix socket, and a hub with both processes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{Layout, Spawn, Testbed, wait_for};
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::hub::{Agent, START_MAX, binary, dataplane, internal};
use crate::upstream::Upstream;
use crate::watched::Watched;

/// A running control process.
pub struct Control {
    pub process: Watched,
    socket: PathBuf,
    /// Where data planes find it, as `--control` takes it.
    pub link: String,
}

impl Control {
    /// Starts it with its store and keys in `<bed>/control`, waits until its API answers.
    pub fn start(bed: &Testbed, name: &str) -> Result<Control> {
        Control::with(bed, name, "state.sock", &bed.path("control.db"))
    }

    /// As [`Control::start`], with another name of the state socket and another place of the store.
    pub fn with(
        bed: &Testbed,
        name: &str,
        state: &str,
        store: &std::path::Path,
    ) -> Result<Control> {
        Control::told(bed, name, state, store, &[])
    }

    /// As [`Control::with`], with further arguments.
    pub fn told(
        bed: &Testbed,
        name: &str,
        state: &str,
        store: &std::path::Path,
        arguments: &[String],
    ) -> Result<Control> {
        Control::spawn(bed, name, state, store, arguments)?.answering()
    }

    /// Waits until its API answers.
    pub fn answering(self) -> Result<Control> {
        let mut control = self;
        let socket = control.socket.clone();
        control
            .process
            .wait_until("its API answers", START_MAX, |_| {
                call(&socket, "GET", "/api/clusters", None)
                    .ok()
                    .filter(|(status, _)| *status == 200)
            })?;
        Ok(control)
    }

    /// Starts it without waiting.
    pub fn spawn(
        bed: &Testbed,
        name: &str,
        state: &str,
        store: &std::path::Path,
        arguments: &[String],
    ) -> Result<Control> {
        let dsn = format!("sqlite:{}", store.display());
        Control::spawn_on(bed, name, state, &dsn, arguments)
    }

    /// As [`Control::spawn`], on any store.
    pub fn spawn_on(
        bed: &Testbed,
        name: &str,
        state: &str,
        dsn: &str,
        arguments: &[String],
    ) -> Result<Control> {
        let socket = bed.path("admin.sock");
        let state_socket = bed.path(state);
        let spawn = Spawn::new(binary("culvert-control")?)
            // Nobody is there; after a minute that would be a complaint.
            .env("CULVERT_LICENSE_HEARTBEAT", "false")
            .args(["--db-dsn", dsn])
            .args(["--state-dir", &bed.path("control").to_string_lossy()])
            .args(["--socket", &socket.to_string_lossy()])
            .args(["--state-socket", &state_socket.to_string_lossy()])
            .args(["--admin-addr", "127.0.0.1:9900"])
            .args(arguments);
        let mut process = Watched::start(spawn, bed, &bed.hub, name)?;
        // A build without the vendor's key, and no licence: the contract wants a word on both.
        process.expect(&[
            "public key is the all-zero placeholder",
            "running in unlicensed mode",
        ]);
        Ok(Control {
            process,
            socket,
            link: format!("unix:{}", state_socket.display()),
        })
    }

    /// One call: status and JSON body.
    pub fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        call(&self.socket, method, path, body)
    }

    /// A call that must succeed.
    pub fn ok(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let (status, value) = self.call(method, path, body)?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status} {value}"
        );
        Ok(value)
    }

    /// Adds a cluster and mints a token for it.
    pub fn add(&self, cluster: &str) -> Result<String> {
        self.ok(
            "POST",
            "/api/clusters",
            Some(json!({"id": cluster, "target_kind": "http"})),
        )?;
        self.mint(cluster)
    }

    /// Mints one more token.
    pub fn mint(&self, cluster: &str) -> Result<String> {
        let value = self.ok(
            "POST",
            &format!("/api/clusters/{cluster}/tokens"),
            Some(json!({})),
        )?;
        token(&value)
    }

    /// Waits until there is a data plane, and every one has the generation that control is at.
    pub fn settled(&self) -> Result<()> {
        wait_for("the data planes to follow", START_MAX, || {
            let status = self.ok("GET", "/api/status", None).ok()?;
            let planes = self.ok("GET", "/api/dataplanes", None).ok()?;
            let follow = |plane: &Value| plane["generation"] == status["generation"];
            let planes = planes["items"].as_array()?;
            (!planes.is_empty() && planes.iter().all(follow)).then_some(())
        })
    }

    pub fn revoke(&self, cluster: &str) -> Result<Value> {
        self.ok(
            "POST",
            &format!("/api/clusters/{cluster}/revoke"),
            Some(json!({})),
        )
    }
}

pub fn token(value: &Value) -> Result<String> {
    Ok(value["token"]
        .as_str()
        .with_context(|| format!("no token in {value}"))?
        .to_owned())
}

fn call(
    socket: &std::path::Path,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Result<(u16, Value)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw)?;
    let answer = Answer::parse(&raw)?;
    let value =
        serde_json::from_slice(&answer.body).unwrap_or_else(|_| Value::String(answer.text()));
    Ok((answer.status, value))
}

/// Control, a data plane linked to it, and the agents of two clusters on two private sites.
pub struct Fleet {
    pub dev_agent: Watched,
    pub neighbour_agent: Watched,
    pub dataplane: Watched,
    pub control: Control,
    pub dev: Upstream,
    pub neighbour: Upstream,
    pub dev_token: String,
    pub bed: Testbed,
}

impl Fleet {
    pub fn start() -> Result<Fleet> {
        let bed = Testbed::new(Layout {
            second_site: true,
            ..Layout::default()
        })?;
        let control = Control::start(&bed, "control")?;
        Fleet::with(bed, control)
    }

    pub fn with(bed: Testbed, control: Control) -> Result<Fleet> {
        let dev_token = control.add("dev")?;
        let neighbour_token = control.add("neighbour")?;
        let dataplane = Fleet::dataplane(&bed, "dataplane", &control.link)?;
        // An agent that comes before the first table is refused, and complains.
        wait_for("the first table", START_MAX, || {
            let answer = client::get(&bed.client, internal(), "/tunnel/dev/id/x").ok()?;
            (answer.header("culvert-error") == Some("agent_absent")).then_some(())
        })?;
        let site2 = bed.site2.as_ref().context("a second site")?;
        let dev = Upstream::start(&bed.site)?;
        let neighbour = Upstream::start_at(site2, "10.77.4.2".parse()?)?;
        // Their hub is killed more often than a session counts as healthy.
        let soon = ["--max-retry", "2s"];
        let dev_agent = Agent::plain(&bed.site, "dev-agent", &dev_token, dev.address)
            .with(&soon)
            .start(&bed)?;
        let mut agent = Agent::plain(
            site2,
            "neighbour-agent",
            &neighbour_token,
            neighbour.address,
        );
        agent.server = format!("ws://{}:8443/agent", culvert_perf::testbed::HUB_FOR_SITE2);
        let neighbour_agent = agent.with(&soon).start(&bed)?;
        Ok(Fleet {
            dev_agent,
            neighbour_agent,
            dataplane,
            control,
            dev,
            neighbour,
            dev_token,
            bed,
        })
    }

    /// A data plane of this hub, with its own copy of the state on disk.
    pub fn dataplane(bed: &Testbed, name: &str, link: &str) -> Result<Watched> {
        let state = bed.path("dataplane-state");
        dataplane(
            bed,
            name,
            &["--control", link, "--state-dir", &state.to_string_lossy()],
        )
    }
}

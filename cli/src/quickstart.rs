//! `culvert quickstart`: the whole product on one machine, proved by a request.

mod ask;
mod child;
mod demo;
mod state;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use crate::api::Api;
use crate::args::Quickstart;
use crate::error::{CliError, Result};
use child::Child;
use state::State;

pub use child::find;

const CLUSTER: &str = "demo";
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// From the agent's start to the first answer through the tunnel.
const TUNNEL_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// Runs the verb.
///
/// # Errors
/// The first part that did not come up, with its last lines.
pub async fn run(args: &Quickstart) -> Result<()> {
    let ports = Ports::choose(args)?;
    let state = State::open(args)?;
    eprintln!(
        "culvert {} quickstart: one machine, for trying out",
        env!("CARGO_PKG_VERSION")
    );
    eprintln!(
        "  state      {} ({})",
        state.dir.display(),
        if state.new { "new" } else { "reused" }
    );
    let target = match &args.target {
        Some(url) => state::Target::of(url)?,
        None => demo::start().await?,
    };
    let api = Api::on_socket(state.api_socket());

    let mut control = start_control(&state, &ports)?;
    control
        .ready("control", READY_DEADLINE, async || {
            api.get("/api/v1/status").await.is_ok()
        })
        .await?;
    let mut dataplane = start_dataplane(&state, &ports)?;
    let admin = ports.dataplane_admin;
    dataplane
        .ready("dataplane", READY_DEADLINE, async || {
            ask::plain(admin, "/readyz/serve").await
        })
        .await?;
    enrol(&state, &api).await?;
    let mut agent = start_agent(&state, &ports, &target)?;
    let proof = prove(&state, &ports, &mut agent).await?;
    eprintln!(
        "GET /tunnel/{CLUSTER}/ -> {} in {:.1} ms",
        proof.status, proof.millis
    );
    if args.check {
        agent.stop().await;
        dataplane.stop().await;
        control.stop().await;
        return Ok(());
    }
    say(&state, &ports);
    let children = [&mut control, &mut dataplane, &mut agent];
    let ended = child::wait(children).await;
    agent.stop().await;
    dataplane.stop().await;
    control.stop().await;
    ended
}

/// Every port of the three processes.
struct Ports {
    public: SocketAddr,
    internal: SocketAddr,
    dataplane_admin: SocketAddr,
    control_admin: SocketAddr,
    agent_health: SocketAddr,
}

impl Ports {
    fn choose(args: &Quickstart) -> Result<Self> {
        let fixed = |addr: SocketAddr, flag: &str| {
            if args.check {
                return free();
            }
            match TcpListener::bind(addr) {
                Ok(_) => Ok(addr),
                Err(why) => {
                    let fix = format!("stop what listens there, or give another address by {flag}");
                    Err(CliError::new(
                        "port_taken",
                        "a port is taken",
                        format!("{addr}: {why}"),
                        "cli",
                        &fix,
                    ))
                }
            }
        };
        Ok(Self {
            public: fixed(args.addr, "--addr")?,
            internal: fixed(args.internal_addr, "--internal-addr")?,
            dataplane_admin: free()?,
            control_admin: free()?,
            agent_health: free()?,
        })
    }
}

fn free() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    listener.map_err(|why| {
        CliError::new(
            "port_taken",
            "no free port on loopback",
            why,
            "cli",
            "free some ports",
        )
    })
}

fn start_control(state: &State, ports: &Ports) -> Result<Child> {
    let mut control = Child::command("culvert-control")?;
    control
        .arg("--db-dsn")
        .arg(state.dir.join("control.db"))
        .arg("--state-dir")
        .arg(state.sub("control")?)
        .arg("--socket")
        .arg(state.api_socket())
        .arg("--state-socket")
        .arg(state.link_socket())
        .args(["--admin-addr", &ports.control_admin.to_string()])
        .args([
            "--public-url",
            &format!("https://localhost:{}", ports.public.port()),
        ]);
    Child::start("culvert-control", control, &state.dir)
}

fn start_dataplane(state: &State, ports: &Ports) -> Result<Child> {
    let mut dataplane = Child::command("culvert-dataplane")?;
    dataplane
        .args([
            "--control",
            &format!("unix:{}", state.link_socket().display()),
        ])
        .arg("--state-dir")
        .arg(state.sub("dataplane")?)
        .args(["--addr", &ports.public.to_string()])
        .args(["--internal-addr", &ports.internal.to_string()])
        .args(["--admin-addr", &ports.dataplane_admin.to_string()])
        .arg("--tls-cert")
        .arg(state.dir.join("server.crt"))
        .arg("--tls-key")
        .arg(state.dir.join("server.key"));
    Child::start("culvert-dataplane", dataplane, &state.dir)
}

fn start_agent(state: &State, ports: &Ports, target: &state::Target) -> Result<Child> {
    let mut agent = Child::command("culvert-agent")?;
    agent
        .args([
            "--server",
            &format!("wss://localhost:{}/agent", ports.public.port()),
        ])
        .args(["--cluster", CLUSTER])
        .arg("--state-dir")
        .arg(state.sub("agent")?)
        .arg("--server-ca-cert")
        .arg(state.dir.join("ca.crt"))
        .args(["--target", &target.authority, "--target-kind", "http"])
        .args(["--health-addr", &ports.agent_health.to_string()])
        .env("CULVERT_TOKEN_FILE", state.token_file());
    if target.plain {
        agent.arg("--plain-target");
    }
    Child::start("culvert-agent", agent, &state.dir)
}

/// Registers the demo cluster and mints a token, or finds both from an earlier run.
async fn enrol(state: &State, api: &Api) -> Result<()> {
    let cluster = json!({"id": CLUSTER, "name": "quickstart", "target_kind": "http"});
    if api
        .get(&format!("/api/v1/clusters/{CLUSTER}"))
        .await
        .is_err()
    {
        api.change(Method::POST, "/api/v1/clusters", Some(cluster))
            .await?;
    }
    let path = format!("/api/v1/clusters/{CLUSTER}/tokens");
    // A cluster has a limit of live tokens: a run must not cost one each time.
    let saved = state
        .saved_token()
        .as_ref()
        .and_then(|token| token.id().map(str::to_owned));
    let live = api.get(&path).await?;
    let mut live = live["items"].as_array().into_iter().flatten();
    if saved.is_some_and(|id| live.any(|token| token["token_id"] == id && token["state"] == "live"))
    {
        return Ok(());
    }
    let minted = api
        .change(Method::POST, &path, Some(json!({})))
        .await?
        .unwrap_or_default();
    let Some(token) = minted["token"].as_str() else {
        let fix = "check that control is of this version";
        let seen = "an answer without a token";
        return Err(CliError::new(
            "control_broken",
            "control sent no token",
            seen,
            "control",
            fix,
        ));
    };
    state.save_token(token)
}

/// Sends requests until one is answered by the service behind the agent.
async fn prove(state: &State, ports: &Ports, agent: &mut Child) -> Result<ask::Proof> {
    let start = Instant::now();
    let path = format!("/tunnel/{CLUSTER}/");
    loop {
        let asked = ask::through_tls(&state.dir.join("ca.crt"), ports.internal, &path).await;
        match asked {
            Ok(proof) if !proof.by_culvert => return Ok(proof),
            seen if start.elapsed() > TUNNEL_DEADLINE => {
                let seen = match seen {
                    Ok(proof) => format!("{} ({})", proof.status, proof.reason),
                    Err(why) => why,
                };
                let fix = "read the agent's last lines below";
                let lines = agent.last_lines();
                let seen = format!("{seen}\n{lines}");
                return Err(CliError::new(
                    "no_tunnel",
                    "no answer within 60 s",
                    seen,
                    "agent",
                    fix,
                ));
            }
            _ => agent.still_runs("culvert-agent")?,
        }
        tokio::time::sleep(POLL).await;
    }
}

fn say(state: &State, ports: &Ports) {
    let (ca, token) = (state.dir.join("ca.crt"), state.token_file());
    let url = format!(
        "https://localhost:{}/tunnel/{CLUSTER}/",
        ports.internal.port()
    );
    println!("URL    {url}");
    println!("curl   curl --cacert {} {url}", ca.display());
    println!(
        "agent  CULVERT_TOKEN_FILE={} culvert-agent --server wss://localhost:{}/agent \
         --server-ca-cert {} --target HOST:PORT --plain-target --health-addr 127.0.0.1:0",
        token.display(),
        ports.public.port(),
        ca.display()
    );
    println!(
        "next   culvert --api unix:{} status",
        state.api_socket().display()
    );
    eprintln!("Ctrl-C drains and stops; state is kept");
}

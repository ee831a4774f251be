//! Two-process tunnels: rathole and bore, and what starts any of them.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{ENTRY_PORT, Host, Lab, RELAY_CPU, Running, START_MAX};
use crate::testbed::{Cgroup, Spawn};

const CARRIER_PORT: u16 = 9120;

/// Ciphers of rathole's noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Noise {
    /// ChaCha20-Poly1305 and BLAKE2s.
    Default,
    /// The cipher that the others of the encrypted class use.
    Aes,
}

/// Starts the hub, then the agent; waits until the hub's entry accepts.
pub(super) fn start(
    lab: &Lab,
    hub: Spawn,
    agent: impl FnOnce() -> Result<Spawn>,
) -> Result<Running> {
    lab.await_free_entry()?;
    let groups = [Cgroup::new()?, Cgroup::new()?];
    let hub = hub.cpu(RELAY_CPU).counted_by(groups[0].as_ref());
    let mut hub = hub.start_in(lab.directory(), lab.at(Host::Hub), "hub")?;
    let agent = agent()?.cpu(RELAY_CPU).counted_by(groups[1].as_ref());
    let agent = agent.start_in(lab.directory(), lab.at(Host::Site), "agent")?;
    hub.wait_port(lab.at(Host::Client), lab.entry(), START_MAX)
        .with_context(|| format!("agent: {}", agent.log()))?;
    Ok(Running {
        entry: Some(lab.entry()),
        hub: vec![hub],
        agent: vec![agent],
        groups,
        ..Running::default()
    })
}

pub(super) fn rathole(lab: &Lab, noise: Option<Noise>) -> Result<Running> {
    let program = lab.rivals.path("rathole")?;
    let (server_transport, client_transport) = match noise {
        None => {
            let plain = "type = \"tcp\"\n";
            (plain.to_owned(), plain.to_owned())
        }
        Some(noise) => {
            let (private, public) = keys(lab)?;
            let pattern = match noise {
                Noise::Default => "",
                Noise::Aes => "pattern = \"Noise_NK_25519_AESGCM_SHA256\"\n",
            };
            let end = |side: &str, key: &str, value: &str| {
                format!(
                    "type = \"noise\"\n[{side}.transport.noise]\n{key} = \"{value}\"\n{pattern}"
                )
            };
            (
                end("server", "local_private_key", &private),
                end("client", "remote_public_key", &public),
            )
        }
    };
    let (server, client) = (
        lab.path("rathole-server.toml"),
        lab.path("rathole-client.toml"),
    );
    std::fs::write(
        &server,
        format!(
            "[server]\nbind_addr = \"0.0.0.0:{CARRIER_PORT}\"\ndefault_token = \"lab\"\n\
             [server.services.bench]\nbind_addr = \"0.0.0.0:{ENTRY_PORT}\"\nnodelay = true\n\
             [server.transport]\n{server_transport}\
             [server.transport.tcp]\nnodelay = true\n"
        ),
    )?;
    std::fs::write(
        &client,
        format!(
            "[client]\nremote_addr = \"{hub}:{CARRIER_PORT}\"\ndefault_token = \"lab\"\n\
             [client.services.bench]\nlocal_addr = \"{service}\"\nnodelay = true\n\
             [client.transport]\n{client_transport}\
             [client.transport.tcp]\nnodelay = true\n",
            hub = lab.address(Host::Hub, Host::Site),
            service = lab.service(Host::Site),
        ),
    )?;
    let spawn = |side: &str, config: &std::path::Path| {
        Spawn::new(&program)
            .args([side, &config.to_string_lossy()])
            .env("TOKIO_WORKER_THREADS", "1")
            .env("RUST_LOG", "warn")
    };
    start(lab, spawn("--server", &server), || {
        Ok(spawn("--client", &client))
    })
}

/// Private and public key, as rathole makes them.
fn keys(lab: &Lab) -> Result<(String, String)> {
    let output = Command::new(lab.rivals.path("rathole")?)
        .arg("--genkey")
        .output()
        .context("rathole --genkey")?;
    ensure!(
        output.status.success(),
        "rathole --genkey: {}",
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut keys = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.ends_with(':'));
    let (private, public) = (keys.next(), keys.next());
    Ok((
        private.context("no private key")?.to_owned(),
        public.context("no public key")?.to_owned(),
    ))
}

pub(super) fn bore(lab: &Lab) -> Result<Running> {
    let program = lab.rivals.path("bore")?;
    let service = lab.service(Host::Site);
    let server = Spawn::new(&program)
        .args(["server", "--min-port", "1024"])
        .env("TOKIO_WORKER_THREADS", "1");
    start(lab, server, || {
        // Its control port is fixed; the client gives up when nobody listens there yet.
        let control = (lab.address(Host::Hub, Host::Site), 7835).into();
        crate::testbed::wait_for("bore's server", START_MAX, || {
            lab.at(Host::Site).probe(control).then_some(())
        })?;
        Ok(Spawn::new(&program)
            .args(["local", &service.port().to_string()])
            .args(["--local-host", &service.ip().to_string()])
            .args(["--to", &control.ip().to_string()])
            .args(["--port", &ENTRY_PORT.to_string()])
            .env("TOKIO_WORKER_THREADS", "1"))
    })
}

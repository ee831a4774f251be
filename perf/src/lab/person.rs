//! The browser path: control, which signs somebody in, and requests with their cookie.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::culvert::{Hub, TOKEN};
use super::{Host, LOCAL, Lab, Running, START_MAX};
use crate::testbed::{Process, Spawn};

const EMAIL: &str = "perf@perf.test";
const PASSWORD: &str = "perf-only password";
/// Of [`PASSWORD`].
const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$ibItKQtpR6/0jpeG/4v+9A$kB26OiMNqgnyYK5oZrop8jrU/rU6M1dZKadnaxijJ3g";
const COOKIE_PASSWORD: &str = "4f6b1d0c9e8a7b3c2d5e6f708192a3b4";

pub(super) fn start(lab: &Lab, service: SocketAddr) -> Result<Running> {
    let control = control(lab)?;
    let link = format!("unix:{}", lab.text("control/state.sock"));
    let state = lab.text("dataplane-state");
    let source = ["--control", &link, "--state-dir", &state];
    let hub = lab.data_plane_of(&source)?;
    let agent = lab.http_agent(&hub, false, service)?;
    let cookie = sign_in(lab)?;
    let Hub {
        process, public, ..
    } = hub;
    Ok(Running {
        entry: Some((LOCAL, public.port()).into()),
        prefix: "/c/dev".to_owned(),
        fields: format!("Cookie: {cookie}\r\n"),
        hub: vec![process],
        agent: vec![agent],
        beside: vec![control],
        ..Running::default()
    })
}

/// Where control's API is.
fn api() -> SocketAddr {
    (LOCAL, 9205).into()
}

fn control(lab: &Lab) -> Result<Process> {
    use std::os::unix::fs::PermissionsExt;
    let clusters = serde_json::json!([{
        "id": "dev",
        "token": format!("{TOKEN}dev"),
        "access": {"grants": [{"group": format!("user:break-glass:{EMAIL}"), "tier": "write"}]},
    }]);
    let secret = |name: &str, text: &str| -> Result<String> {
        let path = lab.path(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(lab.text(name))
    };
    let mut control = Spawn::new(lab.binaries.join("culvert-control"))
        .args(["--state-dir", &lab.text("control")])
        .args(["--socket", &lab.text("admin.sock")])
        .args([
            "--admin-addr",
            &format!("{LOCAL}:9204"),
            "--log-level",
            "warn",
        ])
        .args([
            "--listen",
            &api().to_string(),
            "--public-url",
            "https://perf.test",
        ])
        .args([
            "--clusters",
            &secret("registry.json", &clusters.to_string())?,
        ])
        .args([
            "--cookie-password-file",
            &secret("cookie", COOKIE_PASSWORD)?,
        ])
        .args(["--admin-password-hash-file", &secret("hash", HASH)?])
        .args(["--admin-email", EMAIL])
        .start_in(lab.directory(), lab.at(Host::Hub), "control")?;
    control.wait_port(lab.at(Host::Hub), api(), START_MAX)?;
    Ok(control)
}

/// The cookie of a session that has just begun.
fn sign_in(lab: &Lab) -> Result<String> {
    let body = serde_json::json!({"email": EMAIL, "password": PASSWORD}).to_string();
    let answer = lab.at(Host::Hub).run(|| -> Result<String> {
        let mut stream = TcpStream::connect(api())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "POST /api/auth/login HTTP/1.1\r\nHost: perf.test\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "signing in: {answer}");
    let mut fields = answer.lines().filter_map(|line| line.split_once(": "));
    let cookie = fields.find(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    let cookie = cookie.and_then(|(_, value)| value.split(';').next());
    Ok(cookie.context("an answer without a cookie")?.to_owned())
}

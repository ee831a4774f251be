//! A provider, nginx and control on the loopback of one namespace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use culvert_net::tls::dev::DevCa;
use culvert_perf::testbed::{Layout, Process, Spawn, Testbed};
use serde_json::json;

use crate::control::Control;
use crate::hub::{START_MAX, binary};

/// What an ID token may be signed with; the provider of the same name does.
pub const ALGORITHMS: [&str; 4] = ["RS256", "PS256", "ES256", "EdDSA"];
/// Where browsers find the hub: another host than the provider's, so that cookies are apart.
pub const HUB: &str = "https://localhost:8444";
/// Where they find the provider.
pub const PROVIDER: &str = "https://127.0.0.1:9443";
/// The administrator's.
pub const PASSWORD: &str = "correct horse battery staple";

pub struct Site {
    pub control: Control,
    pub provider: Process,
    _nginx: Process,
    flags: Vec<String>,
    pub bed: Rc<Testbed>,
}

impl Site {
    pub fn start() -> Result<Site> {
        let bed = Testbed::new(Layout::default())?;
        let ca = DevCa::new("sign-in")?;
        ca.write(bed.directory())?;
        ca.server(&["127.0.0.1"])?
            .write(bed.directory(), "provider")?;
        ca.server(&["localhost"])?.write(bed.directory(), "hub")?;
        let provider = provider(&bed)?;
        let nginx = nginx(&bed)?;
        let flags = flags(&bed)?;
        let control = control(&bed, "control", &flags)?;
        Ok(Site {
            control,
            provider,
            _nginx: nginx,
            flags,
            bed: Rc::new(bed),
        })
    }

    /// Another control process in place of this one, which may complain of `expected`.
    pub fn restart(&mut self, expected: &[&'static str]) -> Result<()> {
        self.control.process.terminate()?;
        self.control.process.wait_end(START_MAX)?;
        self.control = control(&self.bed, "control-2", &self.flags)?;
        self.control.process.expect(expected);
        Ok(())
    }

    pub fn restart_provider(&mut self) -> Result<()> {
        self.provider = provider(&self.bed)?;
        Ok(())
    }
}

/// Where `cargo xtask test` installs what npm's lock file names.
pub fn npm() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let directory = target
        .context("a directory of the target directory")?
        .join("npm/oidc");
    let found = directory.join("node_modules/oidc-provider/package.json");
    ensure!(
        found.exists(),
        "no {}; cargo xtask e2e installs it",
        found.display()
    );
    Ok(directory)
}

fn provider(bed: &Testbed) -> Result<Process> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/peer-oidc/provider.mjs");
    let client = |alg: &str| {
        json!({
            "client_id": format!("culvert-{}", alg.to_ascii_lowercase()),
            // Long enough for HS256, with what a form would have to escape.
            "client_secret": "a secret of 32 bytes & more: %2F+=",
            "id_token_signed_response_alg": alg,
            "redirect_uris": [format!("{HUB}/api/auth/callback")],
            "post_logout_redirect_uris": [format!("{HUB}/api/auth/loggedout")],
        })
    };
    let clients: Vec<_> = ALGORITHMS
        .iter()
        .copied()
        .chain(["HS256"])
        .map(client)
        .collect();
    let mut process = Spawn::new("node")
        .args([script, npm()?])
        .args(["9443"])
        .args([bed.path("provider.crt"), bed.path("provider.key")])
        .args([serde_json::Value::from(clients).to_string()])
        .start(bed, &bed.hub, "provider")?;
    process.wait_port(&bed.hub, ([127, 0, 0, 1], 9443).into(), START_MAX)?;
    Ok(process)
}

/// TLS in front of control, as in the guide.
fn nginx(bed: &Testbed) -> Result<Process> {
    let base = bed.directory().display();
    let config = bed.path("nginx.conf");
    std::fs::write(
        &config,
        format!(
            "daemon off; user root; worker_processes 1; pid {base}/nginx.pid;
             events {{ worker_connections 256; }}
             http {{
               access_log off; client_body_temp_path {base}/body; proxy_temp_path {base}/t1;
               fastcgi_temp_path {base}/t2; uwsgi_temp_path {base}/t3; scgi_temp_path {base}/t4;
               server {{
                 listen 127.0.0.1:8444 ssl;
                 ssl_certificate {base}/hub.crt; ssl_certificate_key {base}/hub.key;
                 location / {{
                   proxy_pass http://127.0.0.1:8088;
                   proxy_set_header Host $http_host;
                   proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                   proxy_buffer_size 16k; proxy_buffers 4 16k;
                 }} }} }}"
        ),
    )?;
    let mut nginx = Spawn::new("nginx")
        .args(["-e", "stderr", "-c", &config.to_string_lossy()])
        .start(bed, &bed.hub, "nginx")?;
    nginx.wait_port(&bed.hub, ([127, 0, 0, 1], 8444).into(), START_MAX)?;
    Ok(nginx)
}

fn flags(bed: &Testbed) -> Result<Vec<String>> {
    let file = |name: &str, text: &str| -> Result<String> {
        std::fs::write(bed.path(name), text)?;
        Ok(bed.path(name).to_string_lossy().into_owned())
    };
    let secret = file("client-secret", "a secret of 32 bytes & more: %2F+=\n")?;
    let mut providers = String::new();
    for (number, alg) in ALGORITHMS.iter().copied().chain(["HS256"]).enumerate() {
        let name = alg.to_ascii_lowercase();
        let prefix = match number {
            0 => String::new(),
            _ => format!("{name}:"),
        };
        providers.push_str(&format!(
            "[[provider]]\nname = \"{name}\"\nissuer = \"{PROVIDER}\"\n\
             client_id = \"culvert-{name}\"\nclient_secret_file = \"{secret}\"\n\
             scopes = [\"email\", \"groups\"]\nprefix = \"{prefix}\"\n"
        ));
    }
    let hash = hash()?;
    let given = [
        ("--listen", "127.0.0.1:8088".to_owned()),
        ("--public-url", HUB.to_owned()),
        (
            "--outbound-ca",
            bed.path("ca.crt").to_string_lossy().into_owned(),
        ),
        (
            "--cookie-password-file",
            file("cookie", "Zq3v8xW1pL0sT7yB9nK4mR2cV6hJ5gDe")?,
        ),
        ("--oidc-providers", file("providers.toml", &providers)?),
        ("--admin-groups", "ops".to_owned()),
        ("--admin-email", "root@example.test".to_owned()),
        ("--admin-password-hash-file", file("hash", &hash)?),
    ];
    let given = given
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value]);
    Ok(given
        .chain(["--license-heartbeat=false".to_owned()])
        .collect())
}

fn hash() -> Result<String> {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut command = Command::new(binary("culvert-control")?);
    let mut child = command
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("a pipe")?
        .write_all(PASSWORD.as_bytes())?;
    Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
}

fn control(bed: &Testbed, name: &str, flags: &[String]) -> Result<Control> {
    let store = bed.path("control.db");
    let mut control = Control::spawn(bed, name, "state.sock", &store, flags)?;
    let at = ([127, 0, 0, 1], 8088).into();
    control.process.wait_port(&bed.hub, at, START_MAX)?;
    Ok(control)
}

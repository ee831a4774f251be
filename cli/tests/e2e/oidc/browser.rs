//! The same in Chromium, driven over its DevTools protocol.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use culvert_perf::testbed::{NamespaceRuntime, Process, Spawn, Testbed, wait_for};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_websockets::{ClientBuilder, Message};

use super::PROGRAMS;
use super::site::{HUB, PROVIDER, Site};
use crate::hub::{START_MAX, binary, ready};

const CHROMIUM: &str = "chromium-headless-shell";
const PAGE_MAX: Duration = Duration::from_secs(15);
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A command, and where its answer goes.
type Asked = (Value, oneshot::Sender<Value>);

/// One page of a browser.
struct Browser {
    runtime: NamespaceRuntime,
    commands: mpsc::Sender<Asked>,
    session: String,
    _process: Process,
}

impl Browser {
    fn start(bed: &Testbed) -> Result<Browser> {
        let process = Spawn::new(CHROMIUM)
            .args([
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .args([
                "--remote-debugging-port=0",
                "--disable-background-networking",
            ])
            .args([format!(
                "--user-data-dir={}",
                bed.path("chromium").display()
            )])
            // The test's CA, and no other certificate that is not known.
            .args([format!(
                "--ignore-certificate-errors-spki-list={}",
                spki(bed)?
            )])
            .args(["about:blank"])
            .env("HOME", bed.directory())
            .start(bed, &bed.hub, "chromium")?;
        let url = wait_for("the browser to listen", START_MAX, || {
            let log = process.log();
            let (_, rest) = log.split_once("DevTools listening on ")?;
            Some(rest.lines().next()?.trim().to_owned())
        })?;
        let runtime = bed.hub.runtime()?;
        let (commands, asked) = mpsc::channel(8);
        let uri = url.parse::<http::Uri>()?;
        let socket = runtime.run(async move {
            let (socket, _) = ClientBuilder::from_uri(uri).connect().await?;
            anyhow::Ok(socket)
        })?;
        runtime.spawn(talk(socket, asked));
        let mut browser = Browser {
            runtime,
            commands,
            session: String::new(),
            _process: process,
        };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.ask("Target.attachToTarget", attach)?;
        let session = attached["sessionId"].as_str().context("a session")?;
        session.clone_into(&mut browser.session);
        Ok(browser)
    }

    #[expect(clippy::needless_pass_by_value, reason = "made for the call")]
    fn ask(&self, method: &str, params: Value) -> Result<Value> {
        let mut command = json!({"method": method, "params": params});
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        let (tell, told) = oneshot::channel();
        let commands = self.commands.clone();
        let answer = self.runtime.run(async move {
            commands
                .send((command, tell))
                .await
                .ok()
                .context("the browser ended")?;
            anyhow::Ok(tokio::time::timeout(ANSWER_MAX, told).await??)
        })?;
        match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => bail!("{method}: {answer}"),
        }
    }

    fn goes(&self, url: &str) -> Result<()> {
        self.ask("Page.navigate", json!({"url": url})).map(drop)
    }

    /// The value of a script of the page.
    fn does(&self, script: &str) -> Result<Value> {
        let answer = self.ask(
            "Runtime.evaluate",
            json!({"expression": script, "returnByValue": true}),
        )?;
        ensure!(
            answer.get("exceptionDetails").is_none(),
            "{script}: {answer}"
        );
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until a script of a loaded page says true.
    fn until(&self, what: &str, script: &str) -> Result<()> {
        let script = format!("document.readyState === 'complete' && ({script})");
        let seen = wait_for(what, PAGE_MAX, || {
            // A page that is just left has no script to run.
            let value = self.does(&script).ok()?;
            (value == json!(true)).then_some(())
        });
        seen.with_context(|| {
            format!(
                "{:?}",
                self.does("location.href + ' ' + document.body.innerText")
            )
        })
    }

    fn text(&self) -> Result<String> {
        let text = self.does("document.body.innerText")?;
        Ok(text.as_str().context("a text")?.to_owned())
    }

    /// Every cookie of the browser, by name.
    fn cookie(&self, name: &str) -> Result<Option<Value>> {
        let all = self.ask("Network.getAllCookies", json!({}))?;
        let all = all["cookies"].as_array().context("cookies")?;
        Ok(all.iter().find(|cookie| cookie["name"] == name).cloned())
    }
}

/// Numbers the commands, and gives each its answer.
async fn talk<T>(
    mut socket: tokio_websockets::WebSocketStream<T>,
    mut asked: mpsc::Receiver<Asked>,
) -> Result<()>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut number = 0_u64;
    while let Some((mut command, tell)) = asked.recv().await {
        number += 1;
        command["id"] = json!(number);
        socket.send(Message::text(command.to_string())).await?;
        loop {
            let message = socket.next().await.context("the browser closed")??;
            let Some(text) = message.as_text() else {
                continue;
            };
            let said: Value = serde_json::from_str(text)?;
            if said["id"] == json!(number) {
                let _ = tell.send(said);
                break;
            }
        }
    }
    Ok(())
}

/// SHA-256 of the CA's public key, as the browser takes it.
fn spki(bed: &Testbed) -> Result<String> {
    let ca = bed.path("ca.crt");
    let script = "openssl x509 -in \"$0\" -pubkey -noout | openssl pkey -pubin -outform der \
                  | openssl dgst -sha256 -binary | openssl base64 -A";
    bed.hub.output("sh", &["-c", script, &ca.to_string_lossy()])
}

#[test]
fn a_browser_signs_in_and_out_at_hub_and_provider() -> Result<()> {
    let programs: Vec<_> = PROGRAMS.into_iter().chain([CHROMIUM]).collect();
    if !ready("a_browser_signs_in_and_out_at_hub_and_provider", &programs) {
        return Ok(());
    }
    let site = Site::start()?;
    let browser = Browser::start(&site.bed)?;
    browser.goes(&format!(
        "{HUB}/api/auth/login?provider=es256&return=/api/auth/whoami"
    ))?;
    browser.until(
        "the provider's login",
        "!!document.querySelector('input[name=login]')",
    )?;
    let login = browser
        .cookie("__Host-culvert_login")?
        .context("a sign-in on its way")?;
    assert_eq!(
        (&login["httpOnly"], &login["secure"], &login["sameSite"]),
        (&json!(true), &json!(true), &json!("Lax"))
    );
    browser.does(
        "document.querySelector('input[name=login]').value = 'ana'; \
         document.querySelector('input[name=password]').value = 'any'; \
         document.querySelector('form').submit(); true",
    )?;
    let consent = "!!document.querySelector('input[name=prompt][value=consent]')";
    browser.until("the provider's consent", consent)?;
    browser.does("document.querySelector('form').submit(); true")?;
    browser.until(
        "the hub",
        &format!("location.href === '{HUB}/api/auth/whoami'"),
    )?;
    let who: Value = serde_json::from_str(&browser.text()?)?;
    assert_eq!(
        (&who["subject"], &who["email"]),
        (&json!("es256:ana"), &json!("ana@example.test"))
    );

    // No script reads the session; the sign-in's cookie is gone.
    assert_eq!(browser.does("document.cookie")?, json!(""));
    assert!(browser.cookie("__Host-culvert_login")?.is_none());
    let session = browser
        .cookie("__Host-culvert_session")?
        .context("a session")?;
    assert_eq!(
        (
            &session["httpOnly"],
            &session["secure"],
            &session["sameSite"]
        ),
        (&json!(true), &json!(true), &json!("Lax"))
    );

    // A page of another site cannot end it: its form brings no cookie, and says whence it comes.
    browser.goes(&format!("{PROVIDER}/.well-known/openid-configuration"))?;
    browser.until(
        "another site",
        &format!("location.href.startsWith('{PROVIDER}')"),
    )?;
    let submit = |path: &str| {
        format!(
            "const form = document.createElement('form'); form.method = 'post'; \
             form.action = '{HUB}{path}'; document.body.append(form); form.submit(); true"
        )
    };
    browser.does(&submit("/api/auth/logout"))?;
    browser.until(
        "a refusal",
        "document.body.innerText.includes('origin_refused')",
    )?;
    browser.goes(&format!("{HUB}/api/auth/whoami"))?;
    browser.until(
        "the session as before",
        "document.body.innerText.includes('es256:ana')",
    )?;

    // Its own page signs out here and there.
    browser.does(&submit("/api/auth/logout"))?;
    browser.until(
        "the provider's question",
        &format!("location.href.startsWith('{PROVIDER}/session/end')"),
    )?;
    assert!(browser.cookie("__Host-culvert_session")?.is_none());
    browser.does("document.querySelector('button[name=logout]').click(); true")?;
    browser.until(
        "the end",
        &format!("location.href.startsWith('{HUB}/api/auth/loggedout')"),
    )?;
    assert!(browser.text()?.contains("signed out"));
    browser.goes(&format!("{HUB}/api/auth/login?provider=es256"))?;
    browser.until(
        "a login anew",
        "!!document.querySelector('input[name=login]')",
    )
}

#[test]
fn an_administrator_lets_an_agent_in_with_a_browser() -> Result<()> {
    let programs: Vec<_> = PROGRAMS.into_iter().chain([CHROMIUM]).collect();
    if !ready(
        "an_administrator_lets_an_agent_in_with_a_browser",
        &programs,
    ) {
        return Ok(());
    }
    let site = Site::start()?;
    let state = site.bed.path("agent-state");
    let spawn = Spawn::new(binary("culvert-agent")?)
        .args(["connect", "prod", "--hub", HUB, "--target", "127.0.0.1:9"])
        .args([
            "--server-ca-cert",
            &site.bed.path("ca.crt").to_string_lossy(),
        ])
        .args(["--target-kind", "http", "--plain-target"])
        .args(["--health-addr", "127.0.0.1:8081"])
        .args(["--state-dir", &state.to_string_lossy()]);
    let mut agent = spawn.start(&site.bed, &site.bed.hub, "agent")?;
    agent.wait_log("waiting for an administrator", START_MAX)?;
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("waiting for an"));
    let line: Value = serde_json::from_str(line.context("its line")?)?;
    let (url, code) = (line["url"].as_str(), line["code"].as_str());
    let (url, code) = (url.context("a URL")?, code.context("a code")?);

    let browser = Browser::start(&site.bed)?;
    browser.goes(url)?;
    let link = "document.querySelector('a[href*=\"provider=rs256\"]')";
    browser.until("where to sign in", &format!("!!{link}"))?;
    ensure!(!browser.text()?.contains(code), "a stranger sees the code");
    browser.does(&format!("{link}.click(); true"))?;
    browser.until(
        "the provider's login",
        "!!document.querySelector('input[name=login]')",
    )?;
    browser.does(
        "document.querySelector('input[name=login]').value = 'ana'; \
         document.querySelector('input[name=password]').value = 'any'; \
         document.querySelector('form').submit(); true",
    )?;
    let consent = "!!document.querySelector('input[name=prompt][value=consent]')";
    browser.until("the provider's consent", consent)?;
    browser.does("document.querySelector('form').submit(); true")?;
    browser.until("the page", &format!("location.href === '{url}'"))?;
    ensure!(browser.text()?.contains(code), "{}", browser.text()?);
    browser.does("document.querySelector('button[value=approve]').click(); true")?;
    browser.until(
        "the approval",
        "document.body.innerText.includes('Approved for cluster prod')",
    )?;
    wait_for("the agent to keep its token", PAGE_MAX, || {
        state.join("agent-token").exists().then_some(())
    })?;
    browser.goes(url)?;
    browser.until(
        "the end",
        "document.body.innerText.includes('has its token of cluster prod')",
    )?;
    let rows = site
        .control
        .ok("GET", "/api/audit?verb=agent_register", None)?;
    assert_eq!(rows["items"][0]["actor"]["sub"], "ana");
    Ok(())
}

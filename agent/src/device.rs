//! A token from an administrator: the agent asks, shows a code, and comes back until somebody has
//! decided (C-11). What it gets it keeps as a rotated one is kept; the next start asks nothing.

mod call;
mod pace;

use std::io::IsTerminal as _;
use std::time::Duration;

use culvert_net::dial::Dialer;
use culvert_proto::token::TokenText;
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::{Config, Wish};
use crate::credential;

use call::{Answer, Call, Failure};
use pace::{Came, Pace};

const PATH: &str = "/api/connect/requests";
/// Longest time that a hub may let us wait, whatever it says.
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// An approval in the last moment leaves time to fetch the token.
const FETCH_GRACE: Duration = Duration::from_secs(90);
/// Longest text of a hub that is shown.
const TEXT_BYTES_MAX: usize = 512;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The hub said no, or nothing that makes sense.
    #[error("{what}: {seen} (side: {side}); {fix}")]
    Refused {
        /// What failed.
        what: &'static str,
        /// What was observed.
        seen: String,
        /// Who caused it.
        side: String,
        /// The one thing to do.
        fix: String,
    },
    /// The token cannot be kept.
    #[error(
        "the token was fetched and cannot be kept: {0}; mend --state-dir, revoke the token, ask anew"
    )]
    NotKept(std::io::Error),
    /// It is kept, and of another cluster than `--cluster`.
    #[error(
        "the administrator let this agent into cluster {approved}, and --cluster is {wanted} (side: agent); \
         the token is kept: start again with --cluster {approved}, or without it"
    )]
    OtherCluster {
        /// Where it belongs.
        approved: String,
        /// What was configured.
        wanted: String,
    },
}

/// A request that the hub took.
struct Begun {
    id: String,
    secret: String,
    code: String,
    url: String,
    life: Duration,
    pace: Pace,
}

/// What an administrator decided.
enum Decided {
    Token(TokenText, String),
    NotYet(Came),
}

/// Gets a token unless there is one; `false` when the process is to end instead.
///
/// # Errors
/// [`DeviceError`]; then the agent has nothing to run with.
pub async fn ask(
    config: &Config,
    wish: &Wish,
    dialer: &Dialer,
    shutdown: &Shutdown,
) -> Result<bool, DeviceError> {
    if config.credential.token.is_some() || credential::is_kept(&wish.state_dir) {
        return Ok(true);
    }
    tokio::select! {
        done = asked(config, wish, dialer) => done.map(|()| true),
        () = shutdown.reached(Phase::Draining) => Ok(false),
    }
}

async fn asked(config: &Config, wish: &Wish, dialer: &Dialer) -> Result<(), DeviceError> {
    let call = Call {
        dialer,
        hubs: &config.hubs,
    };
    let begun = begin(&call, &wish.cluster).await?;
    announce(&begun, &wish.cluster);
    let (token, cluster) = wait(&call, begun).await?;
    credential::enrol(&wish.state_dir, &token).map_err(DeviceError::NotKept)?;
    tracing::info!(
        cluster,
        "an administrator let this agent in; its token is kept"
    );
    match &config.cluster {
        Some(wanted) if wanted.as_str() != cluster => Err(DeviceError::OtherCluster {
            approved: cluster,
            wanted: wanted.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Asks until the hub takes the request or refuses it.
async fn begin(call: &Call<'_>, wish: &str) -> Result<Begun, DeviceError> {
    let body = json!({
        "cluster": wish,
        "agent_version": env!("CARGO_PKG_VERSION"),
        "host": host(),
    });
    let mut pace = Pace::new(0);
    loop {
        let rest = match call.json(Method::POST, PATH, None, Some(&body)).await {
            Ok(answer) if answer.status == 201 => return begun(&answer.body),
            Ok(answer) if answer.status == 429 || answer.status >= 500 => {
                let rest = answer.retry_after.map(Duration::from_secs);
                let rest = rest.unwrap_or_else(|| pace.next(Came::Nothing));
                tracing::warn!(
                    seen = answer.seen(),
                    ?rest,
                    "the hub takes no request now; trying again"
                );
                rest
            }
            Ok(answer) => return Err(refused("the hub takes no request", &answer)),
            Err(Failure(why)) => {
                let rest = pace.next(Came::Nothing);
                tracing::warn!(why, ?rest, "the hub cannot be asked; trying again");
                rest
            }
        };
        sleep(rest).await;
    }
}

fn begun(body: &Value) -> Result<Begun, DeviceError> {
    let text = |field: &'static str| {
        let text = body[field].as_str().filter(|text| is_shown(text));
        text.map(str::to_owned).ok_or_else(|| broken(field))
    };
    let seconds = |field: &'static str| body[field].as_u64().ok_or_else(|| broken(field));
    Ok(Begun {
        id: text("request_id")?,
        secret: text("device_secret")?,
        // A hub of another make may show none.
        code: text("user_code").unwrap_or_default(),
        url: text("connect_url")?,
        life: Duration::from_secs(seconds("expires_in")?).min(WAIT_MAX),
        pace: Pace::new(seconds("poll_interval")?),
    })
}

/// Nothing that a hub says moves a terminal's cursor.
fn is_shown(text: &str) -> bool {
    let is_short = (1..=TEXT_BYTES_MAX).contains(&text.len());
    is_short && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[expect(clippy::print_stdout, reason = "for the person at the terminal")]
fn announce(begun: &Begun, wish: &str) {
    let wish = match wish {
        "" => "CLUSTER",
        wish => wish,
    };
    let Begun {
        code, url, life, ..
    } = begun;
    let minutes = life.as_secs().div_ceil(60);
    tracing::info!(url, code, "waiting for an administrator");
    // Elsewhere standard output is the log's.
    if !std::io::stdout().is_terminal() {
        return;
    }
    println!(
        "An administrator lets this agent in, within {minutes} min:\n\n    {url}\n\n\
         where the code has to be\n\n    {code}\n\n\
         or on control's machine: culvert connect approve {code} --cluster {wish}"
    );
}

async fn wait(call: &Call<'_>, begun: Begun) -> Result<(TokenText, String), DeviceError> {
    let until = Instant::now() + begun.life + FETCH_GRACE;
    let path = format!("{PATH}/{}", begun.id);
    let mut pace = begun.pace;
    let mut rest = pace.next(Came::Answer);
    loop {
        if timeout_at(until, sleep(rest)).await.is_err() {
            let seen = "nobody decided in time";
            return Err(again("no token", seen.to_owned(), "hub"));
        }
        let asked = call
            .json(Method::GET, &path, Some(&begun.secret), None)
            .await;
        let came = match asked {
            Ok(answer) => match decided(&answer)? {
                Decided::Token(token, cluster) => return Ok((token, cluster)),
                Decided::NotYet(came) => came,
            },
            Err(Failure(why)) => {
                tracing::warn!(why, "the hub cannot be asked; trying again");
                Came::Nothing
            }
        };
        rest = pace.next(came);
    }
}

fn decided(answer: &Answer) -> Result<Decided, DeviceError> {
    match answer.status {
        200 => {}
        429 => return Ok(Decided::NotYet(Came::SlowDown)),
        500.. => return Ok(Decided::NotYet(Came::Nothing)),
        _ => return Err(refused("the hub gives no token", answer)),
    }
    let body = &answer.body;
    let denied = body["reason"] == "denied";
    match body["status"].as_str().unwrap_or_default() {
        "pending" => Ok(Decided::NotYet(Came::Answer)),
        "approved" => {
            let token = body["token"].as_str();
            let token = token.and_then(|token| TokenText::new(token).ok());
            let cluster = body["cluster_id"].as_str().filter(|id| is_shown(id));
            match (token, cluster) {
                (Some(token), Some(cluster)) => Ok(Decided::Token(token, cluster.to_owned())),
                // Approved, and the token is for the next answer.
                (None, _) if body["token"].is_null() => Ok(Decided::NotYet(Came::Answer)),
                _ => Err(broken("token")),
            }
        }
        "expired" if denied => Err(again(
            "no token",
            "an administrator refused this agent".to_owned(),
            "hub",
        )),
        "expired" => Err(again(
            "no token",
            "nobody decided in time".to_owned(),
            "hub",
        )),
        "consumed" => Err(again(
            "no token",
            "the token was given out already: its answer was lost, or somebody else has the secret"
                .to_owned(),
            "path",
        )),
        _ => Err(broken("status")),
    }
}

fn again(what: &'static str, seen: String, side: &str) -> DeviceError {
    DeviceError::Refused {
        what,
        seen,
        side: side.to_owned(),
        fix: "ask anew with culvert-agent connect".to_owned(),
    }
}

fn broken(field: &str) -> DeviceError {
    DeviceError::Refused {
        what: "the hub's answer cannot be used",
        seen: format!("no usable {field}"),
        side: "hub".to_owned(),
        fix: "check that --hub names a hub, and upgrade the older of the two".to_owned(),
    }
}

/// A refusal in the hub's own words, or what stands in the way to it (C-18).
fn refused(what: &'static str, answer: &Answer) -> DeviceError {
    let word = |field: &str| {
        let text = answer.body[field].as_str();
        text.map(|text| text.escape_debug().to_string())
    };
    let (side, fix) = match (answer.status, word("fix")) {
        (_, Some(fix)) => (word("side").unwrap_or_else(|| "hub".to_owned()), fix),
        (403, None) => ("path".to_owned(), "look at proxy or gateway in front of the hub".to_owned()),
        (404, None) => (
            "agent".to_owned(),
            "check host and port of --hub; behind client certificates people have their own address"
                .to_owned(),
        ),
        _ => ("hub".to_owned(), "see the hub's log".to_owned()),
    };
    DeviceError::Refused {
        what,
        seen: answer.seen(),
        side,
        fix,
    }
}

/// This machine's name, as far as the hub takes it.
fn host() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy().into_owned();
    let is_plain = name.len() <= 128 && name.bytes().all(|byte| byte.is_ascii_graphic());
    match is_plain {
        true => name,
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: Value) -> Answer {
        Answer {
            status,
            body,
            retry_after: None,
        }
    }

    fn why(status: u16, body: Value) -> String {
        let decided = decided(&answer(status, body));
        decided.err().map(|why| why.to_string()).unwrap_or_default()
    }

    #[test]
    fn every_answer_of_a_hub_has_its_end() {
        let not_yet =
            |status, body| matches!(decided(&answer(status, body)), Ok(Decided::NotYet(_)));
        assert!(not_yet(200, json!({"status": "pending"})));
        assert!(not_yet(200, json!({"status": "approved", "token": null})));
        assert!(not_yet(429, json!({"code": "slow_down"})));
        assert!(not_yet(503, Value::Null));
        let token = "t".repeat(20);
        let given = json!({"status": "approved", "token": token, "cluster_id": "prod"});
        let Ok(Decided::Token(text, cluster)) = decided(&answer(200, given)) else {
            panic!("a token")
        };
        assert_eq!((text.expose(), cluster.as_str()), (token.as_str(), "prod"));
        let denied = json!({"status": "expired", "reason": "denied"});
        assert!(why(200, denied).contains("refused this agent"));
        assert!(why(200, json!({"status": "expired"})).contains("in time"));
        assert!(why(200, json!({"status": "consumed"})).contains("already"));
        assert!(why(200, json!({"status": "later"})).contains("no usable status"));
        assert!(why(403, Value::Null).contains("gateway"));
        assert!(why(404, Value::Null).contains("--hub"));
        let problem = json!({"seen": "s", "side": "client", "fix": "do \u{1b}this"});
        let said = why(409, problem);
        assert!(
            said.contains("side: client") && !said.contains('\u{1b}'),
            "{said}"
        );
    }

    #[test]
    fn a_hub_cannot_write_on_the_terminal() {
        let body = json!({
            "request_id": "r", "device_secret": "s", "user_code": "BCDF-GHJK",
            "connect_url": "https://hub/enrol/r", "expires_in": 900, "poll_interval": 5,
        });
        assert!(begun(&body).is_ok());
        for field in ["request_id", "device_secret", "connect_url"] {
            let mut bad = body.clone();
            bad[field] = json!("a\u{1b}[2J");
            assert!(begun(&bad).is_err(), "{field}");
        }
        let mut endless = body;
        endless["expires_in"] = json!(u64::MAX);
        assert_eq!(begun(&endless).map(|it| it.life).ok(), Some(WAIT_MAX));
    }
}

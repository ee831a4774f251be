//! The join string and the lines that use it.

use std::time::{SystemTime, UNIX_EPOCH};

use culvert_proto::hello::REGISTER_PATH;
use culvert_proto::join::JoinString;
use culvert_proto::token::TokenText;
use http::Method;
use serde_json::json;

use super::{cluster_path, systemd};
use crate::api::Api;
use crate::args::{Format, Global, Join, Paste};
use crate::error::{CliError, Result};
use crate::output;

/// Life of a bootstrap token, s.
const BOOTSTRAP_LIFE_S: u64 = 15 * 60;

/// The hub's addresses for agents: as given, or control's public URL.
pub async fn hubs(api: &Api, join: &Join) -> Result<Vec<String>> {
    if !join.hubs.is_empty() {
        return Ok(join.hubs.clone());
    }
    let status = api.get("/api/v1/status").await?;
    let Some(public) = status["public_url"].as_str().filter(|url| !url.is_empty()) else {
        let fix = "give --hub wss://HOST:PORT/agent, or start control with --public-url";
        let seen = "control has no public URL and no --hub was given";
        return Err(CliError::usage(
            "nobody said where agents find the hub",
            seen,
            fix,
        ));
    };
    let scheme = if public.starts_with("http://") {
        "ws"
    } else {
        "wss"
    };
    let rest = public
        .split_once("://")
        .map_or(public, |(_, rest)| rest)
        .trim_end_matches('/');
    Ok(vec![format!("{scheme}://{rest}/agent")])
}

/// Mints a token and prints the lines to paste on the private side.
pub async fn print(
    global: &Global,
    api: &Api,
    cluster: &str,
    join: &Join,
    hubs: Vec<String>,
) -> Result<()> {
    let pin = join.pin.as_deref().map(pin).transpose()?;
    let register = match join.mtls {
        true => registration_url(api, join).await?,
        false => None,
    };
    let (path, body) = match join.mtls {
        true => (
            "/api/v1/agents/tokens".to_owned(),
            json!({"cluster": cluster}),
        ),
        false => (cluster_path(cluster, "/tokens")?, json!({})),
    };
    let Some(minted) = api.change(Method::POST, &path, Some(body)).await? else {
        return Ok(());
    };
    let token = minted["token"]
        .as_str()
        .and_then(|token| TokenText::new(token).ok());
    let token = token.ok_or_else(|| {
        let fix = "check that control is of this version";
        CliError::new(
            "control_broken",
            "control sent no token",
            "no usable token",
            "control",
            fix,
        )
    })?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let string = JoinString {
        hubs,
        cluster: cluster.parse().expect("the id was checked"),
        token,
        spki_pin: pin,
        expires_unix_s: now + life_s(join),
        register,
    };
    let word = string.encode().map_err(|why| {
        CliError::usage(
            "no join string can be made",
            why,
            "give --hub as wss://HOST[:PORT]/agent",
        )
    })?;
    let bare = format!("culvert-agent join {} --target HOST:PORT", word.as_str());
    let script = systemd::script(cluster, word.as_str());
    if global.output == Format::Json {
        let said = json!({"cluster": cluster, "token_id": minted["token_id"], "join": word.as_str(),
            "command": bare, "systemd": script});
        output::json(&said);
        return Ok(());
    }
    let within = match join.mtls {
        true => "15 min, once".to_owned(),
        false => format!("{} h", join.join_hours),
    };
    eprintln!("On the private side, within {within} (the string holds a secret):");
    println!(
        "{}",
        match join.paste {
            Paste::Shell => bare,
            Paste::Systemd => script,
        }
    );
    Ok(())
}

/// A bootstrap token lives for fifteen minutes, whatever is asked for.
fn life_s(join: &Join) -> u64 {
    match join.mtls {
        true => BOOTSTRAP_LIFE_S,
        false => join.join_hours * 3600,
    }
}

/// Where agents register: as given, or by way of control's public URL.
async fn registration_url(api: &Api, join: &Join) -> Result<Option<String>> {
    if join.registration_url.is_some() {
        return Ok(join.registration_url.clone());
    }
    let status = api.get("/api/v1/status").await?;
    let public = status["public_url"].as_str().filter(|url| !url.is_empty());
    Ok(public.map(|url| format!("{}{REGISTER_PATH}", url.trim_end_matches('/'))))
}

/// `sha256:` and 64 hex digits.
fn pin(text: &str) -> Result<[u8; 32]> {
    let bad = || CliError::usage("this is no pin", text, "write sha256: and 64 hex digits");
    let hex = text
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64)
        .ok_or_else(bad)?;
    let mut pin = [0; 32];
    for (byte, at) in pin.iter_mut().zip((0..64).step_by(2)) {
        let digits = hex.get(at..at + 2).ok_or_else(bad)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
    }
    Ok(pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_64_hex_digits() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(pin(&good).unwrap(), [10; 32]);
        let short = &good[..70];
        let letters = good.replace('a', "g");
        let wide = format!("sha256:{}é", "0".repeat(62));
        for bad in [short, &letters, &wide, &good[7..]] {
            assert!(pin(bad).is_err(), "{bad}");
        }
    }
}

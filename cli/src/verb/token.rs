//! `culvert token`: mint, rotate, revoke, list, and `api`.

use http::Method;
use serde_json::{Value, json};

use super::{api_token, cluster_path, confirm};
use crate::api::Api;
use crate::args::{Format, Global, Token};
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const COLUMNS: &[Column] = &[
    ("TOKEN", "token_id"),
    ("STATE", "state"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
    ("LAST USED", "last_used_at"),
];

pub async fn run(global: &Global, api: &Api, verb: Token) -> Result<()> {
    match verb {
        Token::Mint {
            cluster,
            expires_hours,
        } => {
            let path = cluster_path(&cluster, "/tokens")?;
            let body = match expires_hours {
                Some(hours) => json!({"expires_in_seconds": hours.saturating_mul(3600)}),
                None => json!({}),
            };
            shown_once(global, api.change(Method::POST, &path, Some(body)).await?);
            Ok(())
        }
        Token::Rotate {
            cluster,
            overlap,
            now,
        } => rotate(global, api, &cluster, overlap, now).await,
        Token::Revoke { cluster, id } => revoke(global, api, &cluster, id).await,
        Token::Api(verb) => api_token::run(global, api, verb).await,
        Token::List { cluster } => {
            let tokens = api.get(&cluster_path(&cluster, "/tokens")?).await?;
            output::show(global.output, &tokens, COLUMNS);
            Ok(())
        }
    }
}

async fn rotate(global: &Global, api: &Api, cluster: &str, overlap: u64, now: bool) -> Result<()> {
    let path = cluster_path(cluster, "/rotate-token")?;
    let (path, body) = if now {
        confirm(
            global,
            &format!("{cluster}: sessions with the old tokens end at once."),
        )?;
        (format!("{path}?now=true"), json!({}))
    } else {
        (path, json!({"overlap_seconds": overlap}))
    };
    let rotated = api.change(Method::POST, &path, Some(body)).await?;
    if let Some(until) = rotated
        .as_ref()
        .and_then(|answer| answer["old_valid_until"].as_str())
    {
        eprintln!("the old tokens of {cluster} work until {until}");
    }
    shown_once(global, rotated);
    Ok(())
}

async fn revoke(global: &Global, api: &Api, cluster: &str, id: Option<String>) -> Result<()> {
    let (method, path, what) = match id {
        Some(id) => {
            if !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                let fix = "copy it from culvert token list";
                return Err(CliError::usage("this is no token id", id, fix));
            }
            let path = cluster_path(cluster, &format!("/tokens/{id}"))?;
            (
                Method::DELETE,
                path,
                format!("{cluster}: token {id} ends at once."),
            )
        }
        None => {
            let path = cluster_path(cluster, "/revoke")?;
            let what = format!("{cluster}: every token, session and live stream ends at once.");
            (Method::POST, path, what)
        }
    };
    confirm(global, &what)?;
    if let Some(done) = api.change(method, &path, None).await? {
        if global.output == Format::Json {
            output::json(&done);
        }
        eprintln!("revoked; culvert agent command {cluster} lets an agent in again");
    }
    Ok(())
}

/// A token goes to standard output alone, so that it can be piped to a file.
fn shown_once(global: &Global, answer: Option<Value>) {
    let Some(answer) = answer else { return };
    if global.output == Format::Json {
        return output::json(&answer);
    }
    eprintln!(
        "token {} (shown once):",
        answer["token_id"].as_str().unwrap_or("-")
    );
    println!("{}", answer["token"].as_str().unwrap_or_default());
}

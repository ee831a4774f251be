//! `culvert connect`: agents that ask for a token, and what is decided about them.

use http::Method;
use serde_json::{Value, json};

use super::{cluster_path, confirm};
use crate::api::Api;
use crate::args::connect::{Approve, Connect};
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const PATH: &str = "/api/v1/connect/requests";

/// What the agent says of itself is called so: nobody vouches for it.
const COLUMNS: &[Column] = &[
    ("CODE", "user_code"),
    ("STATUS", "status"),
    ("FROM", "address"),
    ("SAYS CLUSTER", "cluster"),
    ("SAYS HOST", "host"),
    ("SAYS VERSION", "agent_version"),
    ("FOR", "cluster_id"),
    ("EXPIRES", "expires_at"),
    ("REQUEST", "request_id"),
];

pub async fn run(global: &Global, api: &Api, verb: Connect) -> Result<()> {
    match verb {
        Connect::List => {
            output::show(global.output, &api.list(PATH).await?, COLUMNS);
            Ok(())
        }
        Connect::Approve(approve) => self::approve(global, api, approve).await,
        Connect::Deny { request } => {
            let held = find(api, &request).await?;
            let what = format!("The agent {} gets no token.", said(&held));
            confirm(global, &what)?;
            let path = format!("{PATH}/{}/deny", text(&held, "request_id"));
            if let Some(done) = api.change(Method::POST, &path, Some(json!({}))).await? {
                show(global, &done);
                eprintln!("refused; the agent ends");
            }
            Ok(())
        }
    }
}

async fn approve(global: &Global, api: &Api, approve: Approve) -> Result<()> {
    // Named before it travels.
    cluster_path(&approve.cluster, "")?;
    let held = find(api, &approve.request).await?;
    let what = format!(
        "The agent {} gets a token of cluster {}.",
        said(&held),
        approve.cluster
    );
    confirm(global, &what)?;
    let mut body = json!({"cluster": approve.cluster, "create": approve.create});
    if let Some(kind) = approve.target_kind {
        body["spec"] = json!({"target_kind": kind});
    }
    let path = format!("{PATH}/{}/approve", text(&held, "request_id"));
    if let Some(done) = api.change(Method::POST, &path, Some(body)).await? {
        show(global, &done);
        eprintln!("approved; the agent fetches its token within seconds");
    }
    Ok(())
}

/// The one request with this code or id.
async fn find(api: &Api, named: &str) -> Result<Value> {
    let all = api.list(PATH).await?;
    let items = all["items"].as_array().map_or(&[][..], Vec::as_slice);
    let is_it = |item: &&Value| {
        text(item, "request_id") == named || text(item, "user_code").eq_ignore_ascii_case(named)
    };
    let mut found = items.iter().filter(is_it);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => Err(CliError::new(
            "unknown_connect_request",
            "no such request waits",
            named.escape_debug(),
            "cli",
            "see culvert connect ls; the agent may ask anew",
        )),
        (Some(_), Some(_)) => Err(CliError::usage(
            "several requests have this code",
            named.escape_debug(),
            "give the request's id, from culvert connect ls",
        )),
    }
}

/// Which one, for who is asked to confirm it.
fn said(held: &Value) -> String {
    let word = |field| text(held, field).escape_debug().to_string();
    let host = match text(held, "host") {
        "" => String::new(),
        _ => format!(", which calls itself {}", word("host")),
    };
    format!(
        "with code {} at {}{host}",
        word("user_code"),
        word("address")
    )
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn show(global: &Global, done: &Value) {
    if global.output == Format::Json {
        output::json(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_confirmed_names_code_and_address_and_no_control_character() {
        let held = json!({"user_code": "BCDF-GHJK", "address": "192.0.2.1", "host": "a\u{1b}b"});
        let said = said(&held);
        assert!(said.contains("BCDF-GHJK at 192.0.2.1"), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
}

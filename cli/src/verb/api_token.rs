//! `culvert token api`: what machines show to control's API.

use http::Method;
use serde_json::json;

use super::confirm;
use crate::api::Api;
use crate::args::login::ApiToken;
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const PATH: &str = "/api/v1/api-tokens";

const COLUMNS: &[Column] = &[
    ("TOKEN", "token_id"),
    ("NAME", "name"),
    ("SCOPES", "scopes"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
];

pub async fn run(global: &Global, api: &Api, verb: ApiToken) -> Result<()> {
    match verb {
        ApiToken::List => {
            output::show(global.output, &api.list(PATH).await?, COLUMNS);
            Ok(())
        }
        ApiToken::Create { name, scopes, ttl } => {
            let mut body = json!({"name": name, "scopes": scopes});
            if let Some(seconds) = ttl {
                body["expires_in_seconds"] = json!(seconds);
            }
            let Some(minted) = api.change(Method::POST, PATH, Some(body)).await? else {
                return Ok(());
            };
            if global.output == Format::Json {
                output::json(&minted);
                return Ok(());
            }
            let text = |field: &str| minted[field].as_str().unwrap_or("-").to_owned();
            eprintln!(
                "API token {} until {} (shown once):",
                text("token_id"),
                text("expires_at")
            );
            output::line(&text("token"));
            Ok(())
        }
        ApiToken::Revoke { id } => {
            if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                let fix = "copy it from culvert token api ls";
                return Err(CliError::usage("this is no token id", id, fix));
            }
            confirm(global, &format!("API token {id} ends at once."))?;
            let path = format!("{PATH}/{id}");
            if api.change(Method::DELETE, &path, None).await?.is_some() {
                eprintln!("revoked; culvert token api create makes another");
            }
            Ok(())
        }
    }
}

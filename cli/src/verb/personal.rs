//! `culvert personal-token`: what people show to reach services.

use http::Method;
use serde_json::json;

use super::confirm;
use crate::api::Api;
use crate::args::{Format, Global, MintPersonal, PersonalToken};
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const PATH: &str = "/api/v1/personal-tokens";

const COLUMNS: &[Column] = &[
    ("TOKEN", "token_id"),
    ("PRINCIPAL", "principal"),
    ("REACHES", "grants"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
    ("IN FILE", "in_file"),
];

pub async fn run(global: &Global, api: &Api, verb: PersonalToken) -> Result<()> {
    match verb {
        PersonalToken::Mint(mint) => self::mint(global, api, mint).await,
        PersonalToken::List => {
            output::show(global.output, &api.list(PATH).await?, COLUMNS);
            Ok(())
        }
        PersonalToken::Revoke { id } => {
            if !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                let fix = "copy it from culvert personal-token list";
                return Err(CliError::usage("this is no token id", id, fix));
            }
            confirm(global, &format!("personal token {id} ends at once."))?;
            let path = format!("{PATH}/{id}");
            if api.change(Method::DELETE, &path, None).await?.is_some() {
                eprintln!("revoked; culvert personal-token mint makes another");
            }
            Ok(())
        }
    }
}

/// The token goes to standard output alone, so that it can be piped to a file.
async fn mint(global: &Global, api: &Api, mint: MintPersonal) -> Result<()> {
    let mut body = json!({"principal": mint.principal, "grants": mint.grants});
    if let Some(seconds) = mint.ttl {
        body["expires_in_seconds"] = json!(seconds);
    }
    let Some(minted) = api.change(Method::POST, PATH, Some(body)).await? else {
        return Ok(());
    };
    let hub = match api.get("/api/v1/status").await {
        Ok(status) => status["public_url"].as_str().map(str::to_owned),
        // The token is there and must be shown, whatever becomes of the hint.
        Err(_) => None,
    };
    let forward = forward(hub.as_deref().unwrap_or("HUB-URL"), &mint.grants);
    if global.output == Format::Json {
        let mut said = minted;
        said["forward"] = json!(forward);
        output::json(&said);
        return Ok(());
    }
    let text = |field: &str| minted[field].as_str().unwrap_or("-").to_owned();
    eprintln!(
        "token {} of {} until {} (shown once):",
        text("token_id"),
        text("principal"),
        text("expires_at")
    );
    println!("{}", text("token"));
    eprintln!("With it in FILE, mode 0600, on the laptop:\n{forward}");
    Ok(())
}

/// The command that uses the first grant.
fn forward(hub: &str, grants: &[String]) -> String {
    let first = grants.first().and_then(|grant| grant.split_once('/'));
    let (cluster, service) = match first {
        Some((cluster, "*")) => (cluster, "SERVICE"),
        Some(named) => named,
        None => ("CLUSTER", "SERVICE"),
    };
    format!(
        "culvert-agent forward --hub {hub} --token-file FILE --cluster {cluster} \
         --service {service} --listen 127.0.0.1:PORT"
    )
}

#[cfg(test)]
mod tests {
    use super::forward;

    #[test]
    fn the_hint_names_what_the_token_reaches() {
        let hint = |grant: &str| forward("https://hub.test", &[grant.to_owned()]);
        assert!(hint("prod/pg").contains("--hub https://hub.test "));
        assert!(hint("prod/pg").contains("--cluster prod --service pg "));
        assert!(hint("prod/*").contains("--cluster prod --service SERVICE "));
    }
}

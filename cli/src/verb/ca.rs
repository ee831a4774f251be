//! `culvert ca`: the CAs that certify agents, and their rotation.

use http::Method;

use super::confirm;
use crate::api::Api;
use crate::args::{Ca, Format, Global};
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const PATH: &str = "/api/v1/agent-cas";

const COLUMNS: &[Column] = &[
    ("CA", "ca_id"),
    ("STATE", "state"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
    ("LAST CERTIFICATE ENDS", "last_certificate_ends_at"),
];

pub async fn run(global: &Global, api: &Api, verb: Ca) -> Result<()> {
    match verb {
        Ca::List => {
            output::show(global.output, &api.get(PATH).await?, COLUMNS);
            Ok(())
        }
        Ca::Stage => change(global, api, "", "staged: agents and data planes trust it from now on; when `culvert agent list` shows all agents, culvert ca promote").await,
        Ca::Promote => change(global, api, "/promote", "promoted: it signs from now on; agents renew at two thirds of their certificates' life, then culvert ca retire the one before").await,
        Ca::Retire { id } => retire(global, api, id).await,
    }
}

async fn change(global: &Global, api: &Api, below: &str, done: &str) -> Result<()> {
    let path = format!("{PATH}{below}");
    let Some(ca) = api.change(Method::POST, &path, None).await? else {
        return Ok(());
    };
    if global.output == Format::Json {
        output::json(&ca);
        return Ok(());
    }
    let id = ca["ca_id"].as_str().unwrap_or("-");
    eprintln!("agent CA {id} {done}");
    Ok(())
}

async fn retire(global: &Global, api: &Api, id: String) -> Result<()> {
    if id.is_empty() || !id.chars().all(|c| c.is_ascii_hexdigit()) {
        let fix = "copy it from culvert ca list";
        return Err(CliError::usage("this is no id of a CA", id, fix));
    }
    let what = format!("Agents whose certificates are of CA {id} alone have to enrol anew.");
    confirm(global, &what)?;
    let path = format!("{PATH}/{id}");
    if api.change(Method::DELETE, &path, None).await?.is_some() {
        eprintln!("retired; nobody trusts it any more");
    }
    Ok(())
}

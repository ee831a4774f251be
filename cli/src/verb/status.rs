//! `culvert status`: the hub at a glance.

use serde_json::json;

use crate::api::Api;
use crate::args::{Format, Global};
use crate::error::Result;
use crate::output::{self, Column};

const HUB: &[Column] = &[
    ("VERSION", "version"),
    ("GENERATION", "generation"),
    ("CLUSTERS", "clusters"),
    ("AGENTS", "agents"),
    ("DATA PLANES", "dataplanes"),
    ("STORE", "store"),
    ("LICENCE", "license"),
    ("STARTED", "started_at"),
];

const DATAPLANES: &[Column] = &[
    ("DATA PLANE", "id"),
    ("CONNECTED", "connected"),
    ("GENERATION", "generation"),
    ("VERSION", "version"),
    ("SESSIONS", "sessions"),
    ("LAST REPORT", "last_report_at"),
];

pub async fn run(global: &Global, api: &Api) -> Result<()> {
    let status = api.get("/api/v1/status").await?;
    let dataplanes = api.get("/api/v1/dataplanes").await?;
    if global.output == Format::Json {
        output::json(&json!({"hub": status, "dataplanes": dataplanes["items"]}));
        return Ok(());
    }
    if let Some(text) = status["banner"]["text"].as_str() {
        let level = status["banner"]["level"].as_str().unwrap_or_default();
        eprintln!("{level}: {}", text.escape_debug());
    }
    output::show(Format::Table, &status, HUB);
    println!();
    output::show(Format::Table, &dataplanes, DATAPLANES);
    Ok(())
}

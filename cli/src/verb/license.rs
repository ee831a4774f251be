//! `culvert license`.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use culvert_licence::{KeySet, License, Terms, issue, verify};
use culvert_net::crypto::{SigningKey, read_private};
use serde_json::{Value, json};

use crate::api::Api;
use crate::args::license::{Issue, License as Verb};
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const STANDING: &[Column] = &[
    ("STATE", "state"),
    ("ORG", "org"),
    ("TIER", "tier"),
    ("CLUSTERS MAX", "max_clusters"),
    ("EXPIRES", "expires_at"),
    ("SOURCE", "source"),
    ("HEARTBEAT", "heartbeat"),
    ("LAST SUCCESS", "last_success_at"),
];

const TERMS: &[Column] = &[
    ("STATE", "state"),
    ("ID", "id"),
    ("ORG", "org"),
    ("TIER", "tier"),
    ("CLUSTERS MAX", "max_clusters"),
    ("EXPIRES", "expires_at"),
];

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    match verb {
        Verb::Show => show(global, &Api::new(global)?).await,
        Verb::Verify { file, public_key } => check(global, &file, public_key.as_deref()),
        Verb::Heartbeat { .. } => {
            let payload = Api::new(global)?.get("/api/v1/license/heartbeat").await?;
            output::json(&payload);
            Ok(())
        }
        Verb::Issue(args) => sign(global, &args),
    }
}

async fn show(global: &Global, api: &Api) -> Result<()> {
    let license = api.get("/api/v1/license").await?;
    if global.output == Format::Json {
        output::json(&license);
        return Ok(());
    }
    if let Some(text) = license["banner"]["text"].as_str() {
        let level = license["banner"]["level"].as_str().unwrap_or_default();
        eprintln!("{level}: {}", text.escape_debug());
    }
    if let Some(text) = license["heartbeat"]["message"].as_str() {
        eprintln!("message: {}", text.escape_debug());
    }
    let heartbeat = &license["heartbeat"];
    let mut row = license["license"].clone();
    if row.is_null() {
        row = json!({});
    }
    row["state"] = license["state"].clone();
    row["heartbeat"] = match heartbeat["enabled"].as_bool() {
        Some(true) => heartbeat["rung"].clone(),
        _ => json!("disabled"),
    };
    row["last_success_at"] = heartbeat["last_success_at"].clone();
    output::show(Format::Table, &row, STANDING);
    Ok(())
}

fn check(global: &Global, file: &Path, public_key: Option<&str>) -> Result<()> {
    let keys = match public_key {
        None => KeySet::embedded(),
        Some(hex) => KeySet::parse(hex).map_err(|why| {
            let fix = "give the 64 hex digits that `culvert license issue` prints";
            CliError::usage("this is no public key", why, fix)
        })?,
    };
    let text = read(file)?;
    let now = unix_s();
    let license = verify(&text, &keys, now).map_err(|why| {
        let fix = if keys.has_placeholder() {
            "this build has no vendor key: use a release, or give --public-key"
        } else {
            "ask the vendor for a licence of this product"
        };
        CliError::new(
            "license_invalid",
            "the licence is not believed",
            why,
            "cli",
            fix,
        )
    })?;
    output::show(global.output, &terms(&license, now), TERMS);
    Ok(())
}

fn terms(license: &License, now: u64) -> Value {
    let state = if now >= license.expires_unix_s {
        "expired"
    } else {
        "valid"
    };
    json!({
        "state": state,
        "id": license.id,
        "org": license.org,
        "tier": license.tier,
        "max_clusters": license.max_clusters,
        "expires_at": license.expiry(),
    })
}

fn sign(global: &Global, args: &Issue) -> Result<()> {
    if global.dry_run {
        eprintln!(
            "dry run: would sign a test licence with {}",
            args.test_key.display()
        );
        return Ok(());
    }
    let unusable = |why: &dyn std::fmt::Display| {
        let fix = "give --test-key the name of a new file, or one that this verb made";
        CliError::usage("the test key cannot be used", why, fix)
    };
    let key = SigningKey::load_or_generate(&args.test_key).map_err(|why| unusable(&why))?;
    let pkcs8 = read_private(&args.test_key).map_err(|why| unusable(&why))?;
    let public = key.verifying_key().to_bytes();
    let now = unix_s();
    let terms = Terms {
        id: &args.id,
        org: &args.org,
        tier: args.tier.as_deref(),
        max_clusters: args.max_clusters,
        issued_unix_s: now,
        expires_unix_s: now.saturating_add(args.ttl),
        kid: args.kid.as_deref(),
    };
    let text = issue(&terms, &pkcs8, &public).map_err(|why| unusable(&why))?;
    let hex: String = public.iter().map(|byte| format!("{byte:02x}")).collect();
    if global.output == Format::Json {
        output::json(&json!({"license": text, "public_key": hex}));
    } else {
        eprintln!("test licence; its public key is {hex}");
        output::line(&text);
    }
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    use std::io::Read as _;
    let text = || {
        let mut text = String::new();
        std::fs::File::open(file)?
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    text().map_err(|why| {
        let seen = format!("{}: {why}", file.display());
        CliError::usage("the licence cannot be read", seen, "give a readable file")
    })
}

fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

//! `culvert cluster`: the registered private sites.

use http::Method;
use serde_json::{Map, Value, json};

use super::{cluster_path, confirm, join};
use crate::api::Api;
use crate::args::access::Access;
use crate::args::{Add, Cluster, Global};
use crate::error::Result;
use crate::output::{self, Column};

const COLUMNS: &[Column] = &[
    ("CLUSTER", "id"),
    ("NAME", "name"),
    ("POLICY", "policy"),
    ("TARGET", "target_kind"),
    ("TOKENS", "tokens_live"),
    ("AGENTS", "agents"),
    ("LABELS", "labels"),
];

const ACCESS_COLUMNS: &[Column] = &[
    ("MODE", "mode"),
    ("GRANTS", "grants"),
    ("ALLOWED", "allowed_groups"),
    ("PREFIX", "prefix"),
    ("READ-ONLY", "read_only"),
    ("USER", "username_claim"),
];

pub async fn run(global: &Global, api: &Api, verb: Cluster) -> Result<()> {
    match verb {
        Cluster::Add(add) => self::add(global, api, add).await,
        Cluster::List => {
            output::show(global.output, &api.list("/api/v1/clusters").await?, COLUMNS);
            Ok(())
        }
        Cluster::Show { id } => {
            output::show(
                global.output,
                &api.get(&cluster_path(&id, "")?).await?,
                COLUMNS,
            );
            Ok(())
        }
        Cluster::Access(wanted) => access(global, api, wanted).await,
        Cluster::Remove { id } => {
            let path = cluster_path(&id, "")?;
            confirm(
                global,
                &format!("{id}: its tokens, sessions and live streams end at once."),
            )?;
            if api.change(Method::DELETE, &path, None).await?.is_some() {
                eprintln!("removed {id}; culvert cluster add {id} registers it anew");
            }
            Ok(())
        }
    }
}

async fn access(global: &Global, api: &Api, wanted: Access) -> Result<()> {
    let path = cluster_path(&wanted.id, "")?;
    let grants = wanted
        .grants
        .into_iter()
        .map(|grant| json!({"group": grant.group, "tier": grant.tier, "expires_at": grant.until}));
    let access = json!({
        "mode": wanted.mode,
        "grants": grants.collect::<Vec<_>>(),
        "allowed_groups": wanted.allowed_groups,
        "prefix": wanted.prefix,
        "read_only": wanted.read_only,
        "username_claim": wanted.username_claim,
    });
    let body = json!({"access": access});
    if let Some(changed) = api.change(Method::PATCH, &path, Some(body)).await? {
        output::show(global.output, &changed["access"], ACCESS_COLUMNS);
    }
    Ok(())
}

async fn add(global: &Global, api: &Api, add: Add) -> Result<()> {
    cluster_path(&add.id, "")?;
    let mut body = Map::from_iter([("id".to_owned(), json!(add.id))]);
    let fields = [
        ("name", add.name),
        ("policy", add.policy),
        ("target_kind", add.target_kind),
    ];
    for (field, value) in fields {
        if let Some(value) = value {
            body.insert(field.to_owned(), json!(value));
        }
    }
    if !add.labels.is_empty() {
        let labels = add
            .labels
            .into_iter()
            .map(|(key, value)| (key, json!(value)));
        body.insert("labels".to_owned(), Value::Object(labels.collect()));
    }
    let hubs = join::hubs(api, &add.join).await?;
    let created = api
        .change(Method::POST, "/api/v1/clusters", Some(body.into()))
        .await?;
    if created.is_some() {
        eprintln!(
            "added {}; culvert cluster remove {} takes it back",
            add.id, add.id
        );
    }
    join::print(global, api, &add.id, &add.join, hubs).await
}

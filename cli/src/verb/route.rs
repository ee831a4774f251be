//! `culvert route`: ways to services beside HTTP.

use http::Method;
use serde_json::json;

use super::{cluster_path, confirm};
use crate::api::Api;
use crate::args::{AddRoute, Format, Global, Route};
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const COLUMNS: &[Column] = &[
    ("ROUTE", "route_id"),
    ("CLUSTER", "cluster"),
    ("SERVICE", "service"),
    ("TCP", "tcp"),
    ("SEALED", "sealed"),
    ("ADDR", "addr"),
    ("IN FILE", "in_file"),
];

pub async fn run(global: &Global, api: &Api, verb: Route) -> Result<()> {
    match verb {
        Route::Add(add) => self::add(global, api, &add).await,
        Route::List { cluster } => {
            let path = match cluster {
                Some(cluster) => cluster_path(&cluster, "/routes")?,
                None => "/api/v1/routes".to_owned(),
            };
            output::show(global.output, &api.list(&path).await?, COLUMNS);
            Ok(())
        }
        Route::Remove { cluster, id } => {
            if !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                let fix = "copy it from culvert route list";
                return Err(CliError::usage("this is no route id", id, fix));
            }
            let path = cluster_path(&cluster, &format!("/routes/{id}"))?;
            confirm(
                global,
                &format!("{cluster}: the connections of route {id} end at once."),
            )?;
            if api.change(Method::DELETE, &path, None).await?.is_some() {
                eprintln!("removed; culvert route add {cluster} makes another");
            }
            Ok(())
        }
    }
}

async fn add(global: &Global, api: &Api, add: &AddRoute) -> Result<()> {
    let AddRoute {
        cluster, service, ..
    } = add;
    let path = cluster_path(cluster, "/routes")?;
    let body = json!({"service": service, "tcp": add.tcp, "sealed": add.sealed, "addr": add.addr});
    let Some(route) = api.change(Method::POST, &path, Some(body)).await? else {
        return Ok(());
    };
    // Only a service that is declared sealed is reached without a TLS of the tunnel's own.
    let flag = match add.sealed {
        Some(_) => "--sealed-service",
        None => "--service",
    };
    let agent = format!("culvert-agent {flag} {service}=HOST:PORT");
    if global.output == Format::Json {
        output::json(&json!({"route": route, "agent": agent}));
        return Ok(());
    }
    let id = route["route_id"].as_str().unwrap_or("-");
    eprintln!("added {id}; culvert route remove {cluster} {id} takes it back");
    eprintln!("On the private side, beside the agent's other flags:");
    println!("{agent}");
    Ok(())
}

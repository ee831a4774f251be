//! `culvert agent`: the line to paste, and who is connected.

use super::{cluster_path, join};
use crate::api::Api;
use crate::args::{Agent, Global};
use crate::error::Result;
use crate::output::{self, Column};

const COLUMNS: &[Column] = &[
    ("CLUSTER", "cluster"),
    ("INSTANCE", "instance"),
    ("PROTOCOL", "protocol"),
    ("VERSION", "version"),
    ("RTT MS", "rtt_ms"),
    ("EPOCH", "epoch"),
    ("DATA PLANE", "dataplane"),
    ("LAST SEEN", "last_seen_at"),
];

pub async fn run(global: &Global, api: &Api, verb: Agent) -> Result<()> {
    match verb {
        Agent::Command { cluster, join } => {
            api.get(&cluster_path(&cluster, "")?).await?;
            let hubs = join::hubs(api, &join).await?;
            join::print(global, api, &cluster, &join, hubs).await
        }
        Agent::List => {
            output::show(global.output, &api.list("/api/v1/agents").await?, COLUMNS);
            Ok(())
        }
    }
}

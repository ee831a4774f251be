//! `culvert connect`.

use clap::{Args, Subcommand};

/// Agents that ask for a token.
#[derive(Subcommand)]
pub enum Connect {
    /// Who asks, from where, and with which code.
    #[command(alias = "ls")]
    List,
    /// Let an agent in: it fetches a token of the cluster.
    Approve(Approve),
    /// Refuse an agent; an approval that it did not use yet is taken back.
    Deny {
        /// The code that the agent shows, or the request's id.
        request: String,
    },
}

/// `culvert connect approve`.
#[derive(Args)]
pub struct Approve {
    /// The code that the agent shows, or the request's id.
    pub request: String,
    /// The cluster that it is of.
    #[arg(long, value_name = "ID")]
    pub cluster: String,
    /// Register the cluster with it.
    #[arg(long)]
    pub create: bool,
    /// With --create, what the agent reaches: a Kubernetes API or another HTTP service.
    #[arg(long, requires = "create", value_parser = ["kube", "http"])]
    pub target_kind: Option<String>,
}

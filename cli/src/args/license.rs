//! `culvert license`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `culvert license`.
#[derive(Subcommand)]
pub enum License {
    /// The licence's standing, and how the heartbeat fares.
    Show,
    /// Check a licence offline and print what it says.
    Verify {
        /// File that holds it.
        file: PathBuf,
        /// Check against this public key, 64 hex digits, in place of the embedded ones.
        #[arg(long, value_name = "HEX")]
        public_key: Option<String>,
    },
    /// What the license server is told.
    Heartbeat {
        /// Print the exact fields that would go out.
        #[arg(long, required = true)]
        print: bool,
    },
    /// Sign a licence for tests; no build believes it unless it was built with the test key.
    Issue(Issue),
}

/// `culvert license issue`.
#[derive(Args)]
pub struct Issue {
    /// File of the test key; made when there is none.
    #[arg(long, value_name = "FILE")]
    pub test_key: PathBuf,
    /// Id of the licence.
    #[arg(long, default_value = "test")]
    pub id: String,
    /// For whom it is.
    #[arg(long)]
    pub org: String,
    /// Its tier.
    #[arg(long)]
    pub tier: Option<String>,
    /// How many clusters it speaks of.
    #[arg(long)]
    pub max_clusters: Option<u64>,
    /// Life, such as 30d; 0s makes one that is expired.
    #[arg(long, default_value = "365d", value_parser = super::seconds)]
    pub ttl: u64,
    /// Id of the key, as a build's list of keys names it.
    #[arg(long)]
    pub kid: Option<String>,
}

//! `culvert store`.

use std::path::PathBuf;

use clap::Subcommand;

/// `culvert store`.
#[derive(Subcommand)]
pub enum Store {
    /// Copy a SQLite store into an empty PostgreSQL database; control must be stopped.
    Migrate {
        /// The SQLite store.
        #[arg(long, value_name = "sqlite:PATH")]
        from: String,
        /// File that holds the DSN of the database, as control's --db-dsn-file.
        #[arg(long, value_name = "FILE")]
        to_file: PathBuf,
    },
}

//! `culvert login`, `logout`, `token api`, and where a login is kept.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Where `culvert login` keeps what it was given.
#[derive(Args)]
pub struct Place {
    /// File of the login [default: culvert/login.json in XDG_CONFIG_HOME, else in ~/.config].
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CULVERT_LOGIN_FILE",
        hide_env_values = true
    )]
    pub login_file: Option<PathBuf>,
    /// Where it lies without --login-file.
    #[arg(env = "XDG_CONFIG_HOME", long, hide = true, global = true)]
    pub config_home: Option<PathBuf>,
    /// Where it lies without --login-file and XDG_CONFIG_HOME.
    #[arg(env = "HOME", long, hide = true, global = true)]
    pub user_home: Option<PathBuf>,
}

impl Place {
    /// The file; `None` where nobody says.
    pub fn file(&self) -> Option<PathBuf> {
        let config = self.config_home.clone();
        let config = config.or_else(|| self.user_home.as_ref().map(|home| home.join(".config")));
        let file = config.map(|config| config.join("culvert/login.json"));
        self.login_file.clone().or(file)
    }
}

/// `culvert login`.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("who").required(true).args(["email", "token_file"]))]
pub struct Login {
    /// The break-glass administrator; the password is read from standard input.
    #[arg(long)]
    pub email: Option<String>,
    /// Read the password from a file instead.
    #[arg(long, value_name = "FILE", requires = "email")]
    pub password_file: Option<PathBuf>,
    /// Use the API token in a file; it is tried before it is kept.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// `culvert token api`.
#[derive(Subcommand)]
pub enum ApiToken {
    /// Live tokens: ids, names, scopes and ends, never the tokens.
    #[command(alias = "ls")]
    List,
    /// Make a token for a machine; it is shown once.
    #[command(alias = "mint")]
    Create {
        /// What it is for, for people.
        name: String,
        /// What it may do, may be repeated.
        #[arg(long = "scope", required = true,
              value_parser = ["read", "audit", "clusters", "tokens", "admin"])]
        scopes: Vec<String>,
        /// Life, such as 8h or 30d; default 90d, at most 366d.
        #[arg(long, value_parser = super::seconds)]
        ttl: Option<u64>,
    },
    /// End a token at once.
    #[command(alias = "rm")]
    Revoke {
        /// The token's id.
        id: String,
    },
}

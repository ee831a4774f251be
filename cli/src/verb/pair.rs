//! `culvert pair`: what the administrators of a pair's two sides type.

mod connect;
mod debug;
mod examine;
mod fingerprint;
mod init;
mod install;
mod reach;
mod register;
mod unit;
mod validate;

use std::time::{SystemTime, UNIX_EPOCH};

use culvert_pair::{
    CODE_LIFE_S, JOIN_RELAYS_MAX, KubeAccess, Registration, StoreError, Stored, check_name,
    check_relay,
};

use crate::args::Global;
use crate::args::pair::{Kube, Pair, Relays, StoreFlags};
use crate::error::{CliError, Result};

/// Where a relay listens when nobody says.
const RELAY_PORT: u16 = 443;

pub async fn run(global: &Global, verb: Pair) -> Result<()> {
    match verb {
        Pair::Init(args) => init::run(global, &args).await,
        Pair::Fingerprint(args) => fingerprint::run(global, &args).await,
        Pair::Register(args) => register::run(global, &args).await,
        Pair::Connect(args) => connect::run(global, &args).await,
        Pair::Validate(args) => validate::run(global, &args).await,
        Pair::Debug(args) => debug::run(global, &args).await,
        Pair::Install(args) => install::run(global, &args),
    }
}

fn now_unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// `host:port` of each relay; a port that is missing is 443.
fn relays(flags: &Relays) -> Result<Vec<String>> {
    if flags.relays.len() > JOIN_RELAYS_MAX {
        let seen = format!("{} relays", flags.relays.len());
        let fix = "name at most 8; a name may have several addresses";
        return Err(CliError::usage("too many relays", seen, fix));
    }
    let whole = flags.relays.iter().map(|relay| {
        let with_port = format!("{relay}:{RELAY_PORT}");
        let found = [relay, &with_port]
            .into_iter()
            .find(|r| check_relay(r).is_ok());
        found.cloned().ok_or_else(|| {
            let fix = "write --relay HOST:PORT, such as relay.example.com:443";
            CliError::usage("this is no relay", format!("{relay:?}"), fix)
        })
    });
    whole.collect()
}

fn wanted_relays(flags: &Relays) -> Result<Vec<String>> {
    let relays = relays(flags)?;
    if relays.is_empty() {
        let fix = "give --relay HOST:PORT, once for each relay";
        let seen = "no --relay";
        return Err(CliError::usage(
            "nobody said where both sides meet",
            seen,
            fix,
        ));
    }
    Ok(relays)
}

fn checked_name(name: &str) -> Result<()> {
    check_name(name).map_err(|why| {
        let fix = "use 1 to 63 lower-case letters, digits and inner hyphens";
        CliError::usage("the pair cannot be called so", why, fix)
    })
}

/// The text of `--store`; Vaults come later, and are refused by name.
fn store_text(flags: &StoreFlags) -> Result<&str> {
    let vault = flags
        .secretstore_address
        .as_ref()
        .or(flags.secretstore_token.as_ref());
    if vault.is_some() {
        return Err(of_store(&StoreError::Vault));
    }
    flags.store.as_deref().ok_or_else(|| {
        let fix = "give --store file:DIR or --store secret:NAMESPACE";
        CliError::usage(
            "nobody said where the bridge keeps its pairs",
            "no --store",
            fix,
        )
    })
}

fn open(text: &str, kube: &Kube) -> Result<Stored> {
    let pod = KubeAccess::in_cluster();
    let access = KubeAccess {
        server: kube.kube_api.clone().unwrap_or(pod.server),
        ca_file: kube.kube_ca_file.clone().unwrap_or(pod.ca_file),
        token_file: kube.kube_token_file.clone().unwrap_or(pod.token_file),
    };
    Stored::open_with(text, &access).map_err(|why| of_store(&why))
}

/// A broker's state; `memory:` before it keeps the certificate out, and the key is there all the same.
fn open_state(text: &str, kube: &Kube) -> Result<Stored> {
    open(text.strip_prefix("memory:").unwrap_or(text), kube)
}

/// What a store says, with the one thing to do.
fn of_store(why: &StoreError) -> CliError {
    let what = "the store cannot be used";
    match why {
        StoreError::Form { .. } | StoreError::Vault | StoreError::Name { .. } => {
            CliError::usage(what, why, "write file:DIR or secret:NAMESPACE[/PREFIX]")
        }
        StoreError::Unreachable { .. } => {
            let fix =
                "outside of the cluster give --kube-api, --kube-ca-file and --kube-token-file";
            CliError::new("store_unreachable", what, why, "path", fix)
        }
        StoreError::Refused { fix, .. } => {
            CliError::new("store_refused", what, why, "upstream", fix)
        }
        StoreError::Conflict { .. } => CliError::new(
            "store_conflict",
            what,
            why,
            "cli",
            "type the same command again",
        ),
        StoreError::Mode { .. } | StoreError::Owner { .. } => CliError::new(
            "store_not_private",
            what,
            why,
            "cli",
            "do what is said above, then again",
        ),
        _ => CliError::new(
            "store",
            what,
            why,
            "cli",
            "mend the file or Secret that is named",
        ),
    }
}

fn of_make(why: impl std::fmt::Display) -> CliError {
    let fix = "type the same command again; if it stays, report it";
    CliError::new("pair", "the pair could not be made", why, "cli", fix)
}

/// Says what would be done, and that it is not.
fn would(what: &str) {
    eprintln!("dry run: {what}");
}

/// The bridge's command line.
fn bridge_command(to: &str, relays: &[String], store: &str) -> String {
    format!(
        "culvert-agent bridge --to {to}{} --store {store}",
        relay_flags(relays)
    )
}

fn relay_flags(relays: &[String]) -> String {
    if relays.is_empty() {
        return " --relay HOST:PORT".to_owned();
    }
    relays
        .iter()
        .map(|relay| format!(" --relay {relay}"))
        .collect()
}

/// How long the code of a registration is good, in words.
fn code_life(registration: &Registration) -> String {
    let reissue = registration
        .voucher()
        .is_some_and(|voucher| voucher.reissue);
    let hours = CODE_LIFE_S / 3_600;
    if reissue {
        format!("good within {hours} h, and from then on for the broker that used it")
    } else {
        format!("good once, within {hours} h")
    }
}

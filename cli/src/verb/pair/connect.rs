//! `culvert pair connect`: all certificates by hand, as files for either side.

use std::path::PathBuf;

use culvert_pair::{Authority, FileStore, Registration, Store as _, Stored};
use serde_json::json;

use super::{
    checked_name, now_unix_s, of_make, of_store, open, relay_flags, store_text, wanted_relays,
    would,
};
use crate::args::pair::Connect;
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output;

/// The files, in the order in which they are written; the registration comes last.
const FILES: [&str; 5] = [
    "ca.crt",
    "bridge.crt",
    "bridge.key",
    "broker.crt",
    "broker.key",
];

pub async fn run(global: &Global, args: &Connect) -> Result<()> {
    checked_name(&args.name)?;
    let relays = wanted_relays(&args.relays)?;
    let store = match open(store_text(&args.store)?, &args.store.kube)? {
        Stored::File(store) => store,
        Stored::Secret(store) => {
            let fix = "give --store file:DIR, or let culvert pair init keep the pair in a Secret";
            let what = "certificates by hand are files";
            return Err(CliError::usage(what, store.place(), fix));
        }
    };
    let now = now_unix_s();
    let authority = Authority::generate(&args.name, now).map_err(of_make)?;
    let broker = authority.broker(now).map_err(of_make)?;
    let registration = Registration::by_hand(authority, &relays, now).map_err(of_make)?;
    let id = registration.id().to_string();
    if global.dry_run {
        let dir = store.dir().join("<info hash, 8 digits>");
        for file in FILES.into_iter().chain(["pair.json"]) {
            would(&format!("write {}", dir.join(file).display()));
        }
        return Ok(());
    }
    let bridge = registration.bridge();
    let keys = [bridge.key_pem(), broker.key_pem()];
    let (ca, bridge_chain, broker_chain) =
        (bridge.ca_pem(), bridge.chain_pem(), broker.chain_pem());
    let contents = [
        ca.as_str(),
        &bridge_chain,
        &keys[0],
        &broker_chain,
        &keys[1],
    ];
    let mut paths = Vec::with_capacity(FILES.len());
    for (file, content) in FILES.into_iter().zip(contents) {
        let written = store.write_beside(&id, file, content.as_bytes());
        paths.push(written.map_err(|why| of_store(&why))?);
    }
    let saved = store.save(&registration, None).await;
    saved.map_err(|why| of_store(&why))?;
    tell(global, args, &store, &registration, &relays, &paths);
    Ok(())
}

fn tell(
    global: &Global,
    args: &Connect,
    store: &FileStore,
    registration: &Registration,
    relays: &[String],
    paths: &[PathBuf],
) {
    let path = |at: usize| paths[at].display();
    let hash = registration.info_hash();
    let line = |head: &str, certificate, key| {
        format!(
            "culvert-agent {head}{} --info-hash {hash} --tls-cert {} --tls-key {} --tls-ca {}",
            relay_flags(relays),
            path(certificate),
            path(key),
            path(0)
        )
    };
    let bridge = line(&format!("bridge --to {}", args.to), 1, 2);
    let broker = line("broker --listen 127.0.0.1:8199", 3, 4);
    if global.output == Format::Json {
        let files: Vec<String> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return output::json(&json!({
            "pair": registration.id().as_str(), "name": args.name,
            "info_hash": hash.to_string(), "files": files, "bridge": bridge, "broker": broker,
        }));
    }
    eprintln!(
        "pair {} ({}) in {}: copy ca.crt, broker.crt and broker.key to the broker's side, and \
         delete broker.key here. The CA's key is in pair.json: keep it closed.\n\
         The bridge, then the broker (certificates of 90 days):",
        registration.id(),
        args.name,
        store.dir().join(registration.id().as_str()).display(),
    );
    println!("{bridge}\n{broker}");
}

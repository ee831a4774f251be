//! `culvert pair fingerprint`: the broker's side makes its bootstrap key, and the code that stands
//! for it.

use culvert_pair::{BrokerState, PairId, Store as _};
use serde_json::json;

use super::{now_unix_s, of_make, of_store, open_state, relay_flags, relays, would};
use crate::args::pair::Fingerprint;
use crate::args::{Format, Global};
use crate::error::Result;
use crate::output;

pub async fn run(global: &Global, args: &Fingerprint) -> Result<()> {
    let relays = relays(&args.relays)?;
    let store = open_state(&args.state, &args.kube)?;
    let known = store.load_broker().await.map_err(|why| of_store(&why))?;
    let is_new = known.is_none();
    let state = match known {
        Some((state, _)) => state,
        None if global.dry_run => {
            would(&format!(
                "make a bootstrap key and keep it in {}",
                store.place()
            ));
            return Ok(());
        }
        None => {
            let state = BrokerState::generate().map_err(of_make)?;
            let saved = store.save_broker(&state, None).await;
            saved.map_err(|why| of_store(&why))?;
            state
        }
    };
    let code = state.code();
    let id = PairId::of(&code.rendezvous_id());
    let certified = state.identity().map(|identity| identity.info_hash());
    let word = code.encode();
    let register = format!(
        "culvert pair register --fingerprint -{} --store STORE",
        relay_flags(&relays)
    );
    let broker = format!(
        "culvert-agent broker --listen 127.0.0.1:8199{} --state {}",
        relay_flags(&relays),
        args.state
    );
    if global.output == Format::Json {
        output::json(&json!({
            "pair": id.as_str(), "fingerprint": word.as_str(), "new": is_new,
            "info_hash": certified.map(|hash| hash.to_string()),
            "register": register, "broker": broker, "at_unix_s": now_unix_s(),
        }));
        return Ok(());
    }
    if let Some(hash) = certified {
        eprintln!("this broker has a certificate already, of the pair with info hash {hash}");
    }
    let age = if is_new {
        "a new key"
    } else {
        "the key that is there"
    };
    eprintln!(
        "pair {id}: {age} in {}\n\
         On this side:\n  {broker}\n\
         On the other side, within a day, with the code below on standard input (a secret):\n  {register}",
        store.place(),
    );
    println!("{}", word.as_str());
    Ok(())
}

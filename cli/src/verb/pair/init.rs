//! `culvert pair init`: the bridge's side makes a pair, and one word for the broker's side.

use culvert_pair::{PairJoin, PairingCode, Registration, Store as _};
use serde_json::json;

use super::{
    bridge_command, checked_name, code_life, now_unix_s, of_make, of_store, open, store_text,
    wanted_relays, would,
};
use crate::args::pair::Init;
use crate::args::{Format, Global};
use crate::error::Result;
use crate::output;

pub async fn run(global: &Global, args: &Init) -> Result<()> {
    checked_name(&args.name)?;
    let relays = wanted_relays(&args.relays)?;
    let text = store_text(&args.store)?;
    let store = open(text, &args.store.kube)?;
    let now = now_unix_s();
    let code = PairingCode::random();
    let word = code.encode();
    let made = Registration::new(&args.name, &relays, code, false, args.reissue, now);
    let registration = made.map_err(of_make)?;
    if global.dry_run {
        would(&format!(
            "make a CA and a bridge certificate for {}, and keep them in {} as a new pair",
            args.name,
            store.place()
        ));
        return Ok(());
    }
    let join = PairJoin {
        name: args.name.clone(),
        relays: relays.clone(),
        info_hash: Some(registration.info_hash()),
        code: PairingCode::decode(&word).map_err(of_make)?,
        expires_unix_s: registration.voucher().map_or(0, |v| v.expires_unix_s),
    };
    let word = join.encode().map_err(of_make)?;
    let saved = store.save(&registration, None).await;
    saved.map_err(|why| of_store(&why))?;
    let bridge = bridge_command(&args.to, &relays, text);
    let state = if args.reissue {
        "memory:file:DIR"
    } else {
        "file:DIR"
    };
    let broker =
        format!("culvert-agent broker --listen 127.0.0.1:8199 --join-file FILE --state {state}");
    if global.output == Format::Json {
        output::json(&json!({
            "pair": registration.id().as_str(), "name": args.name, "relays": relays,
            "info_hash": registration.info_hash().to_string(), "join": word.as_str(),
            "expires_unix_s": join.expires_unix_s, "reissue": args.reissue,
            "bridge": bridge, "broker": broker,
        }));
        return Ok(());
    }
    eprintln!(
        "pair {} ({}), info hash {}\n\
         On this side, beside the service:\n  {bridge}\n\
         On the other side, with the word below in FILE (a secret; {}):\n  {broker}",
        registration.id(),
        args.name,
        registration.info_hash(),
        code_life(&registration),
    );
    println!("{}", word.as_str());
    Ok(())
}

//! `culvert pair register`: the bridge's side lets the broker in that a code stands for.

use std::io::Read as _;

use culvert_pair::{PairId, PairingCode, Registration, Store as _};
use culvert_proto::pair::RendezvousId;
use serde_json::json;

use super::{
    bridge_command, checked_name, code_life, now_unix_s, of_make, of_store, open, relays,
    store_text, would,
};
use crate::args::pair::Register;
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output;

/// Most that is read of standard input: a code, and white space around it.
const INPUT_BYTES_MAX: u64 = 1_024;

/// What became of the registration.
struct Done {
    id: PairId,
    name: String,
    info_hash: RendezvousId,
    life: String,
    repaired: bool,
}

pub async fn run(global: &Global, args: &Register) -> Result<()> {
    let text = store_text(&args.store)?;
    let relays = relays(&args.relays)?;
    if let Some(name) = &args.name {
        checked_name(name)?;
    }
    let code = read_code(&args.fingerprint)?;
    let store = open(text, &args.store.kube)?;
    let id = PairId::of(&code.rendezvous_id());
    let known = store.load(&id).await.map_err(|why| of_store(&why))?;
    if global.dry_run {
        let what = match known {
            Some(_) => format!("open pair {id} in {} again for a day", store.place()),
            None => format!(
                "make a CA and a bridge certificate, and keep them in {} as pair {id}",
                store.place()
            ),
        };
        would(&what);
        return Ok(());
    }
    let (now, repaired) = (now_unix_s(), known.is_some());
    let (registration, revision) = match known {
        Some(mut kept) => {
            let registration = &mut kept.registration;
            let opened = registration.reopen(code, true, args.reissue, now);
            opened.map_err(of_make)?;
            if !relays.is_empty() {
                registration.set_relays(&relays).map_err(of_make)?;
            }
            (kept.registration, Some(kept.revision))
        }
        None => {
            let name = args.name.clone().unwrap_or_else(|| format!("pair-{id}"));
            let made = Registration::new(&name, &relays, code, true, args.reissue, now);
            (made.map_err(of_make)?, None)
        }
    };
    let saved = store.save(&registration, revision.as_ref()).await;
    saved.map_err(|why| of_store(&why))?;
    let done = Done {
        name: registration.name().to_owned(),
        info_hash: registration.info_hash(),
        life: code_life(&registration),
        id,
        repaired,
    };
    tell(
        global,
        &done,
        &bridge_command(&args.to, registration.relays(), text),
    );
    Ok(())
}

fn tell(global: &Global, done: &Done, bridge: &str) {
    let Done {
        id,
        name,
        info_hash,
        life,
        repaired,
    } = done;
    if global.output == Format::Json {
        return output::json(&json!({
            "pair": id.as_str(), "name": name, "info_hash": info_hash.to_string(),
            "repaired": repaired, "bridge": bridge,
        }));
    }
    let what = if *repaired {
        "is open again"
    } else {
        "is registered"
    };
    eprintln!(
        "pair {id} ({name}) {what}; its code is {life}\n\
         A running bridge notices within 5 s; otherwise, beside the service:\n  {bridge}\n\
         The info hash, for --info-hash of the broker:"
    );
    println!("{info_hash}");
}

fn read_code(flag: &str) -> Result<PairingCode> {
    let mut typed = String::new();
    let word = if flag == "-" {
        let input = std::io::stdin().lock().take(INPUT_BYTES_MAX);
        let mut input = input;
        input.read_to_string(&mut typed).map_err(|why| {
            let fix = "pipe the pairing code in, or give it after --fingerprint";
            CliError::usage("standard input holds no pairing code", why, fix)
        })?;
        typed.as_str()
    } else {
        flag
    };
    let code = PairingCode::decode(word);
    code.map_err(|why| {
        let fix = "copy the word cvf_... that culvert pair fingerprint printed";
        CliError::usage("this is no pairing code", why, fix)
    })
}

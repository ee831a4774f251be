//! `culvert pair register`: the bridge's side lets the broker in that a code stands for.

use std::io::Read as _;

use culvert_pair::{PairId, PairJoin, PairingCode, Registration, Store as _};
use serde_json::json;

use super::{
    bridge_command, checked_name, code_life, now_unix_s, of_make, of_store, open, relays,
    store_text, would,
};
use crate::args::pair::Register;
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output;

/// Most that is read of standard input: a join string, and white space around it.
const INPUT_BYTES_MAX: u64 = 8 << 10;

/// What an administrator shows: the code of a broker's key, or the join string of a pair that is
/// to be repaired.
enum Shown {
    Code(PairingCode),
    Join(PairJoin),
}

pub async fn run(global: &Global, args: &Register) -> Result<()> {
    let text = store_text(&args.store)?;
    let relays = relays(&args.relays)?;
    if let Some(name) = &args.name {
        checked_name(name)?;
    }
    let shown = read(&args.fingerprint)?;
    let store = open(text, &args.store.kube)?;
    let id = PairId::of(&shown.code().rendezvous_id());
    let known = store.load(&id).await.map_err(|why| of_store(&why))?;
    if known.is_none() && matches!(shown, Shown::Join(_)) {
        let fix = "name the store that culvert pair init wrote, or make a new pair with it";
        let seen = format!("pair {id} is not in {}", store.place());
        return Err(CliError::usage(
            "there is no such pair to repair",
            seen,
            fix,
        ));
    }
    if global.dry_run {
        let place = store.place();
        would(&match known {
            Some(_) => format!("open pair {id} in {place} again for a day"),
            None => {
                format!("make a CA and a bridge certificate, and keep them in {place} as pair {id}")
            }
        });
        return Ok(());
    }
    let repaired = known.is_some();
    let (registration, revision) = match known {
        Some(kept) => {
            let again = open_again(kept.registration, &shown, &relays, args.reissue)?;
            (again, Some(kept.revision))
        }
        None => (make(args, &id, &shown, &relays)?, None),
    };
    let saved = store.save(&registration, revision.as_ref()).await;
    saved.map_err(|why| of_store(&why))?;
    let bridge = bridge_command(&args.to, registration.relays(), text);
    tell(global, &registration, repaired, shown, &bridge)
}

/// The same code for another day. CA and info hash stay.
fn open_again(
    mut known: Registration,
    shown: &Shown,
    relays: &[String],
    reissue: bool,
) -> Result<Registration> {
    let opened = known.reopen(shown.code_again(), reissue, now_unix_s());
    opened.map_err(of_make)?;
    if !relays.is_empty() {
        known.set_relays(relays).map_err(of_make)?;
    }
    Ok(known)
}

fn make(args: &Register, id: &PairId, shown: &Shown, relays: &[String]) -> Result<Registration> {
    let name = args.name.clone().unwrap_or_else(|| format!("pair-{id}"));
    let code = shown.code_again();
    let made = Registration::new(&name, relays, code, true, args.reissue, now_unix_s());
    made.map_err(of_make)
}

fn tell(
    global: &Global,
    registration: &Registration,
    repaired: bool,
    shown: Shown,
    bridge: &str,
) -> Result<()> {
    let (id, name) = (registration.id(), registration.name());
    let info_hash = registration.info_hash().to_string();
    let join = match shown {
        Shown::Code(_) => None,
        // The old word has an end that is over by now, or soon.
        Shown::Join(mut join) => {
            join.relays = registration.relays().to_vec();
            join.expires_unix_s = registration.voucher().map_or(0, |v| v.expires_unix_s);
            Some(join.encode().map_err(of_make)?)
        }
    };
    let join = join.as_ref().map(|word| word.as_str());
    if global.output == Format::Json {
        output::json(&json!({
            "pair": id.as_str(), "name": name, "info_hash": info_hash, "repaired": repaired,
            "bridge": bridge, "join": join,
        }));
        return Ok(());
    }
    let what = if repaired {
        "is open again"
    } else {
        "is registered"
    };
    let last = match join {
        Some(_) => "The broker's join string, with its new end (a secret):",
        None => "The info hash, for --info-hash of the broker:",
    };
    eprintln!(
        "pair {id} ({name}) {what}; its code is {}\n\
         A running bridge notices within 5 s; otherwise, beside the service:\n  {bridge}\n{last}",
        code_life(registration),
    );
    println!("{}", join.unwrap_or(&info_hash));
    Ok(())
}

impl Shown {
    fn code(&self) -> &PairingCode {
        match self {
            Shown::Code(code) => code,
            Shown::Join(join) => &join.code,
        }
    }

    /// The same code once more, to be kept.
    fn code_again(&self) -> PairingCode {
        PairingCode::from_bytes(*self.code().expose())
    }
}

fn read(flag: &str) -> Result<Shown> {
    let mut typed = String::new();
    let word = if flag == "-" {
        let mut input = std::io::stdin().lock().take(INPUT_BYTES_MAX);
        input.read_to_string(&mut typed).map_err(|why| {
            let fix = "pipe the pairing code in, or give it after --fingerprint";
            CliError::usage("standard input holds no pairing code", why, fix)
        })?;
        typed.as_str()
    } else {
        flag
    };
    let read = if word.trim_start().starts_with("cvr_") {
        PairJoin::decode(word).map(Shown::Join)
    } else {
        PairingCode::decode(word).map(Shown::Code)
    };
    read.map_err(|why| {
        let fix = "copy the word cvf_... that culvert pair fingerprint printed, or to repair a pair \
                   the cvr_... of culvert pair init";
        CliError::usage("this is no pairing code", why, fix)
    })
}

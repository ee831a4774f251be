//! `culvert pair install`: the systemd unit of a bridge, a broker or a relay.

use std::path::Path;

use culvert_pair::check_relay;
use serde_json::json;

use super::unit::Unit;
use super::{relays, wanted_relays, would};
use crate::args::pair::{Install, Installed, Mode};
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output;

const BINARIES: &str = "/usr/local/bin";
/// Ports below it want a capability.
const UNPRIVILEGED_PORT: u16 = 1024;

pub fn run(global: &Global, args: &Install) -> Result<()> {
    let unit = match args.role {
        Installed::Bridge => bridge(args)?,
        Installed::Broker => broker(args)?,
        Installed::Relay => relay(args)?,
    };
    if let Some(dir) = &args.unit_dir {
        return write(global, &unit, dir);
    }
    if global.output == Format::Json {
        output::json(&json!({
            "unit": format!("{}.service", unit.name), "text": unit.text(), "script": unit.script(),
        }));
        return Ok(());
    }
    eprintln!("As root on the host of the {}:", unit.name);
    println!("{}", unit.script());
    Ok(())
}

fn write(global: &Global, unit: &Unit, dir: &Path) -> Result<()> {
    let path = dir.join(format!("{}.service", unit.name));
    if global.dry_run {
        would(&format!("write {}\n{}", path.display(), unit.text()));
        return Ok(());
    }
    std::fs::write(&path, unit.text()).map_err(|why| {
        let seen = format!("{}: {why}", path.display());
        CliError::usage(
            "the unit cannot be written",
            seen,
            "run as root, or name another --unit-dir",
        )
    })?;
    if global.output == Format::Json {
        output::json(&json!({"file": path.display().to_string()}));
    } else {
        eprintln!(
            "then: systemctl daemon-reload && systemctl enable --now {}",
            unit.name
        );
        println!("{}", path.display());
    }
    Ok(())
}

fn bridge(args: &Install) -> Result<Unit> {
    let to = args.to.as_deref().ok_or_else(|| {
        let fix = "give --to HOST:PORT, such as 127.0.0.1:5432";
        CliError::usage("nobody said where the service is", "no --to", fix)
    })?;
    let way = way(args, Mode::Reverse)?;
    let (store, has_state, writes) = place(args, "/var/lib/culvert-bridge")?;
    Ok(Unit {
        name: "culvert-bridge",
        about: "Culvert bridge: the side of a pair that has the service",
        command: format!(
            "{BINARIES}/culvert-agent bridge --to {}{way} --store {store}",
            host_port("--to", to)?
        ),
        has_state,
        writes,
        joins: false,
        binds_low: args.mode == Mode::Direct && args.listen_pair.port() < UNPRIVILEGED_PORT,
    })
}

fn broker(args: &Install) -> Result<Unit> {
    let way = if args.join && args.relays.relays.is_empty() && args.mode == Mode::Relay {
        // The join string names the relays.
        String::new()
    } else {
        way(args, Mode::Direct)?
    };
    let (state, has_state, writes) = place(args, "/var/lib/culvert-broker")?;
    let low = |port: u16| port < UNPRIVILEGED_PORT;
    let pair_is_low = args.mode == Mode::Reverse && low(args.listen_pair.port());
    Ok(Unit {
        name: "culvert-broker",
        about: "Culvert broker: the side of a pair that has the clients",
        command: format!(
            "{BINARIES}/culvert-agent broker --listen {}{way} --state {state}",
            args.listen
        ),
        has_state,
        writes,
        joins: args.join,
        binds_low: low(args.listen.port()) || pair_is_low,
    })
}

fn relay(args: &Install) -> Result<Unit> {
    if args.mode != Mode::Relay {
        let fix = "leave --mode out: only mode relay has a relay";
        return Err(CliError::usage(
            "this mode has no relay",
            "--role relay",
            fix,
        ));
    }
    Ok(Unit {
        name: "culvert-relay",
        about: "Culvert relay: joins two sides that dial out, and holds no key of theirs",
        command: format!(
            "{BINARIES}/culvert-dataplane relay --addr :443 --tls-cert /etc/culvert/relay.crt \
             --tls-key /etc/culvert/relay.key"
        ),
        has_state: false,
        writes: None,
        joins: false,
        binds_low: true,
    })
}

/// The flags by which a side meets the other; `dials` is the mode in which it is the one that dials.
fn way(args: &Install, dials: Mode) -> Result<String> {
    let mode = match args.mode {
        Mode::Relay => {
            let relays = wanted_relays(&args.relays)?;
            return Ok(relays
                .iter()
                .map(|relay| format!(" --relay {relay}"))
                .collect());
        }
        Mode::Reverse => "reverse",
        Mode::Direct => "direct",
    };
    if !relays(&args.relays)?.is_empty() {
        let fix = "leave --relay out, or choose --mode relay";
        return Err(CliError::usage(
            "this mode has no relay",
            format!("--mode {mode}"),
            fix,
        ));
    }
    if args.mode != dials {
        return Ok(format!(" --mode {mode} --listen-pair {}", args.listen_pair));
    }
    let dial = args.dial.as_deref().ok_or_else(|| {
        let fix = "give --dial HOST:PORT of the other side";
        CliError::usage("nobody said where the other side listens", "no --dial", fix)
    })?;
    Ok(format!(
        " --mode {mode} --dial {}",
        host_port("--dial", dial)?
    ))
}

/// The store of the unit, whether it is its state directory, and what else it writes.
fn place(args: &Install, usual: &str) -> Result<(String, bool, Option<String>)> {
    let Some(store) = &args.store else {
        return Ok((format!("file:{usual}"), true, None));
    };
    // It stands in a unit, where % and white space mean something.
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._:-".contains(c);
    let kind = store.split_once(':').filter(|_| store.chars().all(plain));
    match kind {
        Some(("file", dir)) if dir.starts_with('/') => {
            Ok((store.clone(), false, Some(dir.to_owned())))
        }
        Some(("secret", namespace)) if !namespace.is_empty() => Ok((store.clone(), false, None)),
        _ => {
            let fix = "write file:/DIR (absolute, of letters, digits, / . _ -) or secret:NAMESPACE";
            Err(CliError::usage(
                "this store cannot stand in a unit",
                format!("{store:?}"),
                fix,
            ))
        }
    }
}

/// HOST:PORT, and nothing that would mean something else in a unit.
fn host_port<'a>(flag: &str, text: &'a str) -> Result<&'a str> {
    check_relay(text).map(|_| text).map_err(|_| {
        let fix = format!("write {flag} HOST:PORT");
        CliError::usage("this is no HOST:PORT", format!("{text:?}"), &fix)
    })
}

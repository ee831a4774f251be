//! What `culvert-dataplane probe-ebpf` is told: `culvert check ebpf` runs it.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};
use culvert_observe::Tier;

use super::ConfigError;

/// The verb.
pub(super) const VERB: &str = "probe-ebpf";

/// What is tried, and how it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeConfig {
    /// As JSON, not in words.
    pub json: bool,
    /// The highest tier to try.
    pub tier_max: Tier,
    /// Try the trace programs too.
    pub trace: bool,
}

/// The verb, for the program's own help.
pub(super) fn verb() -> Command {
    let words = |words: &'static [&'static str]| clap::builder::PossibleValuesParser::new(words);
    Command::new(VERB)
        .hide(true)
        .about("Tries what this host permits the eBPF observer, prints it and ends")
        .arg(
            Arg::new("output")
                .long("output")
                .value_parser(words(&["text", "json"]))
                .default_value("text"),
        )
        .arg(
            Arg::new("tier-max")
                .long("ebpf-tier-max")
                .value_parser(words(&["sockops", "skb"]))
                .default_value("skb"),
        )
        .arg(
            Arg::new("trace")
                .long("ebpf-trace")
                .action(ArgAction::SetTrue),
        )
}

impl ProbeConfig {
    /// Reads the flags behind the verb.
    ///
    /// # Errors
    /// What clap says.
    pub fn read(flags: impl Iterator<Item = OsString>) -> Result<Self, ConfigError> {
        let argv = [OsString::from("culvert-dataplane probe-ebpf")]
            .into_iter()
            .chain(flags);
        let found = verb().try_get_matches_from(argv)?;
        let word = |name: &str| found.get_one::<String>(name).map_or("", String::as_str);
        let tier = Tier::CHOICES
            .iter()
            .find(|(name, _)| *name == word("tier-max"));
        Ok(Self {
            json: word("output") == "json",
            tier_max: tier.map_or(Tier::Skb, |(_, tier)| *tier),
            trace: found.get_flag("trace"),
        })
    }
}

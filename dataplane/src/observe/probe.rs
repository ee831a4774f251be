//! What this host permits the observer, and why not: tried, told and left again.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use culvert_observe::{Mode, Report, Settings, Tier, Trace, capability_names, start};
use serde_json::{Value, json};

use crate::config::ProbeConfig;

/// What each tier adds, in words.
const TIERS: [(Tier, &str); 3] = [
    (
        Tier::TcpInfo,
        "counters, clocks and TCP_INFO of the process's own sockets",
    ),
    (
        Tier::Sockops,
        "accept-queue and connect times, every round trip, retransmissions by cause, close records",
    ),
    (
        Tier::Skb,
        "bytes of each leg as the kernel sees them, first bytes, residence",
    ),
];

/// Tries, and prints what came of it.
pub fn run(config: ProbeConfig) -> ExitCode {
    let settings = Settings {
        mode: Mode::Auto,
        tier_max: config.tier_max,
        trace: config.trace,
        // Big enough to be refused where the real ones would be.
        ..Settings::default()
    };
    let text = match start(&settings) {
        Ok(observer) if config.json => format!("{:#}\n", as_json(observer.report())),
        Ok(observer) => in_words(observer.report()),
        Err(why) => format!("{why}\n"),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn as_json(report: &Report) -> Value {
    let checks: Vec<Value> = report
        .checks
        .iter()
        .map(|check| {
            let (result, why) = match &check.outcome {
                None => ("not_tried", None),
                Some(Ok(())) => ("ok", None),
                Some(Err(why)) => ("failed", Some(why)),
            };
            json!({"check": check.what, "result": result, "why": why})
        })
        .collect();
    let tiers: Vec<Value> = TIERS
        .iter()
        .map(|(tier, adds)| {
            json!({"tier": tier.name(), "available": report.tier >= *tier, "adds": adds})
        })
        .collect();
    json!({
        "apiVersion": "culvert.dev/v1",
        "kind": "EbpfCheck",
        "tier": report.tier.name(),
        "reason": report.reason.map(culvert_observe::Reason::name),
        "detail": report.detail,
        "fix": report.reason.map(culvert_observe::Reason::fix),
        "missing": capability_names(report.missing),
        "kernel": report.kernel,
        "cgroup": report.cgroup,
        "maps_bytes": report.maps_bytes,
        "capabilities": report.caps.to_string(),
        "trace": trace(&report.trace),
        "tiers": tiers,
        "checks": checks,
    })
}

fn in_words(report: &Report) -> String {
    let mut text = format!(
        "eBPF observer: this process would run in tier {} on Linux {}.\n\n",
        report.tier.name(),
        report.kernel
    );
    for (tier, adds) in TIERS {
        let word = match report.tier >= tier {
            true => "yes",
            false => "no",
        };
        let _ = writeln!(text, "  {word:<4} {:<9} {adds}", tier.name());
    }
    let _ = writeln!(
        text,
        "  {:<4} {:<9} receive-queue wait and reset reasons, on demand\n",
        trace_word(&report.trace),
        "trace"
    );
    for check in &report.checks {
        let told = match &check.outcome {
            None => "not tried".to_owned(),
            Some(Ok(())) => "ok".to_owned(),
            Some(Err(why)) => format!("failed: {why}"),
        };
        let _ = writeln!(text, "  {:<36} {told}", check.what);
    }
    if let Some(reason) = report.reason {
        let detail = report.detail.as_deref().unwrap_or_default();
        let _ = writeln!(text, "\nwhy   {} {detail}", reason.name());
        let _ = writeln!(text, "fix   {}", reason.fix());
    }
    text
}

fn trace(trace: &Trace) -> Value {
    match trace {
        Trace::NotRequested => json!({"available": null}),
        Trace::Ready(programs) => json!({"available": true, "programs": programs}),
        Trace::Unavailable(why) => json!({"available": false, "why": why}),
    }
}

fn trace_word(trace: &Trace) -> &'static str {
    match trace {
        Trace::NotRequested => "-",
        Trace::Ready(_) => "yes",
        Trace::Unavailable(_) => "no",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_observe::{Check, Reason};

    #[test]
    fn both_forms_say_what_is_there_why_not_and_what_to_do() {
        let mut report = Report::absent(Reason::MissingCapability);
        report.checks = vec![Check {
            what: "CAP_BPF and CAP_NET_ADMIN",
            outcome: Some(Err("missing cap_bpf".to_owned())),
        }];
        let words = in_words(&report);
        for part in [
            "tier tcp_info",
            "no   skb",
            "failed: missing cap_bpf",
            "fix   set ebpf",
        ] {
            assert!(words.contains(part), "{part} is not in:\n{words}");
        }
        let told = as_json(&report);
        assert_eq!(told["reason"], "missing_capability");
        assert_eq!(told["checks"][0]["result"], "failed");
        assert_eq!(told["tiers"][2]["available"], false);
    }
}

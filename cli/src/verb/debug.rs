//! `culvert debug`: closer looks, for a while.

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use crate::args::debug::{Debug, Trace};
use crate::args::{Format, Global};
use crate::dataplane::Dataplane;
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const WAITS: &[Column] = &[
    ("CLUSTER", "cluster"),
    ("READS", "samples"),
    ("MEAN us", "mean_us"),
    ("P50 us", "p50_us"),
    ("P99 us", "p99_us"),
];

const RESETS: &[Column] = &[("LEG", "leg"), ("REASON", "reason"), ("RESETS", "count")];

pub async fn run(global: &Global, verb: Debug) -> Result<()> {
    match verb {
        Debug::Trace(args) => trace(global, &args).await,
    }
}

async fn trace(global: &Global, args: &Trace) -> Result<()> {
    let dataplane = Dataplane::new(&args.at.dataplane)?;
    let mut path = format!("/admin/trace?seconds={}", args.seconds);
    if let Some(cluster) = &args.cluster {
        let id: culvert_proto::id::ClusterId = cluster.parse().map_err(|why| {
            let fix = "name a cluster as culvert cluster list does";
            CliError::usage("this is no cluster id", format!("{cluster:?}: {why}"), fix)
        })?;
        path = format!("{path}&cluster={id}");
    }
    if global.dry_run {
        output::line(&format!("would ask POST {path}"));
        return Ok(());
    }
    if global.output == Format::Table {
        eprintln!("tracing for {} s; interrupt to end it", args.seconds);
    }
    let time = Duration::from_secs(args.seconds);
    let (status, text) = dataplane.post(&path, time).await?;
    if status != StatusCode::OK {
        return Err(refused(status, text.trim()));
    }
    let seen: Value = serde_json::from_str(&text).map_err(|why| dataplane.broken(why))?;
    if global.output == Format::Json {
        output::json(&seen);
        return Ok(());
    }
    output::line(&format!("{} sockets were marked at once\n", seen["marked"]));
    output::line("bytes received, until they were read:");
    output::show(Format::Table, &seen["receive_queue_wait"], WAITS);
    output::line("\nresets that this host sent:");
    output::show(Format::Table, &seen["resets"], RESETS);
    Ok(())
}

fn refused(status: StatusCode, why: &str) -> CliError {
    let (code, what, fix) = match status {
        StatusCode::NOT_IMPLEMENTED => (
            "trace_unavailable",
            "this data plane has no trace programs",
            "start it with --ebpf-trace and CAP_PERFMON beside CAP_BPF and CAP_NET_ADMIN, on a kernel with BTF; culvert check ebpf --trace says what is missing",
        ),
        StatusCode::CONFLICT => (
            "trace_refused",
            "the data plane does not begin this trace",
            "do what the line above says",
        ),
        StatusCode::FORBIDDEN => (
            "trace_refused",
            "the data plane takes this from its own host only",
            "run it there, and name the admin listener on loopback with --dataplane",
        ),
        StatusCode::NOT_FOUND if why.contains("cluster") => (
            "no_such_cluster",
            "the data plane does not know this cluster",
            "name one of culvert cluster list, or leave --cluster away",
        ),
        StatusCode::NOT_FOUND => (
            "trace_unavailable",
            "there is no trace at this address",
            "name the admin listener of a hub's data plane of this version with --dataplane",
        ),
        _ => (
            "trace_failed",
            "the data plane could not trace",
            "see the data plane's log",
        ),
    };
    CliError::new(code, what, format!("{status}: {why}"), "dataplane", fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        let words = refused(
            StatusCode::NOT_IMPLEMENTED,
            "trace is not available: missing cap_perfmon",
        )
        .to_string();
        for part in ["trace_unavailable", "missing cap_perfmon", "--ebpf-trace"] {
            assert!(words.contains(part), "{part}: {words}");
        }
        let gone = refused(
            StatusCode::NOT_FOUND,
            "\"x\" is no cluster of this data plane's table",
        );
        assert_eq!(&*gone.code, "no_such_cluster");
        let other = refused(StatusCode::NOT_FOUND, "no route /admin/trace");
        assert_eq!(&*other.code, "trace_unavailable");
    }
}

//! `culvert check ebpf`: what this host permits the observer of a data plane,
//! and why not. The data plane's program tries it, with the rights it is started
//! with; this one needs none and knows nothing of BPF.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::args::{Check, Format, Global};
use crate::error::{CliError, Result};
use crate::output;
use crate::quickstart::find;

pub fn run(global: &Global, check: Check) -> Result<()> {
    let Check::Ebpf { program, trace } = check;
    let program = program.map_or_else(|| find("culvert-dataplane"), Ok::<PathBuf, CliError>)?;
    let format = match global.output {
        Format::Table => "text",
        Format::Json => "json",
    };
    let mut probe = Command::new(&program);
    probe.args(["probe-ebpf", "--output", format]);
    if trace {
        probe.arg("--ebpf-trace");
    }
    let failed = |why: String| {
        let fix =
            "put culvert-dataplane of this version beside this program, or name it with --program";
        let seen = format!("{}: {why}", program.display());
        CliError::new(
            "no_probe",
            "the data plane's program does not tell",
            seen,
            "cli",
            fix,
        )
    };
    let done = probe.stdin(Stdio::null()).output();
    let done = done.map_err(|why| failed(why.to_string()))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(failed(format!("{}: {}", done.status, said.trim())));
    }
    output::line(String::from_utf8_lossy(&done.stdout).trim_end());
    Ok(())
}

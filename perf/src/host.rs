//! What a run was measured on: host.txt, and the name of the host class.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::run::Options;

/// `<cpus>x<cpu model>`, in lower case letters, digits and dashes.
pub fn class() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("cpu", |(_, model)| model.trim());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let text: String = format!("{cpus}x{model}")
        .to_lowercase()
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        })
        .collect();
    text.split('-')
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

/// Today, `YYYY-MM-DD`, UTC.
pub fn today() -> String {
    said("date", &["-u", "+%F"])
}

/// Everything that performance.md 6.5 asks to keep.
///
/// # Errors
/// Never today; a line that cannot be had says so.
pub fn describe(options: &Options, command: &str) -> Result<String> {
    let mut text = String::new();
    let command = options.without_places(command);
    let kernel = said("uname", &["-srvm"]);
    writeln!(
        text,
        "date: {}\ncommand: {command}\nkernel: {kernel}",
        said("date", &["-u", "+%FT%TZ"])
    )?;
    writeln!(
        text,
        "commit: {}",
        said("git", &["describe", "--always", "--dirty"])
    )?;
    writeln!(text, "toolchain: {}", said("rustc", &["--version"]))?;
    writeln!(text, "cpus: {:?}", std::thread::available_parallelism())?;
    for (file, key) in [
        ("/proc/cpuinfo", "model name"),
        ("/proc/cpuinfo", "flags"),
        ("/proc/meminfo", "MemTotal"),
    ] {
        let content = fs::read_to_string(file).unwrap_or_default();
        let line = content
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or("unknown");
        writeln!(text, "{line}")?;
    }
    let flaws = "/sys/devices/system/cpu/vulnerabilities";
    writeln!(
        text,
        "mitigations: {}",
        said("sh", &["-c", &format!("cd {flaws} && grep -H . *")]).replace('\n', "; ")
    )?;
    for name in [
        "net.ipv4.tcp_congestion_control",
        "net.core.somaxconn",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    ] {
        writeln!(text, "host {name} = {}", said("sysctl", &["-n", name]))?;
    }
    writeln!(text, "lab settings: {}", crate::lab::SETTINGS.join(", "))?;
    writeln!(
        text,
        "lab congestion control: {}",
        crate::lab::CONGESTION_CONTROL
    )?;
    let (soft, hard) = file_limit();
    writeln!(text, "open files: {soft} soft, {hard} hard")?;
    writeln!(text, "IRQ_TIME_ACCOUNTING: {}", irq_time())?;
    for (name, version) in [
        ("nginx", "nginx -v 2>&1"),
        ("HAProxy", "haproxy -v | head -1"),
        ("socat", "socat -V | sed -n 2p"),
        ("OpenSSH", "ssh -V 2>&1"),
    ] {
        writeln!(text, "{name}: {}", said("sh", &["-c", version]))?;
    }
    let ours = ["culvert-dataplane", "culvert-agent", "culvert-perf"];
    let ours = ours.map(|name| (name, options.binaries.join(name)));
    let rivals = ["rathole", "bore"].map(|name| (name, options.rivals.path(name)));
    let rivals = rivals.map(|(name, path)| path.map(|path| (name, path)));
    for (name, path) in ours.into_iter().chain(rivals.into_iter().flatten()) {
        let sum = said("sha256sum", &[&path.to_string_lossy()]);
        writeln!(
            text,
            "{name}: sha256 {}",
            sum.split(' ').next().unwrap_or_default()
        )?;
    }
    Ok(text)
}

/// Soft and hard limit of open files of this process.
pub fn file_limit() -> (u64, u64) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    (
        limit.current.unwrap_or(u64::MAX),
        limit.maximum.unwrap_or(u64::MAX),
    )
}

fn irq_time() -> String {
    said(
        "sh",
        &[
            "-c",
            "zcat /proc/config.gz 2>/dev/null | grep IRQ_TIME_ACCOUNTING || echo unknown",
        ],
    )
}

fn said(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(
            || format!("{program} says nothing"),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_class_is_a_file_name() {
        let class = class();
        assert!(!class.is_empty());
        assert!(
            class
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
        );
    }
}

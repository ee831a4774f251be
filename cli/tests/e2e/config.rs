//! A bad configuration: refused before any port is bound, all problems listed at once.

use std::time::Duration;

use anyhow::Result;
use culvert_perf::testbed::{Layout, Process, Spawn, Testbed};

use crate::hub::{binary, ready};

const REFUSED_MAX: Duration = Duration::from_secs(5);

/// Runs to its end and gives what it said; no socket was ever bound by it.
fn refused(
    bed: &Testbed,
    program: &str,
    arguments: &[&str],
    env: &[(&str, &str)],
) -> Result<String> {
    let trace = bed.path("trace");
    let _ = std::fs::remove_file(&trace);
    let mut spawn = Spawn::new("strace")
        .args(["-f", "-e", "trace=bind", "-o", &trace.to_string_lossy()])
        .args([binary(program)?])
        .args(arguments);
    for (name, value) in env {
        spawn = spawn.env(name, value);
    }
    let log = bed.path("refused.log");
    let _ = std::fs::remove_file(&log);
    let mut process: Process = spawn.start(bed, &bed.hub, "refused")?;
    let status = process.wait_end(REFUSED_MAX)?;
    assert!(
        !status.success(),
        "{program} {arguments:?} started: {}",
        process.log()
    );
    let bound = std::fs::read_to_string(&trace)?;
    assert!(
        !bound.contains("AF_INET"),
        "{program} bound a port first: {bound}"
    );
    Ok(process.log())
}

#[test]
fn the_data_plane_lists_all_problems_at_once() -> Result<()> {
    if !ready("the_data_plane_lists_all_problems_at_once", &["strace"]) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    let said = refused(
        &bed,
        "culvert-dataplane",
        &[
            "--addr",
            "nonsense",
            "--rate-limit",
            "-1x",
            "--tls-cert",
            "/missing/cert.pem",
            "--clusters",
            "/missing/clusters.json",
            "--drain-grace",
            "soon",
        ],
        &[("CULVERT_IO_ENGINE", "magic")],
    )?;
    for word in [
        "nonsense",
        "-1x",
        "tls-key",
        "/missing/clusters.json",
        "soon",
        "magic",
    ] {
        assert!(said.contains(word), "{word} is not named in: {said}");
    }
    let said = refused(&bed, "culvert-dataplane", &["--no-such-flag"], &[])?;
    assert!(said.contains("no-such-flag"), "{said}");
    let said = refused(&bed, "culvert-dataplane", &[], &[])?;
    assert!(
        said.contains("--clusters") && said.contains("--control"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_bad_clusters_file_names_the_entry() -> Result<()> {
    if !ready("a_bad_clusters_file_names_the_entry", &["strace"]) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    for (text, words) in [
        (
            r#"[{"id":"UPPER","token":"0123456789abcdef"}]"#,
            &["UPPER"][..],
        ),
        (r#"[{"id":"a","token":"short"}]"#, &["token"]),
        (
            r#"[{"id":"a","token":"0123456789abcdef"},{"id":"a","token":"0123456789abcdeF"}]"#,
            &["a"],
        ),
        (
            r#"[{"id":"a","token":"0123456789abcdef","tokne":1}]"#,
            &["tokne"],
        ),
        (r#"[{"id":"a""#, &["line"]),
        ("[]", &["no cluster"]),
    ] {
        let path = bed.path("bad.json");
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let path = path.to_string_lossy().into_owned();
        let said = refused(&bed, "culvert-dataplane", &["--clusters", &path], &[])?;
        for word in words {
            assert!(
                said.contains(word),
                "{word} is not named for {text}: {said}"
            );
        }
        assert!(
            !said.contains("0123456789abcde"),
            "a token is shown: {said}"
        );
    }
    Ok(())
}

#[test]
fn the_agent_and_control_list_all_problems_at_once() -> Result<()> {
    if !ready(
        "the_agent_and_control_list_all_problems_at_once",
        &["strace"],
    ) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    let said = refused(
        &bed,
        "culvert-agent",
        &[
            "--server",
            "ftp://x",
            "--max-conns",
            "many",
            "--health-addr",
            "nowhere",
            "--target",
            ":::",
        ],
        &[],
    )?;
    for word in ["ftp", "many", "nowhere", "token"] {
        assert!(said.contains(word), "{word} is not named in: {said}");
    }
    let said = refused(
        &bed,
        "culvert-agent",
        &[
            "--server",
            "ws://10.77.2.1:8443/agent",
            "--target",
            "127.0.0.1:1",
        ],
        &[("TOKEN", "0123456789abcdef")],
    )?;
    assert!(said.contains("allow-insecure-server"), "{said}");
    let said = refused(
        &bed,
        "culvert-agent",
        &["--server", "wss://a.test/agent", "--target", "127.0.0.1:1"],
        &[
            ("TOKEN", "0123456789abcdef"),
            ("CULVERT_TOKEN", "fedcba9876543210"),
        ],
    )?;
    assert!(
        said.contains("TOKEN") && said.contains("CULVERT_TOKEN"),
        "{said}"
    );
    assert!(!said.contains("fedcba"), "a token is shown: {said}");
    let said = refused(
        &bed,
        "culvert-control",
        &[
            "--listen",
            "0.0.0.0:8088",
            "--admin-addr",
            "nowhere",
            "--db-dsn",
            "oracle://x",
        ],
        &[],
    )?;
    for word in ["8088", "nowhere", "oracle"] {
        assert!(said.contains(word), "{word} is not named in: {said}");
    }
    Ok(())
}

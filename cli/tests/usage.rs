//! What the command line refuses before it asks anybody, and what it says.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use assert_cmd::Command;
use serde_json::Value;

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn culvert(argv: &[&str]) -> Said {
    let done = Command::cargo_bin("culvert")
        .unwrap()
        .env_clear()
        .args(argv)
        .output()
        .unwrap();
    Said {
        code: done.status.code().unwrap(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

#[test]
fn a_test_licence_is_issued_and_verified_offline() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("test.key");
    let issue = ["license", "issue", "--test-key", key.to_str().unwrap()];
    let terms = ["--org", "Acme", "--max-clusters", "3", "-o", "json"];
    let said = culvert(&[&issue[..], &terms[..]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    let made: Value = serde_json::from_str(&said.out).unwrap();
    let file = dir.path().join("license");
    std::fs::write(&file, made["license"].as_str().unwrap()).unwrap();
    let verify = ["license", "verify", file.to_str().unwrap(), "-o", "json"];
    let known = ["--public-key", made["public_key"].as_str().unwrap()];
    let said = culvert(&[&verify[..], &known[..]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    let terms: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(
        (&terms["state"], &terms["org"]),
        (&"valid".into(), &"Acme".into())
    );
    // No build believes it by itself.
    let said = culvert(&verify);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("license_invalid"), "{}", said.err);
    // One that is past its end says so; the same key signs again.
    let old = culvert(&[&issue[..], &terms_of("0s")].concat());
    std::fs::write(&file, old.out.trim()).unwrap();
    let said = culvert(&[&verify[..], &known[..]].concat());
    let terms: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(terms["state"], "expired");
    std::fs::write(dir.path().join("noise"), "noise").unwrap();
    let noise = dir.path().join("noise");
    let said = culvert(&[
        "license",
        "issue",
        "--org",
        "x",
        "--test-key",
        noise.to_str().unwrap(),
    ]);
    assert_eq!(said.code, 2, "{}", said.err);
}

fn terms_of(ttl: &'static str) -> [&'static str; 4] {
    ["--org", "Acme", "--ttl", ttl]
}

#[test]
fn wrong_command_lines_end_with_2_and_name_what_is_wrong() {
    let all: [(&[&str], &str); 15] = [
        (&["route", "add", "a", "pg"], "--tcp"),
        (
            &["route", "add", "a", "pg", "--tcp", "x", "--sealed", "y"],
            "--sealed",
        ),
        (
            &["route", "add", "a", "pg", "--tcp", "x", "--addr", "y"],
            "--addr",
        ),
        (&["personal-token", "mint", "--principal", "ana"], "--grant"),
        (
            &["personal-token", "mint", "--grant", "a/b", "--ttl", "long"],
            "long",
        ),
        (&[], "Usage"),
        (&["bogus"], "bogus"),
        (&["cluster", "add"], "<ID>"),
        (
            &["token", "rotate", "a", "--now", "--overlap", "1h"],
            "--overlap",
        ),
        (&["token", "rotate", "a", "--overlap", "soon"], "soon"),
        (&["cluster", "add", "a", "--label", "novalue"], "novalue"),
        (&["cluster", "add", "a", "--policy", "maybe"], "maybe"),
        (&["agent", "command", "a", "--format", "helm"], "helm"),
        (&["status", "-o", "xml"], "xml"),
        (&["--api", "ftp://x", "status"], "ftp://x"),
    ];
    for (argv, word) in all {
        let said = culvert(argv);
        assert_eq!(said.code, 2, "{argv:?}: {}", said.err);
        assert!(said.err.contains(word), "{argv:?}: {}", said.err);
        assert_eq!(said.out, "", "{argv:?}");
    }
}

#[test]
fn an_error_has_its_code_what_was_seen_its_side_and_one_fix() {
    let said = culvert(&["--api", "unix:/nowhere/api.sock", "status"]);
    assert_eq!(said.code, 1);
    for part in [
        "error[control_unreachable]:",
        "seen",
        "/nowhere/api.sock",
        "side",
        "fix",
    ] {
        assert!(said.err.contains(part), "{part} is missing in {}", said.err);
    }
}

#[test]
fn an_id_is_checked_before_it_travels() {
    for id in ["UPPER", "../etc", "a/b", "-a", &"a".repeat(64)] {
        let said = culvert(&["--api", "unix:/nowhere", "token", "list", "--", id]);
        assert_eq!(said.code, 2, "{}", said.err);
        assert!(said.err.contains("no cluster id"), "{}", said.err);
    }
    for (verb, what) in [
        (&["route", "remove", "a", "../x"][..], "no route id"),
        (&["personal-token", "revoke", "a/b"], "no token id"),
    ] {
        let said = culvert(&[&["--api", "unix:/nowhere"], verb].concat());
        assert_eq!(said.code, 2, "{}", said.err);
        assert!(said.err.contains(what), "{}", said.err);
    }
}

#[test]
fn destruction_wants_yes_where_nobody_can_be_asked_and_a_dry_run_asks_nobody() {
    for verb in [
        &["cluster", "remove", "a"][..],
        &["token", "revoke", "a"],
        &["route", "remove", "a", "0123456789ab"],
        &["personal-token", "revoke", "0123456789a"],
    ] {
        let said = culvert(&[&["--api", "unix:/nowhere"], verb].concat());
        assert_eq!(said.code, 2);
        assert!(said.err.contains("--yes"), "{}", said.err);
        let dry = culvert(&[&["--api", "unix:/nowhere", "--dry-run"], verb].concat());
        assert_eq!((dry.code, dry.out.as_str()), (0, ""), "{}", dry.err);
        assert!(dry.err.contains("dry run"), "{}", dry.err);
    }
}

#[test]
fn version_and_completion_need_no_hub() {
    let said = culvert(&["version", "-o", "json"]);
    let version: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    for shell in ["bash", "zsh", "fish"] {
        let said = culvert(&["completion", shell]);
        for verb in ["quickstart", "route", "personal-token"] {
            assert!(said.code == 0 && said.out.contains(verb), "{shell}: {verb}");
        }
    }
}

use super::*;

fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let argv = std::iter::once("culvert-dataplane").chain(args.iter().copied());
    let env: Vec<(String, String)> = env
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect();
    Config::read(argv.map(OsString::from), &move |name| {
        env.iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    })
}

fn problems(args: &[&str], env: &[(&str, &str)]) -> Vec<String> {
    match read(args, env) {
        Err(ConfigError::Problems(problems)) => problems.0,
        Err(ConfigError::Usage(why)) => panic!("{why}"),
        Ok(config) => panic!("accepted: {config:?}"),
    }
}

const CLUSTERS: &str = r#"[{"id":"dev","token":"dev-token"}]"#;

#[test]
fn defaults_are_those_of_the_contract() {
    let config = read(&["--clusters", CLUSTERS], &[]).unwrap();
    assert_eq!(config.addr.to_string(), "[::]:8443");
    assert_eq!(config.internal_addr.to_string(), "[::]:8080");
    assert_eq!(config.admin_addr.to_string(), "127.0.0.1:9901");
    assert_eq!(config.drain_grace, Duration::from_secs(30));
    assert_eq!((config.streams_max, config.memory_budget), (1024, 1 << 30));
    assert!(config.tls.is_none() && config.rate_limit.is_none() && config.body_bytes_max.is_none());
}

#[test]
fn single_dash_flags_work_in_both_forms() {
    let config = read(
        &[
            "-clusters",
            CLUSTERS,
            "-addr=127.0.0.1:1",
            "-rate-limit",
            "7",
        ],
        &[],
    )
    .unwrap();
    assert_eq!(config.addr.to_string(), "127.0.0.1:1");
    assert_eq!(config.rate_limit, Some(7));
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dataplane.toml");
    std::fs::write(
        &file,
        "threads = 2\nmax_conns = 3\nrate_limit = 4\ndebuggable = true\n",
    )
    .unwrap();
    let args = [
        "--clusters",
        CLUSTERS,
        "--config",
        file.to_str().unwrap(),
        "--threads",
        "9",
    ];
    let config = read(
        &args,
        &[("CULVERT_THREADS", "8"), ("CULVERT_MAX_CONNS", "7")],
    )
    .unwrap();
    assert_eq!(
        (config.threads, config.streams_max, config.rate_limit),
        (Some(9), 7, Some(4))
    );
    assert!(config.debuggable);
}

#[test]
fn aliases_that_differ_are_refused_and_both_named() {
    assert!(
        read(
            &[],
            &[("CLUSTERS", CLUSTERS), ("CULVERT_CLUSTERS", CLUSTERS)]
        )
        .is_ok()
    );
    let found = problems(&[], &[("CLUSTERS", "a"), ("CULVERT_CLUSTERS", CLUSTERS)]);
    assert!(
        found
            .iter()
            .any(|p| p.contains("$CULVERT_CLUSTERS and $CLUSTERS")),
        "{found:?}"
    );
}

#[test]
fn all_problems_are_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dataplane.toml");
    std::fs::write(&file, "threads = 0\n\n  nonsense = 1\n").unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let found = problems(
        &[
            "--config",
            file.to_str().unwrap(),
            "--addr",
            "nowhere",
            "--tls-cert",
            "/does/not/exist.pem",
            "--tls-client-ca",
            empty.to_str().unwrap(),
            "--drain-grace",
            "25h",
            "--io-engine",
            "kqueue",
        ],
        &[
            ("CULVERT_MAX_CONNS", "16385"),
            ("CULVERT_MEMORY_BUDGET", "1MiB"),
        ],
    );
    let text = found.join("\n");
    for part in [
        "dataplane.toml:3:3: unknown key \"nonsense\"",
        "dataplane.toml:1:1: `0` is not a number from 1 to 256",
        "--addr: ",
        "--tls-cert: /does/not/exist.pem cannot be read",
        "--tls-client-ca: ",
        "is empty",
        "--tls-key is missing",
        "--drain-grace: `25h` is longer than 24h",
        "--io-engine: `kqueue` is none of auto, io_uring, epoll",
        "CULVERT_MAX_CONNS: `16385`",
        "CULVERT_MEMORY_BUDGET: `1MiB` is less than 16MiB",
        "neither --control nor --clusters",
    ] {
        assert!(text.contains(part), "{part} is missing from:\n{text}");
    }
}

#[test]
fn half_of_the_tls_settings_is_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("a.pem");
    std::fs::write(&pem, "x").unwrap();
    let pem = pem.to_str().unwrap();
    for args in [
        ["--tls-cert", pem],
        ["--tls-key", pem],
        ["--tls-client-ca", pem],
    ] {
        let found = problems(&[&args[..], &["--clusters", CLUSTERS]].concat(), &[]);
        assert!(
            found.iter().any(|p| p.contains("is missing: TLS needs")),
            "{args:?}: {found:?}"
        );
    }
}

#[test]
fn a_plain_internal_port_beside_client_certificates_is_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("a.pem");
    std::fs::write(&pem, "x").unwrap();
    let pem = pem.to_str().unwrap();
    let args = [
        "--tls-cert",
        pem,
        "--tls-key",
        pem,
        "--tls-client-ca",
        pem,
        "--internal-plain",
        "--clusters",
        CLUSTERS,
    ];
    let found = problems(&args, &[]);
    assert!(
        found
            .iter()
            .any(|problem| problem.contains("--internal-plain")),
        "{found:?}"
    );
}

#[test]
fn control_is_a_unix_socket_or_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    assert!(
        read(
            &["--control", "unix:/run/c.sock", "--state-dir", state],
            &[]
        )
        .is_ok()
    );
    assert!(
        !problems(&["--control", "unix:/run/c.sock"], &[]).is_empty(),
        "no key, no directory"
    );
    for bad in [
        "/run/c.sock",
        "unix:relative",
        "http://control:1",
        "https://control:1",
    ] {
        assert!(
            !problems(&["--control", bad, "--state-dir", state], &[]).is_empty(),
            "{bad}"
        );
    }
    assert!(!problems(&["--control", "unix:/a", "--clusters", CLUSTERS], &[]).is_empty());
}

#[test]
fn secrets_in_the_setting_are_not_printed() {
    let config = read(&["--clusters", CLUSTERS], &[]).unwrap();
    assert!(!format!("{config:?}").contains("dev-token"));
}

#[test]
fn a_flag_that_does_not_exist_is_a_usage_error() {
    assert!(matches!(read(&["--nope"], &[]), Err(ConfigError::Usage(_))));
}

//! Flags, environment, aliases and file: what wins, and what is refused.

use std::time::Duration;

use culvert_agent::config::Config;
use culvert_agent::target::TargetKind;

use crate::hub::{TOKEN, load, write};

const HUB: &str = "wss://hub.example/agent";

fn good(args: &[&str], env: &[(&str, &str)]) -> Config {
    load(args, env).unwrap_or_else(|why| panic!("{why}"))
}

fn refused(args: &[&str], env: &[(&str, &str)]) -> String {
    load(args, env).err().expect("refused").to_string()
}

#[test]
fn flags_of_the_contract_in_both_spellings() {
    let token = ("TOKEN", TOKEN);
    let config = good(
        &[
            "-server",
            HUB,
            "-target=127.0.0.1:6443",
            "-insecure",
            "-max-retry",
            "5s",
            "-max-conns=7",
        ],
        &[token],
    );
    assert_eq!(config.target.kind, TargetKind::Kube);
    assert_eq!(config.retry_max, Duration::from_secs(5));
    assert_eq!(config.streams_max, 7);
    assert!(config.target_tls.is_some());
    let config = good(
        &[
            "--server",
            HUB,
            "--target",
            "http://localhost:3000",
            "--health-addr",
            ":9",
        ],
        &[token],
    );
    assert_eq!(config.target.kind, TargetKind::Http);
    assert!(config.target_tls.is_none() && config.service_account_token.is_none());
    assert_eq!(config.health_addr, "0.0.0.0:9".parse().unwrap());
    assert_eq!(config.drain_grace, Duration::from_secs(30));
}

#[test]
fn flag_over_own_name_over_alias_over_file_over_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        dir.path(),
        "agent.toml",
        "server = [\"wss://file.example\"]\nmax_conns = 5\nlog_level = \"warn\"\nallow_insecure_server = true\n",
    );
    let base = [
        "--config",
        &file,
        "--target",
        "http://a:1",
        "--token",
        TOKEN,
    ];
    let host = |config: &Config| config.hubs[0].host().to_owned();
    let from_file = good(&base, &[]);
    assert_eq!(
        (host(&from_file).as_str(), from_file.streams_max),
        ("file.example", 5)
    );
    assert_eq!(from_file.log_level, "warn");
    assert!(from_file.allow_insecure_server);
    let alias = ("PERISCOPE_SERVER_URL", "wss://alias.example");
    assert_eq!(host(&good(&base, &[alias])), "alias.example");
    let own = ("CULVERT_HUB", "wss://alias.example");
    assert_eq!(host(&good(&base, &[alias, own])), "alias.example");
    let flag = [&base[..], &["--server", "wss://flag.example"]].concat();
    assert_eq!(host(&good(&flag, &[alias, own])), "flag.example");
}

#[test]
fn several_hubs_keep_their_order_and_their_weights() {
    let servers = [
        "--server",
        "wss://a.example;weight=3",
        "--server",
        "wss://b.example",
    ];
    let base = ["--target", "http://a:1", "--token", TOKEN];
    let config = good(&[&servers[..], &base[..]].concat(), &[]);
    let hubs: Vec<_> = config
        .hubs
        .iter()
        .map(|hub| (hub.host(), hub.weight()))
        .collect();
    assert_eq!(hubs, [("a.example", Some(3)), ("b.example", None)]);
    let why = refused(
        &[&["--server", "wss://a.example;weight=0"], &base[..]].concat(),
        &[],
    );
    assert!(why.contains("from 1 to 1000"), "{why}");
}

#[test]
fn two_names_with_two_values_are_refused_and_secrets_stay_secret() {
    let env = [
        ("CULVERT_TOKEN", "the-first-of-two-tokens"),
        ("TOKEN", "the-other-of-two-tokens"),
    ];
    let why = refused(&["--server", HUB, "--target", "http://a:1"], &env);
    assert!(
        why.contains("$CULVERT_TOKEN") && why.contains("$TOKEN"),
        "{why}"
    );
    assert!(!why.contains("of-two-tokens"), "{why}");
    let why = refused(
        &[
            "--server",
            HUB,
            "--target",
            "http://a:1",
            "--token",
            "has a space in it",
        ],
        &[],
    );
    assert!(
        why.contains("--token") && !why.contains("has a space in it"),
        "{why}"
    );
}

#[test]
fn tokens_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "token", &format!("{TOKEN}\n"));
    let base = ["--server", HUB, "--target", "http://a:1"];
    for env in [("TOKEN_FILE", file.as_str()), ("CULVERT_TOKEN_FILE", &file)] {
        let config = good(&base, &[env]);
        assert_eq!(config.credential.token.unwrap().expose(), TOKEN);
    }
    let flag = [&base[..], &["--token-file", &file]].concat();
    assert!(good(&flag, &[]).warnings.is_empty());
    let argv = [&base[..], &["--token", TOKEN]].concat();
    assert!(good(&argv, &[]).warnings[0].contains("--token-file"));
    let why = refused(
        &[&base[..], &["--token-file", "/nowhere/token"]].concat(),
        &[],
    );
    assert!(why.contains("/nowhere/token"), "{why}");
}

#[test]
fn all_problems_are_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        dir.path(),
        "agent.toml",
        "threads = 2\n  colour = 'red'\nregion = 1.5\n",
    );
    let why = refused(
        &[
            "--config",
            &file,
            "--server",
            "ws://clear.example,ftp://x",
            "--target",
            "nonsense",
            "--max-conns",
            "16385",
            "--max-retry",
            "soon",
            "--health-addr",
            "nowhere",
            "--target-kind",
            "tcp",
            "--client-cert",
            "/a",
            "--sa-token-path",
            "/nowhere/token",
            "--server-ca-cert",
            "/nowhere/ca",
            "--allow-address",
            "127.0.0.1,x",
            "--label",
            "a",
            "--cluster",
            "Not_One",
            "--plain-target=perhaps",
            "--threads",
            "0",
            "--proxy",
            "ftp://p",
            "--log-format",
            "xml",
            "--join",
            "cvj_x",
            "--drain-grace",
            "25h",
        ],
        &[],
    );
    for word in [
        ":2:3: unknown key \"colour\"",
        ":3:1: region",
        "--allow-insecure-server",
        "ftp",
        "nonsense",
        "16385",
        "soon",
        "nowhere",
        "tcp",
        "--client-key",
        "/nowhere/token",
        "/nowhere/ca",
        "\"x\"",
        "key=value",
        "Not_One",
        "perhaps",
        "--threads",
        "--proxy",
        "xml",
        "join string",
        "25h",
    ] {
        assert!(why.contains(word), "{word} is not in:\n{why}");
    }
    let nothing = refused(&[], &[]);
    assert!(
        nothing.contains("no hub address") && nothing.contains("no credential"),
        "{nothing}"
    );
}

#[test]
fn an_unknown_flag_and_help() {
    let why = refused(&["--colour", "red"], &[]);
    assert!(why.contains("--colour"), "{why}");
    let help = refused(&["--help"], &[]);
    for word in [
        "CULVERT_HUB",
        "PERISCOPE_SERVER_URL",
        "--token-file",
        "kubernetes.default.svc:443",
    ] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
}

#[test]
fn services_come_from_flags_environment_and_file() {
    let base = ["--server", HUB, "--token", TOKEN];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let names = |config: &Config| {
        let name = |one: &culvert_agent::services::NamedService| {
            format!("{}{}", one.name.as_str(), if one.sealed { "!" } else { "" })
        };
        config
            .services
            .iter()
            .map(name)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let config = good(
        &with(&[
            "--service",
            "pg=a:1",
            "--service=ssh=b:22",
            "--sealed-service",
            "v=c:1",
        ]),
        &[],
    );
    assert_eq!(names(&config), "pg ssh v!");
    assert!(!config.allow_plaintext_data_channels && config.engine.spin);
    let env = [
        ("CULVERT_SERVICES", "pg=a:1, ssh=b:22"),
        ("CULVERT_SEALED_SERVICES", "v=c:1"),
        ("CULVERT_ALLOW_PLAINTEXT_DATA_CHANNELS", "true"),
    ];
    let config = good(&with(&["--spin", "off", "--engine-threads", "2"]), &env);
    assert_eq!(names(&config), "pg ssh v!");
    assert!(config.allow_plaintext_data_channels && !config.engine.spin);
    assert_eq!(config.engine.threads, 2);
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        dir.path(),
        "agent.toml",
        "service = [\"pg=a:1\", \"ssh=b:22\"]\nsealed_service = [\"v=c:1\"]\n",
    );
    let from_file = [&base[..], &["--config", &file]].concat();
    assert_eq!(names(&good(&from_file, &[])), "pg ssh v!");
}

#[test]
fn services_that_cannot_be_are_all_named() {
    let base = ["--server", HUB, "--token", TOKEN];
    let many: Vec<String> = (0..65).map(|n| format!("s{n}=a:1")).collect();
    for (args, words) in [
        (vec!["--service", "pg"], "NAME=HOST:PORT"),
        (vec!["--service", "Pg=a:1"], "lower-case"),
        (vec!["--service", "pg=a"], "no host and port"),
        (
            vec!["--service", "pg=a:1", "--sealed-service", "pg=b:1"],
            "names \"pg\" twice",
        ),
        (vec!["--service", &many.join(",")], "more than 64 services"),
        (
            vec!["--io-engine", "kqueue"],
            "none of auto, io_uring, epoll",
        ),
        (vec!["--spin", "always"], "neither auto nor off"),
        (vec!["--engine-threads", "0"], "from 1 to 64"),
    ] {
        let said = refused(&[&base[..], &args].concat(), &[]);
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn an_observer_in_the_kernel_cannot_be_required_of_an_agent() {
    let base = [
        "-server",
        HUB,
        "-target=127.0.0.1:6443",
        "-insecure",
        "--ebpf",
    ];
    for word in ["auto", "off"] {
        let args = [&base[..], &[word]].concat();
        let _ = good(&args, &[("TOKEN", TOKEN)]);
    }
    for (word, part) in [("require", "not_in_agent"), ("maybe", "auto, off, require")] {
        let args = [&base[..], &[word]].concat();
        let why = refused(&args, &[("TOKEN", TOKEN)]);
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn an_agent_that_asks_for_a_token_needs_a_place_for_it() {
    fn asks<'a>(hub: &[&'a str], further: &[&'a str]) -> Vec<&'a str> {
        [&["connect"], hub, further].concat()
    }
    let hub = [
        "--hub",
        "https://hub.example",
        "--target",
        "http://localhost:3000",
    ];
    let said = refused(&asks(&hub, &[]), &[]);
    assert!(said.contains("--state-dir"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let state = ["--state-dir", dir.path().to_str().unwrap()];
    let wish = good(&asks(&hub, &state), &[]).wish.expect("it asks");
    assert_eq!(
        (wish.cluster.as_str(), wish.state_dir.as_path()),
        ("", dir.path())
    );
    let named = good(&asks(&hub, &[&state[..], &["prod"]].concat()), &[]);
    assert_eq!(named.wish.expect("it asks").cluster, "prod");
    let said = refused(&asks(&hub, &[&state[..], &["No Cluster"]].concat()), &[]);
    assert!(said.contains("no cluster id"), "{said}");
    // Without the verb nothing is asked for.
    let said = refused(&[&hub[..], &state].concat(), &[]);
    assert!(said.contains("culvert-agent connect"), "{said}");
}

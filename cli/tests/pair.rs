//! `culvert pair` as administrators type it: the real binary, openssl beside it, and a relay's door.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use assert_cmd::Command;
use culvert_net::introduction::{Door, OuterServer, receive};
use culvert_net::tls::dev::DevCa;
use culvert_pair::{
    Authority, FileStore, LEAF_LIFE_S, Listing, PairJoin, PairingCode, Registration, Store as _,
};
use culvert_proto::pair::{Reply, ReplyCode, Role};
use serde_json::Value;
use tokio::net::TcpListener;

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }
}

fn culvert_hearing(input: &str, argv: &[&str]) -> Said {
    let mut command = Command::cargo_bin("culvert").unwrap();
    let done = command
        .env_clear()
        .args(argv)
        .write_stdin(input)
        .output()
        .unwrap();
    Said {
        code: done.status.code().unwrap(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

fn culvert(argv: &[&str]) -> Said {
    culvert_hearing("", argv)
}

fn now() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn listing(dir: &Path) -> Listing {
    runtime()
        .block_on(FileStore::new(dir.to_owned()).list())
        .unwrap()
}

fn place(dir: &Path, name: &str) -> String {
    format!("file:{}", dir.join(name).display())
}

fn openssl(dir: &Path, argv: &[&str]) -> (bool, String) {
    let done = std::process::Command::new("openssl")
        .args(argv)
        .current_dir(dir)
        .output()
        .unwrap();
    (
        done.status.success(),
        String::from_utf8(done.stdout).unwrap(),
    )
}

#[test]
fn init_keeps_a_pair_and_prints_one_word_for_the_other_side() {
    let dir = tempfile::tempdir().unwrap();
    let store = place(dir.path(), "store");
    let said = culvert(&[
        "pair",
        "init",
        "--name",
        "db-eu",
        "--relay",
        "relay.example,[2001:db8::1]:8443",
        "--store",
        &store,
        "--to",
        "127.0.0.1:5432",
    ]);
    assert_eq!(said.code, 0, "{}", said.err);
    let word = said.out.trim_end();
    assert!(
        !word.contains(char::is_whitespace),
        "it can be piped into a file"
    );
    let join = PairJoin::decode(word).unwrap();
    assert_eq!(join.relays, ["relay.example:443", "[2001:db8::1]:8443"]);
    let kept = listing(&dir.path().join("store")).kept;
    let registration = &kept[0].registration;
    assert_eq!(registration.name(), "db-eu");
    assert_eq!(join.info_hash, Some(registration.info_hash()));
    assert!(registration.code(now()).unwrap().is_same(&join.code));
    assert!(!registration.is_bound() && !registration.voucher().unwrap().reissue);
    let bridge = format!(
        "culvert-agent bridge --to 127.0.0.1:5432 --relay relay.example:443 --relay [2001:db8::1]:8443 --store {store}"
    );
    assert!(said.err.contains(&bridge), "{}", said.err);
    assert!(!said.err.contains(join.code.encode().as_str()) && !said.err.contains(word));
    let again = culvert(&[
        "pair",
        "init",
        "--name",
        "db-eu",
        "--relay",
        "r:1",
        "--store",
        &store,
        "--reissue",
        "-o",
        "json",
    ]);
    let again = again.json();
    assert_eq!(again["reissue"], true);
    assert!(PairJoin::decode(again["join"].as_str().unwrap()).is_ok());
    assert_eq!(listing(&dir.path().join("store")).kept.len(), 2);
}

#[test]
fn a_fingerprint_is_registered_and_repaired_by_registering_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let (state, store) = (place(dir.path(), "broker"), place(dir.path(), "store"));
    let first = culvert(&["target", "fingerprint", "--state", &state, "--relay", "r:1"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let again = culvert(&["pair", "fingerprint", "--state", &state, "-o", "json"]).json();
    assert_eq!(
        again["fingerprint"],
        first.out.trim_end(),
        "the same key has the same code"
    );
    assert_eq!(again["new"], false);
    let register = [
        "source",
        "register",
        "--fingerprint",
        "-",
        "--store",
        &store,
    ];
    let flags = ["--relay", "r:1", "--name", "vault-eu", "-o", "json"];
    let made = culvert_hearing(&first.out, &[&register[..], &flags].concat()).json();
    assert_eq!(
        (&made["pair"], &made["repaired"]),
        (&again["pair"], &Value::Bool(false))
    );
    let store_dir = dir.path().join("store");
    let kept = listing(&store_dir).kept;
    let code = PairingCode::decode(&first.out).unwrap();
    assert!(kept[0].registration.is_bound());
    assert!(kept[0].registration.code(now()).unwrap().is_same(&code));
    // The broker came, kept its certificate and lost it: the code is used up.
    let broker = runtime().block_on(FileStore::new(dir.path().join("broker")).load_broker());
    let (broker, _) = broker.unwrap().unwrap();
    let spki = broker.boot_key().spki_sha256();
    let csr = broker.boot_key().request().unwrap();
    let files = FileStore::new(store_dir.clone());
    let redeem = || {
        let id = kept[0].registration.id();
        runtime().block_on(files.redeem(id, &spki, &csr, now()))
    };
    assert!(redeem().is_ok());
    let id = kept[0].registration.id();
    runtime().block_on(files.confirm(id)).unwrap();
    assert!(redeem().is_err());
    let repaired = culvert_hearing(&first.out, &[&register[..], &["-o", "json"]].concat()).json();
    assert_eq!(repaired["repaired"], true);
    assert_eq!(repaired["info_hash"], made["info_hash"], "the CA stays");
    assert_eq!(listing(&store_dir).kept[0].registration.relays(), ["r:1"]);
    assert!(redeem().is_ok());
}

#[test]
fn a_pair_whose_first_broker_was_lost_is_repaired_with_its_join_string() {
    let dir = tempfile::tempdir().unwrap();
    let store = place(dir.path(), "store");
    let init = [
        "pair", "init", "--name", "db-eu", "--relay", "r:1", "--store", &store,
    ];
    let word = culvert(&init).out;
    let join = PairJoin::decode(&word).unwrap();
    let store_dir = dir.path().join("store");
    let files = FileStore::new(store_dir.clone());
    let id = listing(&store_dir).kept[0].registration.id().clone();
    let csr = culvert_pair::Key::generate().unwrap().request().unwrap();
    let redeem = |key: u8| runtime().block_on(files.redeem(&id, &[key; 32], &csr, now()));
    assert!(redeem(1).is_ok() && redeem(2).is_err());
    let register = ["pair", "register", "--fingerprint", "-", "--store"];
    let said = culvert_hearing(&word, &[&register[..], &[&store]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    let again = PairJoin::decode(&said.out).unwrap();
    assert!(again.code.is_same(&join.code) && again.expires_unix_s >= join.expires_unix_s);
    assert_eq!(
        (again.info_hash, &again.relays),
        (join.info_hash, &join.relays)
    );
    assert!(
        redeem(2).is_ok(),
        "a new broker, for the old one has no key any more"
    );
    assert!(redeem(3).is_err());
    let elsewhere = place(dir.path(), "elsewhere");
    let said = culvert_hearing(&word, &[&register[..], &[&elsewhere]].concat());
    assert!(
        said.code == 2 && said.err.contains("no such pair"),
        "{}",
        said.err
    );
}

#[test]
fn certificates_by_hand_satisfy_openssl_and_only_with_their_own_ca() {
    let dir = tempfile::tempdir().unwrap();
    let pair = |name: &str| {
        let store = place(dir.path(), name);
        let argv = [
            "target",
            "connect",
            "--beacon-address",
            "r:1",
            "--store",
            &store,
            "-o",
            "json",
        ];
        let said = culvert(&argv).json();
        (
            dir.path().join(name).join(said["pair"].as_str().unwrap()),
            said,
        )
    };
    let ((ours, said), (theirs, _)) = (pair("a"), pair("b"));
    let foreign = theirs.join("ca.crt");
    let foreign = foreign.to_str().unwrap();
    for (file, purpose, wrong) in [
        ("bridge.crt", "sslserver", "sslclient"),
        ("broker.crt", "sslclient", "sslserver"),
    ] {
        let verify = |ca, purpose| {
            let argv = [
                "verify",
                "-x509_strict",
                "-CAfile",
                ca,
                "-purpose",
                purpose,
                file,
            ];
            openssl(&ours, &argv).0
        };
        assert!(
            verify("ca.crt", purpose) && !verify("ca.crt", wrong),
            "{file}"
        );
        assert!(!verify(foreign, purpose), "{file}: the CA of another pair");
        let key = file.replace("crt", "key");
        let of_cert = openssl(&ours, &["x509", "-in", file, "-noout", "-pubkey"]);
        assert!(of_cert.0 && of_cert == openssl(&ours, &["pkey", "-in", &key, "-pubout"]));
    }
    let (_, hash) = openssl(
        &ours,
        &["x509", "-in", "ca.crt", "-noout", "-fingerprint", "-sha256"],
    );
    let hash = hash
        .trim()
        .rsplit('=')
        .next()
        .unwrap()
        .replace(':', "")
        .to_lowercase();
    assert_eq!(said["info_hash"], hash.as_str());
    for file in said["files"].as_array().unwrap() {
        let mode = fs::metadata(file.as_str().unwrap()).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{file}");
    }
    let kept = listing(&dir.path().join("a")).kept;
    assert!(
        kept[0].registration.voucher().is_none(),
        "no code: the certificate is copied"
    );
    let shown = fs::read_to_string(ours.join("bridge.crt")).unwrap();
    assert_eq!(shown, kept[0].registration.bridge().chain_pem());
    assert!(
        said["broker"].as_str().unwrap().contains("broker.key"),
        "{said}"
    );
}

#[test]
fn a_dry_run_says_every_change_and_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = place(dir.path(), "store");
    let code = PairingCode::random().encode();
    let file = dir.path().join("bundle.json");
    let (file, units) = (file.to_str().unwrap(), dir.path().to_str().unwrap());
    let all: [(&[&str], &str); 6] = [
        (
            &["init", "--name", "a", "--relay", "r:1", "--store", &store],
            "new pair",
        ),
        (&["fingerprint", "--state", &store], "bootstrap key"),
        (
            &["register", "--fingerprint", &code, "--store", &store],
            "as pair",
        ),
        (
            &["connect", "--relay", "r:1", "--store", &store],
            "broker.key",
        ),
        (&["debug", "--relay", "r:1", "--file", file], "bundle.json"),
        (
            &["install", "--role", "relay", "--unit-dir", units],
            "culvert-relay.service",
        ),
    ];
    for (argv, word) in all {
        let said = culvert(&[&["pair", "--dry-run"], argv].concat());
        assert_eq!(
            (said.code, said.out.as_str()),
            (0, ""),
            "{argv:?}: {}",
            said.err
        );
        assert!(
            said.err.contains("dry run") && said.err.contains(word),
            "{argv:?}: {}",
            said.err
        );
        let left = fs::read_dir(dir.path()).unwrap().next();
        assert!(left.is_none(), "{argv:?} made {left:?}");
    }
}

#[test]
fn wrong_command_lines_name_what_is_wrong_and_what_to_write() {
    let code = PairingCode::random().encode();
    let damaged = code.to_lowercase();
    let evil = "127.0.0.1:1\nExecStartPre=/bin/evil";
    let all: [(&[&str], &str); 16] = [
        (
            &["init", "--name", "A", "--relay", "r:1", "--store", "file:x"],
            "lower-case",
        ),
        (
            &["init", "--name", "a", "--store", "file:x"],
            "--relay HOST:PORT",
        ),
        (
            &[
                "init",
                "--name",
                "a",
                "--relay",
                "https://r",
                "--store",
                "file:x",
            ],
            "https://r",
        ),
        (
            &["init", "--name", "a", "--relay", "r:1"],
            "--store file:DIR",
        ),
        (
            &["init", "--name", "a", "--relay", "r:1", "--store", "s3:x"],
            "s3:x",
        ),
        (
            &["register", "--fingerprint", &damaged, "--store", "file:x"],
            "damaged",
        ),
        (
            &["register", "--fingerprint", "cvr_x", "--store", "file:x"],
            "damaged",
        ),
        (
            &["register", "--fingerprint", "-", "--store", "file:x"],
            "cvf_",
        ),
        (
            &[
                "register",
                "--fingerprint",
                &code,
                "--secretstore-address",
                "https://vault:8200",
            ],
            "later version",
        ),
        (
            &[
                "connect",
                "--relay",
                "r:1",
                "--secretstore-token",
                "hvs.canary",
            ],
            "later version",
        ),
        (&["validate"], "--store, --state"),
        (&["validate", "--relay", "r:1", "--info-hash", "abc"], "64"),
        (&["install", "--role", "bridge", "--relay", "r:1"], "--to"),
        (
            &[
                "install", "--role", "bridge", "--relay", "r:1", "--to", evil,
            ],
            "HOST:PORT",
        ),
        (
            &["install", "--role", "broker", "--mode", "direct"],
            "--dial",
        ),
        (
            &[
                "install",
                "--role",
                "broker",
                "--relay",
                "r:1",
                "--store",
                "file:/a b",
            ],
            "unit",
        ),
    ];
    for (argv, word) in all {
        let said = culvert(&[&["pair"], argv].concat());
        assert_eq!(
            (said.code, said.out.as_str()),
            (2, ""),
            "{argv:?}: {}",
            said.err
        );
        assert!(said.err.contains(word), "{argv:?}: {}", said.err);
        assert!(!said.err.contains("hvs.canary"));
    }
}

#[test]
fn validate_names_each_thing_that_is_wrong_with_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ours, other) = (
        Authority::generate("a", now()),
        Authority::generate("b", now()),
    );
    let (ours, other) = (ours.unwrap(), other.unwrap());
    let bridge = ours.bridge(now()).unwrap();
    let ended = now() - LEAF_LIFE_S - 60;
    let old = Authority::generate("old", ended).unwrap();
    let old_bridge = old.bridge(ended).unwrap();
    let (cert, key) = (
        put("b.crt", &bridge.chain_pem()),
        put("b.key", &bridge.key_pem()),
    );
    let ca = put("ca.crt", &ours.certificate_pem());
    let look = |cert: &str, key: &str, ca: &str, more: &[&str]| {
        let argv = [
            "pair",
            "validate",
            "--tls-cert",
            cert,
            "--tls-key",
            key,
            "--tls-ca",
            ca,
        ];
        culvert(&[&argv[..], more].concat())
    };
    let hash = ours.info_hash().to_string();
    let good = look(
        &cert,
        &key,
        &ca,
        &["--role", "bridge", "--info-hash", &hash],
    );
    assert_eq!(good.code, 0, "{}{}", good.out, good.err);
    let (foreign, foreign_hash) = (put("f.crt", &other.certificate_pem()), other.info_hash());
    let strange = put("s.key", &other.bridge(now()).unwrap().key_pem());
    let old_files = [
        put("o.crt", &old_bridge.chain_pem()),
        put("o.key", &old_bridge.key_pem()),
        put("o.ca", &old.certificate_pem()),
    ];
    let leaf = bridge.chain_pem();
    let leaf = put(
        "leaf.crt",
        leaf.split_inclusive("-----END CERTIFICATE-----\n")
            .next()
            .unwrap(),
    );
    for (said, word) in [
        (look(&cert, &key, &ca, &["--role", "broker"]), "clientAuth"),
        (look(&leaf, &key, &foreign, &[]), "not signed by this CA"),
        (look(&cert, &strange, &ca, &[]), "do not go together"),
        (
            look(&old_files[0], &old_files[1], &old_files[2], &[]),
            "expired",
        ),
        (
            look(
                &cert,
                &key,
                &ca,
                &["--info-hash", &foreign_hash.to_string()],
            ),
            "--info-hash says",
        ),
        (look(&cert, &cert, &ca, &[]), "PKCS#8"),
        (look(&cert, "/nowhere.key", &ca, &[]), "/nowhere.key"),
    ] {
        assert_eq!(said.code, 1, "{word}: {}{}", said.out, said.err);
        assert!(said.err.contains(word), "{word}: {}", said.err);
        assert!(said.err.contains("fix   "), "{}", said.err);
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = look(&cert, &key, &ca, &[]);
    assert!(
        open.code == 1 && open.err.contains("chmod 0600"),
        "{}",
        open.err
    );
}

/// Serves a relay's door until the process ends; its port.
fn door(runtime: &tokio::runtime::Runtime, outer: OuterServer, door: Door) -> u16 {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let _ = receive(tcp, &outer, door).await;
        }
    });
    port
}

#[test]
fn validate_tells_a_relay_from_all_else() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DevCa::new("relay").unwrap();
    let ca_file = ca.write(dir.path()).unwrap();
    let ca_file = ca_file.to_str().unwrap();
    let server = ca.server(&["127.0.0.1"]).unwrap();
    let (cert, key) = server.write(dir.path(), "relay").unwrap();
    let runtime = runtime();
    let tls = || OuterServer::Tls {
        tls: OuterServer::tls(cert.clone(), key.clone()).unwrap().into(),
        keep: false,
    };
    let wide = Door {
        accepts_open: false,
        closed: None,
    };
    let full = Door {
        closed: Some(Reply::from(ReplyCode::RateLimit)),
        ..wide
    };
    let sound = door(&runtime, tls(), wide);
    let plain = door(&runtime, OuterServer::Plain, wide);
    let closed = door(&runtime, tls(), full);
    let nobody = runtime.block_on(async { TcpListener::bind("127.0.0.1:0").await.unwrap() });
    let silent = nobody.local_addr().unwrap().port();
    let look = |port: u16, more: &[&str]| {
        let relay = format!("127.0.0.1:{port}");
        culvert(&[&["pair", "validate", "-o", "json", "--relay", &relay], more].concat())
    };
    let pin = culvert_net::tls::spki_sha256(&der(dir.path(), &cert)).unwrap();
    let pin = format!("{}", culvert_net::tls::SpkiPin(pin));
    for more in [&["--relay-ca", ca_file][..], &["--relay-pin", &pin]] {
        let said = look(sound, more);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        assert!(
            said.json()["items"][0]["seen"]
                .as_str()
                .unwrap()
                .contains("culvert-relay/1")
        );
    }
    let said = look(plain, &["--relay-plain"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    for (said, word) in [
        (look(sound, &[]), "--relay-ca"),
        (look(sound, &["--relay-plain"]), "no Culvert relay"),
        (look(closed, &["--relay-ca", ca_file]), "rate_limit"),
        (look(plain, &["--relay-ca", ca_file]), "--relay-plain"),
        (look(silent, &["--relay-plain"]), "no hello within 5 s"),
        (look(1, &["--relay-plain"]), "start the relay"),
    ] {
        assert_eq!(said.code, 1, "{word}: {}{}", said.out, said.err);
        let told = format!("{}{}", said.out, said.err);
        assert!(told.contains(word), "{word}: {told}");
    }
}

fn der(dir: &Path, cert: &Path) -> culvert_net::tls::CertificateDer<'static> {
    let out = dir.join("relay.der");
    let (cert, to) = (cert.to_str().unwrap(), out.to_str().unwrap());
    assert!(openssl(dir, &["x509", "-in", cert, "-outform", "DER", "-out", to]).0);
    fs::read(out).unwrap().into()
}

#[test]
fn a_debug_bundle_holds_public_parts_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (store, state) = (place(dir.path(), "store"), place(dir.path(), "broker"));
    let init = [
        "pair",
        "init",
        "--name",
        "db-eu",
        "--relay",
        "127.0.0.1:1",
        "--store",
        &store,
    ];
    let join = PairJoin::decode(&culvert(&init).out).unwrap();
    let code = culvert(&["pair", "fingerprint", "--state", &state]).out;
    let file = dir.path().join("bundle.json");
    let file = file.to_str().unwrap();
    let argv = [
        "pair", "debug", "--store", &store, "--state", &state, "--file", file,
    ];
    let said = culvert(&argv);
    assert_eq!((said.code, said.out.trim_end()), (0, file), "{}", said.err);
    let bundle = fs::read_to_string(file).unwrap();
    for public in [
        "db-eu",
        &join.info_hash.unwrap().to_string(),
        "127.0.0.1:1",
        "until_unix_s",
    ] {
        assert!(bundle.contains(public), "{public}: {bundle}");
    }
    let registration = listing(&dir.path().join("store"))
        .kept
        .remove(0)
        .registration;
    let (_, text) = openssl(dir.path(), &["version"]);
    assert!(!text.is_empty());
    let mut secrets = vec![code.trim_end().to_owned(), join.code.encode().to_string()];
    secrets.push(hex(join.code.expose()));
    let keys = [
        registration.authority().key_pem(),
        registration.bridge().key_pem(),
    ];
    secrets.extend(keys.iter().flat_map(|pem| pem.lines().map(str::to_owned)));
    let stored = fs::read_to_string(dir.path().join("broker/broker/pair.json")).unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    secrets.extend(
        stored["boot_key"]
            .as_str()
            .unwrap()
            .lines()
            .map(str::to_owned),
    );
    assert!(secrets.len() > 12, "there are secrets to look for");
    for secret in secrets {
        assert!(!bundle.contains(&secret), "{secret} is in the bundle");
    }
    let again = culvert(&argv);
    assert!(
        again.code == 2 && again.err.contains("not there yet"),
        "{}",
        again.err
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn validate_reads_a_store_and_names_what_is_open_damaged_or_over() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = FileStore::new(root.clone());
    let place = place(dir.path(), "store");
    let look = || culvert(&["pair", "validate", "--store", &place]);
    let empty = look();
    assert!(
        empty.code == 1 && empty.err.contains("no pair in it"),
        "{}",
        empty.err
    );
    let made = |at: u64, name: &str| {
        let code = PairingCode::random();
        let pair = Registration::new(name, &[], code, false, false, at).unwrap();
        runtime().block_on(store.save(&pair, None)).unwrap();
        pair
    };
    let fresh = made(now(), "fresh");
    assert!(fresh.bridge().check(Role::Bridge, now()).is_ok());
    let good = look();
    assert_eq!(good.code, 0, "{}{}", good.out, good.err);
    assert!(
        good.out.contains("waits for its broker, 1440 minutes left") || good.out.contains("1439")
    );
    let late = made(now() - 90_000, "late");
    let said = look();
    assert!(
        said.code == 1 && said.err.contains("expired before a broker used it"),
        "{}",
        said.err
    );
    let file = root.join(late.id().as_str()).join("pair.json");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let said = look();
    assert!(
        said.code == 1 && said.err.contains("chmod 0600"),
        "{}",
        said.err
    );
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let said = look();
    assert!(
        said.code == 1 && said.err.contains("chmod 0700"),
        "{}",
        said.err
    );
}

#[test]
fn a_secret_store_outside_of_its_cluster_says_which_flags_lead_there() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DevCa::new("kube").unwrap().write(dir.path()).unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "hvs.canary").unwrap();
    let init = [
        "pair",
        "init",
        "--name",
        "a",
        "--relay",
        "r:1",
        "--store",
        "secret:pairs",
    ];
    let said = culvert(&init);
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(
        said.err.contains("store_unreachable") && said.err.contains("--kube-api"),
        "{}",
        said.err
    );
    let (ca, token) = (ca.to_str().unwrap(), token.to_str().unwrap());
    let kube = [
        "--kube-api",
        "https://127.0.0.1:1",
        "--kube-ca-file",
        ca,
        "--kube-token-file",
        token,
    ];
    let said = culvert(&[&init[..], &kube].concat());
    assert!(
        said.code == 1 && said.err.contains("https://127.0.0.1:1"),
        "{}",
        said.err
    );
    assert_eq!(said.out, "", "no join string of a pair that was not kept");
    assert!(!said.err.contains("canary"));
}

#[test]
fn install_writes_a_unit_for_each_role_and_mode() {
    let dir = tempfile::tempdir().unwrap();
    let units = dir.path().to_str().unwrap();
    let unit = |argv: &[&str]| {
        let all = [
            &["pair", "install", "--unit-dir", units, "-o", "json"],
            argv,
        ]
        .concat();
        let said = culvert(&all).json();
        fs::read_to_string(said["file"].as_str().unwrap()).unwrap()
    };
    let bridge = ["--role", "bridge", "--to", "127.0.0.1:5432"];
    let all: [(&[&str], &[&str], &str); 7] = [
        (
            &bridge,
            &["--relay", "r,s:1"],
            "bridge --to 127.0.0.1:5432 --relay r:443 --relay s:1 --store file:/var/lib/culvert-bridge\n",
        ),
        (
            &bridge,
            &["--mode", "reverse", "--dial", "b:8443"],
            " --mode reverse --dial b:8443 --store",
        ),
        (
            &bridge,
            &["--mode", "direct"],
            " --mode direct --listen-pair 0.0.0.0:8443 --store",
        ),
        (
            &["--role", "broker"],
            &["--mode", "beacon", "--relay", "r:1"],
            "broker --listen 127.0.0.1:8199 --relay r:1 --state file:/var/lib/culvert-broker\n",
        ),
        (
            &["--role", "broker"],
            &["--mode", "reverse"],
            " --mode reverse --listen-pair 0.0.0.0:8443 --state",
        ),
        (
            &["--role", "broker"],
            &["--mode", "direct", "--dial", "a:1", "--state", "secret:ns"],
            " --mode direct --dial a:1 --state secret:ns\n",
        ),
        (
            &["--role", "relay"],
            &[],
            "culvert-dataplane relay --addr :443 --tls-cert",
        ),
    ];
    for (role, mode, line) in all {
        let text = unit(&[role, mode].concat());
        assert!(text.contains(line), "{line}: {text}");
        for rule in [
            "After=network-online.target",
            "Restart=always",
            "RestartSec=5",
            "User=culvert",
        ] {
            assert!(text.contains(rule), "{rule}");
        }
    }
    let joins = culvert(&["pair", "install", "--role", "broker", "--join"]);
    assert!(
        joins.out.contains("CULVERT_JOIN_FILE=%d/join"),
        "{}",
        joins.out
    );
    assert!(
        !joins.out.contains("--relay"),
        "the join string names the relays"
    );
}

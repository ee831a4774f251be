//! What control is told: the only reader of flags, environment and
//! configuration file. Everything is checked here, and all problems are listed
//! at once, before anything is bound or written.

mod connect;
mod enrol;
mod identity;
mod license;
mod migrate;
mod settings;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_config::{Layers, Sourced};
use culvert_net::tls::{ClientAuth, MinVersion, ServerTlsOptions};
use culvert_telemetry::log::LogFormat;

use crate::audit::Retention;
use crate::enrol::Enrolment;
use crate::fanout::Fanout;
use crate::identity::SignIn;
use crate::license::LicenseConfig;
use crate::outbound::{Outbound, askable};
use crate::store::Dsn;

pub use settings::PROGRAM;

/// Longest path of a Unix socket in bytes, with room for `.new`.
const SOCKET_BYTES_MAX: usize = 103;

/// A checked configuration.
pub struct Config {
    /// Where the store is.
    pub dsn: Dsn,
    /// The hash of a password, to be printed in place of serving.
    pub hashed: Option<String>,
    /// How people sign in.
    pub sign_in: Option<SignIn>,
    /// A store to copy into that one, in place of serving.
    pub migrate_from: Option<Dsn>,
    /// Directory of keys.
    pub state_dir: PathBuf,
    /// Registry file.
    pub clusters: Option<PathBuf>,
    /// Admin API.
    pub socket: PathBuf,
    /// Admin API over TCP; loopback.
    pub listen: Option<SocketAddr>,
    /// Metrics and probes.
    pub admin_addr: SocketAddr,
    /// Link to data planes.
    pub state_socket: PathBuf,
    /// Link to data planes over mutual TLS.
    pub state_tls: Option<(SocketAddr, ServerTlsOptions)>,
    /// Allowed on the Unix sockets beside the own uid.
    pub peer_uid: Option<u32>,
    /// Where people and agents find the hub.
    pub public_url: Option<String>,
    /// Asks the clusters.
    pub fanout: Option<Fanout>,
    /// How agents get their certificates.
    pub enrolment: Enrolment,
    /// How long audit rows are kept.
    pub retention: Retention,
    /// Print audit rows on standard output.
    pub audit_stdout: bool,
    /// Longest life of a person's token, in seconds.
    pub personal_life_seconds: u64,
    /// How long a request of an agent waits, in milliseconds; `None` = none can ask.
    pub connect_life_ms: Option<u64>,
    /// The licence.
    pub license: LicenseConfig,
    /// Log filter.
    pub log_level: String,
    /// Log lines.
    pub log_format: LogFormat,
    /// Things an operator should hear about, logged at start.
    pub warnings: Vec<String>,
}

/// Why there is no configuration.
pub enum Refused {
    /// Help, version, or a command line that does not parse.
    Usage(clap::Error),
    /// Everything that is wrong.
    Problems(Vec<String>),
}

impl Config {
    /// Reads and checks everything. `env` looks up one environment variable.
    ///
    /// # Errors
    /// [`Refused`], with every problem found.
    pub fn load(
        argv: impl IntoIterator<Item = OsString>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Refused> {
        let layers = Layers::read(&PROGRAM, argv, &env).map_err(Refused::Usage)?;
        Self::build(layers, &env)
    }

    /// Reads the command line and environment of this process.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_process() -> Result<Self, Refused> {
        Self::load(std::env::args_os(), |name| std::env::var(name).ok())
    }

    fn build(layers: Layers, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Refused> {
        let mut checks = Checks {
            layers,
            problems: Vec::new(),
        };
        let state_dir = checks.parsed("state-dir", |text| Ok(PathBuf::from(text)));
        let state_dir = state_dir.unwrap_or_default();
        if !state_dir.is_absolute() {
            checks.say("state-dir", "is not an absolute path");
        }
        let dsn = checks.parsed("db-dsn", Dsn::parse);
        let outbound = checks.outbound(env);
        let mut warnings = std::mem::take(&mut checks.layers.warnings);
        warnings.extend(dsn.as_ref().and_then(Dsn::warning));
        let dsn = dsn.unwrap_or_else(|| Dsn::at(&state_dir));
        let public_url = checks.parsed("public-url", public_url);
        let config = Self {
            hashed: checks.hashed(),
            sign_in: checks.sign_in(public_url.as_deref(), &outbound),
            migrate_from: checks.migrate_from(&dsn, Dsn::at(&state_dir)),
            dsn,
            clusters: checks.parsed("clusters", |text| Ok(PathBuf::from(text))),
            socket: checks.socket("socket", &state_dir, "api.sock"),
            state_socket: checks.socket("state-socket", &state_dir, "state.sock"),
            listen: checks.parsed("listen", loopback),
            admin_addr: checks
                .parsed("admin-addr", address)
                .unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into()),
            state_tls: checks.state_tls(),
            peer_uid: checks.parsed("peer-uid", |text| {
                text.parse().map_err(|_| "is no user id".to_owned())
            }),
            fanout: checks.fanout(public_url.as_deref(), &outbound),
            public_url,
            enrolment: checks.enrolment(),
            retention: checks.retention(),
            audit_stdout: checks
                .parsed("audit-stdout", |text| {
                    let why = || format!("is {text:?}; true or false is wanted");
                    text.parse::<bool>().map_err(|_| why())
                })
                .unwrap_or_default(),
            personal_life_seconds: checks
                .parsed("personal-token-days", life_days)
                .unwrap_or_default(),
            connect_life_ms: checks.connect_life_ms(),
            license: checks.license(&outbound),
            log_level: checks
                .parsed("log-level", |text| Ok(text.to_owned()))
                .unwrap_or_default(),
            log_format: checks.parsed("log-format", log_format).unwrap_or_default(),
            warnings,
            state_dir,
        };
        if config.socket == config.state_socket {
            checks.say("state-socket", "is the same path as --socket");
        }
        let Checks {
            layers,
            mut problems,
        } = checks;
        problems.splice(0..0, layers.problems);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(Refused::Problems(problems))
        }
    }
}

struct Checks {
    layers: Layers,
    problems: Vec<String>,
}

impl Checks {
    fn say(&mut self, name: &str, why: &str) {
        let from = self
            .layers
            .get(name)
            .map_or_else(|| format!("--{name}"), |it| it.from.clone());
        self.problems.push(format!("{from}: {why}"));
    }

    fn parsed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let Sourced { text, .. } = self.layers.get(name)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.say(name, &why);
                None
            }
        }
    }

    fn socket(&mut self, name: &str, state_dir: &Path, file: &str) -> PathBuf {
        let path = self.parsed(name, |text| Ok(PathBuf::from(text)));
        let path = path.unwrap_or_else(|| state_dir.join(file));
        if path.as_os_str().len() > SOCKET_BYTES_MAX {
            let why = format!("path of over {SOCKET_BYTES_MAX} bytes, too long for a Unix socket");
            self.say(name, &why);
        }
        path
    }

    /// By way of the data plane; people find it at the public URL.
    fn fanout(&mut self, public_url: Option<&str>, outbound: &Outbound) -> Option<Fanout> {
        let url = |text: &str| askable(text).map_err(|why| why.to_string());
        let given = self.parsed("data-plane-url", url);
        let url = given.or_else(|| public_url.and_then(|public| url(public).ok()))?;
        Some(Fanout::new(url, public_url, outbound.clone()))
    }

    fn retention(&mut self) -> Retention {
        let capped = |most: u64| {
            move |text: &str| match text.parse::<u64>() {
                Ok(number) if number <= most => Ok(number),
                _ => Err(format!("is {text:?}, no number from 0 to {most}")),
            }
        };
        let days = self.parsed("audit-retention-days", capped(36_500));
        let mebibytes = self.parsed("audit-max-size-mb", capped(1 << 24));
        let every = self.parsed("audit-vacuum-interval", interval);
        Retention {
            age_ms: days.filter(|days| *days > 0).map(|days| days * 86_400_000),
            bytes: mebibytes.filter(|size| *size > 0).map(|size| size << 20),
            every: every.unwrap_or_default(),
        }
    }

    fn state_tls(&mut self) -> Option<(SocketAddr, ServerTlsOptions)> {
        let addr = self.parsed("state-addr", address);
        let files = ["state-tls-cert", "state-tls-key", "state-tls-client-ca"];
        let [cert, key, ca] = files.map(|name| self.parsed(name, |text| Ok(PathBuf::from(text))));
        match (addr, cert, key, ca) {
            (Some(addr), Some(cert), Some(key), Some(ca)) => {
                let client_auth = Some(ClientAuth {
                    ca,
                    required: true,
                    rsa: false,
                });
                let alpn = vec![b"h2".to_vec()];
                let min_version = MinVersion::Tls13;
                Some((
                    addr,
                    ServerTlsOptions {
                        cert,
                        key,
                        client_auth,
                        alpn,
                        min_version,
                    },
                ))
            }
            (Some(_), ..) => {
                self.say(
                    "state-addr",
                    "needs --state-tls-cert, --state-tls-key and --state-tls-client-ca",
                );
                None
            }
            (None, None, None, None) => None,
            _ => {
                if self.layers.get("state-addr").is_none() {
                    self.say(
                        "state-tls-cert",
                        "the --state-tls-* flags need --state-addr",
                    );
                }
                None
            }
        }
    }
}

/// `host:port` by number, or `:port` for every address.
fn address(text: &str) -> Result<SocketAddr, String> {
    let full = text.strip_prefix(':').map(|port| format!("[::]:{port}"));
    let parsed = full.as_deref().unwrap_or(text).parse();
    parsed.map_err(|_| format!("{text:?} is no address; write 127.0.0.1:9900 or :9900"))
}

/// The seconds of a number and `s`, `m`, `h` or `d`.
fn seconds(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(['s', 'm', 'h', 'd']);
    let unit = match &text[number.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => 0,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// From a minute to thirty days.
fn interval(text: &str) -> Result<Duration, String> {
    seconds(text)
        .filter(|all| (60..=30 * 86_400).contains(all))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("is {text:?}; wanted 1m to 30d, for example 24h"))
}

/// Days, as seconds.
fn life_days(text: &str) -> Result<u64, String> {
    let days = text
        .parse::<u64>()
        .ok()
        .filter(|days| (1..=3_650).contains(days));
    days.map(|days| days * 86_400)
        .ok_or_else(|| format!("is {text:?}, no number from 1 to 3650"))
}

/// A loopback address; a bare port is one on 127.0.0.1.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let addr = address(text)?;
    if addr.ip().is_loopback() {
        return Ok(addr);
    }
    Err(format!(
        "{text} is not a loopback address; the admin API listens on loopback only"
    ))
}

fn public_url(text: &str) -> Result<String, String> {
    let url = url::Url::parse(text).map_err(|why| format!("is no URL: {why}"))?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() || !plain {
        return Err("wanted https://host[:port] without user or query".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "logfmt" => Ok(LogFormat::Logfmt),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("is {text:?}; use auto, logfmt or json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(argv: &[&str], env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let argv = std::iter::once("culvert-control").chain(argv.iter().copied());
        let env = |name: &str| {
            env.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Config::load(argv.map(OsString::from), env).map_err(|refused| match refused {
            Refused::Problems(problems) => problems,
            Refused::Usage(why) => vec![why.to_string()],
        })
    }

    #[test]
    fn defaults_stand_in_the_state_directory() {
        let config = load(&["--state-dir", "/s"], &[]).unwrap();
        assert_eq!(config.dsn.place(), "/s/control.db");
        assert_eq!(config.socket, Path::new("/s/api.sock"));
        assert_eq!(config.admin_addr.to_string(), "127.0.0.1:9900");
        assert!(config.listen.is_none() && config.state_tls.is_none());
        let days = crate::api::PERSONAL_LIFE_SECONDS_DEFAULT;
        assert_eq!(config.personal_life_seconds, days);
    }

    #[test]
    fn flag_over_own_name_over_alias_over_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("control.toml");
        std::fs::write(
            &file,
            "db_dsn = \"/file.db\"\npublic_url = \"https://file\"\n",
        )
        .unwrap();
        let config = ("CULVERT_CONFIG", file.to_str().unwrap());
        let alias = ("HUB_DB_DSN", "/alias.db");
        let own = ("CULVERT_DB_DSN", "/own.db");
        let path = |argv: &[&str], env: &[(&str, &str)]| load(argv, env).unwrap().dsn.place();
        assert_eq!(
            path(&["-db-dsn=/flag.db"], &[config, alias, own]),
            "/flag.db"
        );
        assert_eq!(path(&[], &[config, own]), "/own.db");
        assert_eq!(path(&[], &[config, alias]), "/alias.db");
        assert_eq!(path(&[], &[config]), "/file.db");
        let said = load(&[], &[alias, own]).err().unwrap().join("\n");
        assert!(
            said.contains("HUB_DB_DSN") && said.contains("CULVERT_DB_DSN"),
            "{said}"
        );
        assert_eq!(
            load(&[], &[config]).unwrap().public_url.unwrap(),
            "https://file"
        );
    }

    #[test]
    fn a_secret_may_stand_in_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dsn");
        std::fs::write(&file, "sqlite:/x.db\n").unwrap();
        let config = load(&[], &[("HUB_DB_DSN_FILE", file.to_str().unwrap())]).unwrap();
        assert_eq!(config.dsn.place(), "/x.db");
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        let argv = [
            "--listen",
            "0.0.0.0:8088",
            "--admin-addr",
            "nowhere",
            "--db-dsn",
            "oracle://u:hidden@x",
            "--state-addr",
            ":9",
            "--peer-uid",
            "me",
            "--public-url",
            "ftp://x",
            "--log-format",
            "xml",
            "--personal-token-days",
            "0",
        ];
        let problems = load(&argv, &[]).err().unwrap();
        let said = problems.join("\n");
        for word in [
            "8088",
            "nowhere",
            "oracle",
            "--state-tls-cert",
            "user id",
            "https://",
            "xml",
            "3650",
        ] {
            assert!(said.contains(word), "{word} is not named in: {said}");
        }
        assert_eq!(problems.len(), 8, "{said}");
        assert!(!said.contains("hidden"), "{said}");
    }

    #[test]
    fn unknown_keys_and_flags_are_named_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("control.toml");
        std::fs::write(
            &file,
            "public_url = \"https://a\"\n  sockets = \"x\"\nlisten = {}\n",
        )
        .unwrap();
        let said = load(&["--config", file.to_str().unwrap()], &[])
            .err()
            .unwrap()
            .join("\n");
        assert!(
            said.contains("control.toml:2:3: unknown key \"sockets\""),
            "{said}"
        );
        assert!(said.contains("control.toml:3:1: listen takes"), "{said}");
        assert!(load(&["--sockets", "x"], &[]).is_err());
        assert!(load(&["--config", "/nowhere/x.toml"], &[]).is_err());
    }

    #[test]
    fn listen_takes_a_port_or_a_loopback_address() {
        for (text, addr) in [("8088", "127.0.0.1:8088"), ("[::1]:1", "[::1]:1")] {
            let config = load(&["--listen", text], &[]).unwrap();
            assert_eq!(config.listen.unwrap().to_string(), addr);
        }
        assert!(load(&["--listen", ":8088"], &[]).is_err());
    }
}

//! Where the store is, as an operator writes it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Parameters of libpq that are understood; any other is refused, since it may be
/// one that makes the connection safe.
const KNOWN: [&str; 11] = [
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "application_name",
    "connect_timeout",
];
const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// Where the store is.
#[derive(Clone, PartialEq, Eq)]
pub enum Dsn {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(Params),
}

/// Parameters of a server by their libpq names, checked. They hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Params(BTreeMap<String, String>);

/// Without the password.
impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())
    }
}

impl Dsn {
    /// Reads `sqlite:path`, `sqlite://path`, `sqlite:///path`, a bare path, a
    /// `postgres://` URL, or `key=value` pairs as libpq has them.
    ///
    /// # Errors
    /// A sentence for people. It repeats no value, since a DSN may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = match text.split_once(':') {
            Some(("sqlite", rest)) => rest.strip_prefix("//").unwrap_or(rest),
            Some(("postgres" | "postgresql", _)) => {
                return Params::of_url(text).map(Self::Postgres);
            }
            Some((scheme, rest)) if rest.starts_with("//") => {
                return Err(format!(
                    "{scheme}: unknown scheme; use sqlite:PATH or postgres://USER@HOST/DATABASE"
                ));
            }
            _ if text.contains("dbname=") || text.contains("host=") => {
                return Params::of_pairs(text).map(Self::Postgres);
            }
            _ => text,
        };
        if path.is_empty() || path == ":memory:" {
            return Err("names no file; use sqlite:PATH".to_owned());
        }
        if path.contains('?') {
            return Err("has parameters; only sqlite:PATH is understood".to_owned());
        }
        Ok(Self::Sqlite(path.into()))
    }

    /// The store that stands in `dir` unless another is named.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self::Sqlite(dir.join("control.db"))
    }

    /// The file, or server and database: nothing secret.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(params) => {
                let [host, port, name] = ["host", "port", "dbname"].map(|key| params.get(key));
                format!("postgres://{host}:{port}/{name}")
            }
        }
    }

    /// What an operator should hear: a password or rows in clear text on a network.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let Self::Postgres(params) = self else {
            return None;
        };
        let (mode, is_local) = (params.get("sslmode"), params.get("host").starts_with('/'));
        let is_weak = matches!(mode, "disable" | "allow" | "prefer");
        (is_weak && !is_local).then(|| {
            let place = self.place();
            format!("{place}: sslmode={mode} may speak without TLS; use require, or verify-full")
        })
    }
}

impl Params {
    fn of_url(text: &str) -> Result<Self, String> {
        let url = url::Url::parse(text).map_err(|why| format!("is no URL: {why}"))?;
        let decoded = |part: &str| {
            let pairs = format!("x={}", part.replace('+', "%2B"));
            let mut pairs = url::form_urlencoded::parse(pairs.as_bytes());
            pairs.next().map(|(_, value)| value.into_owned())
        };
        let mut given = Vec::new();
        let mut give = |key: &str, value: Option<String>| {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                given.push((key.to_owned(), value));
            }
        };
        // libpq writes a directory of Unix sockets percent-encoded in the place of the host.
        give("host", url.host_str().and_then(decoded));
        give("port", url.port().map(|port| port.to_string()));
        give("user", decoded(url.username()));
        give("password", url.password().and_then(decoded));
        give("dbname", decoded(url.path().trim_start_matches('/')));
        for (key, value) in url.query_pairs() {
            given.push((key.into_owned(), value.into_owned()));
        }
        Self::checked(given)
    }

    /// `key=value` pairs; a value may stand in single quotes, with `\` before `'` and `\`.
    fn of_pairs(text: &str) -> Result<Self, String> {
        let mut given = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (key, after) = rest
                .split_once('=')
                .ok_or("a word without = stands in it")?;
            let (value, after) = value(after.trim_start())?;
            given.push((key.trim().to_owned(), value));
            rest = after.trim_start();
        }
        Self::checked(given)
    }

    fn checked(given: Vec<(String, String)>) -> Result<Self, String> {
        let mut params = BTreeMap::new();
        for (key, value) in given {
            if !KNOWN.contains(&key.as_str()) {
                let known = KNOWN.join(", ");
                return Err(format!(
                    "parameter {key:?} is not understood; known are {known}"
                ));
            }
            params.insert(key, value);
        }
        let wanted = ["host", "user"];
        if let Some(missing) = wanted.iter().find(|key| !params.contains_key(**key)) {
            return Err(format!("names no {missing}"));
        }
        let user = params["user"].clone();
        params.entry("dbname".to_owned()).or_insert(user);
        params.entry("port".to_owned()).or_insert("5432".to_owned());
        params
            .entry("sslmode".to_owned())
            .or_insert("prefer".to_owned());
        if params["host"].contains(',') {
            return Err("names several hosts; name one".to_owned());
        }
        if params["port"].parse::<u16>().is_err() {
            return Err("its port is no number from 0 to 65535".to_owned());
        }
        if !MODES.contains(&params["sslmode"].as_str()) {
            return Err(format!("its sslmode is none of {}", MODES.join(", ")));
        }
        Ok(Self(params))
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// As the driver takes them. Nothing is left to the driver's own environment.
    pub(super) fn options(&self) -> Result<PgConnectOptions, String> {
        let port = self.get("port").parse();
        let mode = match self.get("sslmode") {
            "disable" => PgSslMode::Disable,
            "allow" => PgSslMode::Allow,
            "prefer" => PgSslMode::Prefer,
            "require" => PgSslMode::Require,
            "verify-ca" => PgSslMode::VerifyCa,
            _ => PgSslMode::VerifyFull,
        };
        let name = match self.get("application_name") {
            "" => "culvert-control",
            name => name,
        };
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(port.map_err(|_| "its port is no number".to_owned())?)
            .username(self.get("user"))
            .password(self.get("password"))
            .database(self.get("dbname"))
            .application_name(name)
            // Notices of our own migrations are nobody's news.
            .options([("client_min_messages", "warning")])
            .ssl_mode(mode);
        options = match self.get("host") {
            directory if directory.starts_with('/') => options.socket(directory),
            host => options.host(host),
        };
        for (key, set) in [
            (
                "sslrootcert",
                PgConnectOptions::ssl_root_cert as fn(_, _) -> _,
            ),
            (
                "sslcert",
                PgConnectOptions::ssl_client_cert as fn(_, _) -> _,
            ),
            ("sslkey", PgConnectOptions::ssl_client_key as fn(_, _) -> _),
        ] {
            if let Some(path) = self.0.get(key) {
                options = set(options, path.clone());
            }
        }
        Ok(options)
    }
}

/// One value and what follows it.
fn value(text: &str) -> Result<(String, &str), String> {
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return Ok((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return Ok((value, &quoted[at + 1..])),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    Err("a quote is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_a_dsn() {
        for (text, place) in [
            ("/a/b.db", "/a/b.db"),
            ("sqlite:/a/b.db", "/a/b.db"),
            ("sqlite:///a/b.db", "/a/b.db"),
            ("sqlite://b.db", "b.db"),
            (
                "postgres://ana:secret@db.example/hub",
                "postgres://db.example:5432/hub",
            ),
            ("postgresql://ana@[::1]:6000", "postgres://[::1]:6000/ana"),
            (
                "host=db user=ana password='se cret\\'s' dbname=hub",
                "postgres://db:5432/hub",
            ),
            (
                "postgres://ana@%2Frun%2Fpg/hub",
                "postgres:///run/pg:5432/hub",
            ),
        ] {
            let dsn = Dsn::parse(text).unwrap();
            assert_eq!(dsn.place(), place, "{text}");
            assert!(!format!("{dsn:?}").contains("cret"));
        }
        for text in [
            "",
            "sqlite:",
            "sqlite:/a?mode=ro",
            "mysql://u:secret@x",
            "postgres://:secret@x/d",
            "postgres://u:secret@x/d?sslmode=maybe",
            "postgres://u:secret@x/d?channel_binding=require",
            "postgres://u:secret@x,y/d",
            "host=a password=secret",
            "host=a user=b password='secret",
            "host=a user=b port=secret",
        ] {
            let why = Dsn::parse(text).unwrap_err();
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn clear_text_on_a_network_is_one_warning() {
        for (text, warns) in [
            ("postgres://u@x/d", true),
            ("postgres://u@x/d?sslmode=disable", true),
            ("postgres://u@x/d?sslmode=require", false),
            ("postgres://u@x/d?sslmode=verify-full", false),
            ("host=/run/pg user=u", false),
            ("/a.db", false),
        ] {
            assert_eq!(
                Dsn::parse(text).unwrap().warning().is_some(),
                warns,
                "{text}"
            );
        }
    }
}

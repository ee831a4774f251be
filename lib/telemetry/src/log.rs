//! Logs: logfmt on a terminal, one JSON object a line elsewhere.
//!
//! Fields come in a fixed order, `ts level target msg` first. Values are
//! escaped in both forms, so a peer's text can forge neither a line nor a
//! terminal sequence.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Longest value of one field in bytes; the rest is cut and marked with `...`.
pub const FIELD_BYTES_MAX: usize = 4096;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// logfmt when standard error is a terminal, else JSON.
    #[default]
    Auto,
    /// `key=value` pairs.
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// What to log and how.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter in the
    /// syntax of `tracing_subscriber::EnvFilter`.
    pub level: String,
    /// The line format.
    pub format: LogFormat,
    /// Name of the process, written as `process` in every line.
    pub process: &'static str,
}

/// Changes the filter of a running process.
#[derive(Clone)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "log level {seen:?} is not a level or filter: {why}; use error, warn, info, debug or trace"
    )]
    Filter {
        /// What was given.
        seen: String,
        /// What the parser said.
        why: String,
    },
    /// A global subscriber was installed before.
    #[error("logging is set up already")]
    AlreadySet,
}

/// Installs the process-wide log on standard error.
///
/// # Errors
/// [`LogError`] when the filter does not parse or logging was set up before.
pub fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&config.level)?);
    let json = match config.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Logfmt => false,
        LogFormat::Json => true,
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .event_format(Lines {
            json,
            process: config.process,
        });
    Registry::default()
        .with(filter)
        .with(layer)
        .try_init()
        .map_err(|_| LogError::AlreadySet)?;
    Ok(LogHandle(handle))
}

impl LogHandle {
    /// Replaces the filter from now on.
    ///
    /// # Errors
    /// [`LogError::Filter`]; the old filter stays.
    pub fn set(&self, level: &str) -> Result<(), LogError> {
        let filter = parse(level)?;
        self.0.reload(filter).map_err(|why| LogError::Filter {
            seen: level.to_owned(),
            why: why.to_string(),
        })
    }
}

fn parse(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(level).map_err(|why| LogError::Filter {
        seen: level.to_owned(),
        why: why.to_string(),
    })
}

struct Lines {
    json: bool,
    process: &'static str,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        let head = [
            ("ts", rfc3339(SystemTime::now())),
            ("level", meta.level().as_str().to_ascii_lowercase()),
            ("process", self.process.to_owned()),
            ("target", meta.target().to_owned()),
            ("msg", fields.message),
        ];
        let all = head.iter().map(|(k, v)| (*k, v.as_str()));
        let all = all.chain(fields.rest.iter().map(|(k, v)| (*k, v.as_str())));
        let mut line = String::with_capacity(256);
        write_line(&mut line, self.json, all);
        line.push('\n');
        out.write_str(&line)
    }
}

fn write_line<'a>(line: &mut String, json: bool, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    if json {
        line.push('{');
    }
    for (i, (key, value)) in fields.enumerate() {
        if i > 0 {
            line.push(if json { ',' } else { ' ' });
        }
        if json {
            let _ = write!(line, "\"{key}\":");
            quote(line, value);
        } else {
            line.push_str(key);
            line.push('=');
            if value.is_empty()
                || value
                    .bytes()
                    .any(|b| b <= b' ' || b == b'"' || b == b'=' || b > 126)
            {
                quote(line, value);
            } else {
                line.push_str(value);
            }
        }
    }
    if json {
        line.push('}');
    }
}

/// Appends `value` as a JSON string; every control character is escaped, C1
/// ones too, because terminals obey them.
fn quote(line: &mut String, value: &str) {
    line.push('"');
    for c in value.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            c if c.is_control() => {
                let _ = write!(line, "\\u{:04x}", c as u32);
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Fields {
    fn put(&mut self, field: &Field, mut value: String) {
        if value.len() > FIELD_BYTES_MAX {
            let cut = value.floor_char_boundary(FIELD_BYTES_MAX);
            value.truncate(cut);
            value.push_str("...");
        }
        match field.name() {
            "message" => self.message = value,
            name => self.rest.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// Formats a time as RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// Days since 1970-01-01 to a Gregorian date: Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (
        yoe + era * 400 + u64::from(month <= 2),
        month,
        doy - (153 * mp + 2) / 5 + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn json_escapes_what_a_peer_may_send() {
        let mut line = String::new();
        write_line(
            &mut line,
            true,
            [("msg", "a\"b\nc\u{1b}[31m\u{9b}")].into_iter(),
        );
        assert_eq!(line, r#"{"msg":"a\"b\nc\u001b[31m\u009b"}"#);
    }

    #[test]
    fn logfmt_quotes_only_where_needed() {
        let mut line = String::new();
        write_line(
            &mut line,
            false,
            [("a", "x"), ("b", "y z"), ("c", "")].into_iter(),
        );
        assert_eq!(line, r#"a=x b="y z" c="""#);
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        let at = UNIX_EPOCH + Duration::from_millis(1_709_210_096_007);
        assert_eq!(rfc3339(at), "2024-02-29T12:34:56.007Z");
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_bad_level_is_named() {
        let error = parse("loud=9=x").unwrap_err().to_string();
        assert!(error.contains("loud=9=x"), "{error}");
    }
}

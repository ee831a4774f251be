//! `culvert audit`: who did what.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use url::form_urlencoded::Serializer;

use crate::api::Api;
use crate::args::{Audit, Format, Global, seconds};
use crate::error::{CliError, Result};
use crate::output;

const PATH: &str = "/api/v1/audit";
const HEADINGS: [&str; 8] = [
    "TIME", "ACTOR", "VERB", "OUTCOME", "CLUSTER", "OBJECT", "STATUS", "REASON",
];

pub async fn run(global: &Global, api: &Api, args: &Audit) -> Result<()> {
    let query = query(args, Timestamp::now())?;
    let page = api
        .get(&format!("{PATH}?limit={}&{query}", args.limit))
        .await?;
    let mut items = page["items"].as_array().cloned().unwrap_or_default();
    if !args.follow {
        if global.output == Format::Json {
            output::json(&page);
        } else {
            output::rows(&HEADINGS, items.iter().map(|row| cells(row).to_vec()));
        }
        return Ok(());
    }
    // As a log: the newest last, then on.
    items.reverse();
    let print = |row: &Value| match global.output {
        Format::Json => output::line(&row.to_string()),
        Format::Table => output::line(&cells(row).join("  ")),
    };
    items.iter().for_each(print);
    let last = items.last().and_then(|row| row["id"].as_i64());
    api.follow(&format!("{PATH}/stream?{query}"), last, print)
        .await
}

fn query(args: &Audit, now: Timestamp) -> Result<String> {
    let since = args.since.as_deref().map(|text| since(text, now));
    let since = since.transpose()?;
    let mut query = Serializer::new(String::new());
    for (name, value) in [
        ("actor", &args.actor),
        ("cluster", &args.cluster),
        ("verb", &args.verb),
        ("outcome", &args.outcome),
        ("request_id", &args.request_id),
        ("from", &since),
    ] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    Ok(query.finish())
}

/// A time, or how long ago it was.
fn since(text: &str, now: Timestamp) -> Result<String> {
    let wrong = |why: &dyn std::fmt::Display| {
        let fix = "give 90s, 15m, 24h or 7d, or a time like 2026-01-31T08:00:00Z";
        CliError::usage("--since names no time", format!("{text:?}: {why}"), fix)
    };
    if text.contains('T') {
        let time: Timestamp = text.parse().map_err(|why| wrong(&why))?;
        return Ok(time.to_string());
    }
    let ago = seconds(text).map_err(|why| wrong(&why))?;
    let ago = SignedDuration::from_secs(i64::try_from(ago).map_err(|why| wrong(&why))?);
    let time = now.checked_sub(ago).map_err(|why| wrong(&why))?;
    Ok(time.to_string())
}

fn cells(row: &Value) -> [String; 8] {
    let text = |value: &Value| match value {
        Value::String(text) if !text.is_empty() => text.escape_debug().to_string(),
        Value::Number(number) => number.to_string(),
        _ => "-".to_owned(),
    };
    let resource = &row["resource"];
    let parts = ["resource", "namespace", "name"].map(|part| resource[part].as_str());
    let named = parts.iter().flatten().filter(|part| !part.is_empty());
    let object = named.copied().collect::<Vec<_>>().join(" ");
    [
        text(&row["time"]),
        text(&row["actor"]["sub"]),
        text(&row["verb"]),
        text(&row["outcome"]),
        text(&row["cluster"]),
        text(&Value::String(object)),
        text(&row["status"]),
        text(&row["reason"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn since_is_a_time_or_how_long_ago_it_was() {
        let now: Timestamp = "2026-01-31T08:00:00Z".parse().expect("a time");
        let seen = |text| since(text, now).map_err(|why| why.to_string());
        assert_eq!(seen("15m").as_deref(), Ok("2026-01-31T07:45:00Z"));
        assert_eq!(
            seen("2026-01-01T00:00:00Z").as_deref(),
            Ok("2026-01-01T00:00:00Z")
        );
        for wrong in [
            "",
            "yesterday",
            "99999999999999999d",
            "2026-13-01T00:00:00Z",
        ] {
            assert!(seen(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_row_is_one_line_that_no_name_can_break() {
        let row = json!({"time": "t", "actor": {"sub": "a\nb"}, "verb": "apply", "status": 201,
            "outcome": "success", "cluster": "", "resource": {"resource": "pods", "name": "p\u{1b}"}});
        let cells = cells(&row);
        assert_eq!(cells[1], "a\\nb");
        assert_eq!(cells[4], "-");
        assert_eq!(cells[5], "pods p\\u{1b}");
        assert_eq!(cells[6], "201");
    }
}

//! Results on standard output: a table for people, JSON for programs.

use std::io::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use crate::args::Format;

/// A column: its heading and the JSON field it shows.
pub type Column = (&'static str, &'static str);

/// Prints a list, or one object as a list of one.
pub fn show(format: Format, value: &Value, columns: &[Column]) {
    if format == Format::Json {
        return json(value);
    }
    let items = match value.get("items").unwrap_or(value) {
        Value::Array(items) => items.clone(),
        one => vec![one.clone()],
    };
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.iter().map(|(heading, _)| heading));
    for item in &items {
        table.add_row(columns.iter().map(|(_, field)| cell(&item[*field])));
    }
    line(&table.trim_fmt());
}

/// Prints rows of cells under their headings.
pub fn rows(headings: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    line(&table.trim_fmt());
}

/// Prints JSON, indented.
pub fn json(value: &Value) {
    line(&format!("{value:#}"));
}

/// Prints a line; a reader that has had enough is no error.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.escape_debug().to_string(),
        Value::Object(map) => {
            let pairs = map
                .iter()
                .map(|(key, value)| format!("{key}={}", cell(value)));
            pairs.collect::<Vec<_>>().join(",")
        }
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells_cannot_carry_terminal_sequences() {
        assert_eq!(cell(&json!("a\u{1b}[2J")), "a\\u{1b}[2J");
        assert_eq!(cell(&json!({"a": "b", "c": [1, 2]})), "a=b,c=1,2");
        assert_eq!(cell(&Value::Null), "-");
    }
}

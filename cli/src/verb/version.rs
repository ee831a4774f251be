//! `culvert version`: what this program is and speaks.

use serde_json::json;

use crate::args::{Format, Global};
use crate::output::{self, Column};

const COLUMNS: &[Column] = &[("CULVERT", "version"), ("PROTOCOLS", "protocols")];

pub fn run(global: &Global) {
    let said = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "protocols": ["culvert/1", "websocket"],
    });
    match global.output {
        Format::Json => output::json(&said),
        Format::Table => output::show(Format::Table, &said, COLUMNS),
    }
}

//! The pages that repeat a list of the code repeat all of it.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;

use culvert_proto::close::CloseReason;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
const BEGIN: &str = "<!-- close reasons: begin -->\n";
const END: &str = "<!-- close reasons: end -->";

/// `CULVERT_BLESS=1` writes the table anew.
#[test]
fn every_close_reason_is_documented() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    if std::env::var_os("CULVERT_BLESS").is_some() {
        std::fs::write(PAGE, [before, BEGIN, &expected(), END, after].concat()).unwrap();
    } else {
        assert_eq!(table, expected(), "run this test with CULVERT_BLESS=1");
    }
}

fn expected() -> String {
    let mut table = String::from("| code | word | side | status | retry | seen | to do |\n");
    table.push_str("|---|---|---|---|---|---|---|\n");
    for reason in CloseReason::ALL {
        let status = reason
            .http_status()
            .map_or("-".into(), |status| status.to_string());
        writeln!(
            table,
            "| {} | `{}` | {} | {status} | {} | {} | {} |",
            reason.code(),
            reason.as_str(),
            reason.side(),
            reason.retry().as_str(),
            reason.meaning(),
            reason.fix(),
        )
        .unwrap();
    }
    table
}

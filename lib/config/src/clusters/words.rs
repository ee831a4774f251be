//! Texts for people.

use culvert_proto::limits::LABEL_BYTES_MAX;

/// What keeps `text` from being a name or a label: it has more than 255 bytes,
/// or a control character.
#[must_use]
pub fn text_problem(text: &str) -> Option<String> {
    let is_text = text.len() <= LABEL_BYTES_MAX && !text.chars().any(char::is_control);
    let rule = || format!("has at most {LABEL_BYTES_MAX} bytes and no control character");
    (!is_text).then(rule)
}

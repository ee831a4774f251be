//! Bodies of the answers we give ourselves: a Kubernetes `Status` or problem+json (C-26).

use alloc::string::String;
use core::fmt::Write;

use crate::close::CloseReason;

/// Shape of an error body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// `v1 Status`, towards kube targets.
    KubernetesStatus,
    /// RFC 9457, everywhere else.
    Problem,
}

impl BodyKind {
    /// The `Content-Type` of the body.
    pub fn content_type(self) -> &'static str {
        match self {
            BodyKind::KubernetesStatus => "application/json",
            BodyKind::Problem => "application/problem+json",
        }
    }
}

/// The status of an answer we give for `reason`: its own, or 502 where none can tell.
pub fn error_status(reason: CloseReason) -> u16 {
    reason.http_status().unwrap_or(502)
}

/// The `Retry-After` to send with `reason`, in seconds; `None` where retrying is no advice.
pub fn retry_after_seconds(reason: CloseReason) -> Option<u32> {
    let refused_for_now = matches!(reason.http_status(), Some(429 | 503));
    refused_for_now.then_some(1)
}

/// A JSON body that tells what was seen, which side caused it and what to do. `detail` is text of
/// this one case; it is escaped, and the caller keeps secrets out of it.
pub fn error_body(kind: BodyKind, reason: CloseReason, detail: &str) -> String {
    let mut out = String::with_capacity(320 + detail.len());
    match kind {
        BodyKind::KubernetesStatus => kubernetes_status(&mut out, reason, detail),
        BodyKind::Problem => problem(&mut out, reason, detail),
    }
    out
}

fn kubernetes_status(out: &mut String, reason: CloseReason, detail: &str) {
    let status = error_status(reason);
    out.push_str(
        r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"#,
    );
    let mut message = String::from(reason.meaning());
    if !detail.is_empty() {
        message.push(' ');
        message.push_str(detail);
    }
    push_json(out, &message);
    out.push_str(r#","reason":"#);
    push_json(out, status_reason(status));
    out.push_str(r#","details":{"causes":[{"reason":"#);
    push_json(out, reason.as_str());
    out.push_str(r#","message":"#);
    push_json(out, reason.fix());
    out.push_str(r#","field":"#);
    push_json(out, reason.side().as_str());
    out.push_str("}]");
    if let Some(seconds) = retry_after_seconds(reason) {
        push_number(out, ",\"retryAfterSeconds\":", seconds);
    }
    out.push('}');
    push_number(out, ",\"code\":", u32::from(status));
    out.push('}');
}

fn problem(out: &mut String, reason: CloseReason, detail: &str) {
    out.push_str(r#"{"type":"urn:culvert:error:"#);
    out.push_str(reason.as_str());
    out.push_str(r#"","title":"#);
    push_json(out, reason.meaning());
    push_number(out, ",\"status\":", u32::from(error_status(reason)));
    if !detail.is_empty() {
        out.push_str(r#","detail":"#);
        push_json(out, detail);
    }
    out.push_str(r#","code":"#);
    push_json(out, reason.as_str());
    out.push_str(r#","side":"#);
    push_json(out, reason.side().as_str());
    out.push_str(r#","fix":"#);
    push_json(out, reason.fix());
    out.push('}');
}

/// Kubernetes' own word for a status, which its clients decide by.
fn status_reason(status: u16) -> &'static str {
    match status {
        400 | 408 | 431 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "Conflict",
        413 => "RequestEntityTooLarge",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    }
}

fn push_number(out: &mut String, key: &str, value: u32) {
    out.push_str(key);
    // Writing to a String cannot fail.
    let _ = write!(out, "{value}");
}

fn push_json(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Control characters, and what a browser or terminal could take for markup.
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

//! What the parser lets through and a head must still be refused for (security rule 3.6).

use super::{ConnectionTokens, HeadError};

/// What has to be known of a request head before it is judged.
#[derive(Clone, Debug, Default)]
pub struct HeadFacts<'a> {
    /// The method.
    pub method: &'a str,
    /// The request target as received.
    pub target: &'a str,
    /// Authority of an absolute target, or HTTP/2's `:authority`.
    pub authority: Option<&'a str>,
    /// Every `Host` line.
    pub hosts: &'a [&'a [u8]],
    /// Every `Transfer-Encoding` line.
    pub transfer_encodings: &'a [&'a [u8]],
    /// Every `Content-Length` line.
    pub content_lengths: &'a [&'a [u8]],
    /// Every `Upgrade` line.
    pub upgrades: &'a [&'a [u8]],
    /// What `Connection` says.
    pub connection: Option<&'a ConnectionTokens>,
    /// The parser announces a body that is not empty.
    pub has_body: bool,
    /// The route allows a body on GET and HEAD.
    pub body_on_get: bool,
}

/// Refuses heads that two parsers could read in two ways.
pub fn check_request(facts: &HeadFacts<'_>) -> Result<(), HeadError> {
    if facts.method == "CONNECT" {
        return Err(HeadError::Method);
    }
    if facts
        .target
        .bytes()
        .any(|byte| !(0x21..=0x7e).contains(&byte))
    {
        return Err(HeadError::Target);
    }
    check_host(facts)?;
    check_framing(facts)?;
    let bodyless = matches!(facts.method, "GET" | "HEAD" | "TRACE") && !facts.body_on_get;
    if bodyless && facts.has_body {
        return Err(HeadError::Body);
    }
    check_upgrade(facts)
}

fn check_host(facts: &HeadFacts<'_>) -> Result<(), HeadError> {
    match (facts.hosts, facts.authority) {
        ([], Some(authority)) if !authority.is_empty() => Ok(()),
        ([host], None) if !host.is_empty() => Ok(()),
        ([host], Some(authority)) if host.eq_ignore_ascii_case(authority.as_bytes()) => Ok(()),
        _ => Err(HeadError::Host),
    }
}

fn check_framing(facts: &HeadFacts<'_>) -> Result<(), HeadError> {
    match facts.transfer_encodings {
        [] => {}
        [only] if only.trim_ascii().eq_ignore_ascii_case(b"chunked") => {}
        _ => return Err(HeadError::TransferEncoding),
    }
    match facts.content_lengths {
        [] => Ok(()),
        [only] if !only.is_empty() && only.iter().all(u8::is_ascii_digit) => Ok(()),
        _ => Err(HeadError::ContentLength),
    }
}

/// An upgrade is `Connection: upgrade` with one protocol; without the option the field is ignored.
fn check_upgrade(facts: &HeadFacts<'_>) -> Result<(), HeadError> {
    if !facts
        .connection
        .is_some_and(|connection| connection.upgrade)
    {
        return Ok(());
    }
    match facts.upgrades {
        [only] if is_one_protocol(only) && !facts.has_body => Ok(()),
        // The h2c offer of common clients is dropped, not refused.
        [only] if only.trim_ascii().eq_ignore_ascii_case(b"h2c") => Ok(()),
        _ => Err(HeadError::Upgrade),
    }
}

fn is_one_protocol(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    !value.is_empty()
        && value
            .iter()
            .all(|byte| byte.is_ascii_graphic() && *byte != b',')
}

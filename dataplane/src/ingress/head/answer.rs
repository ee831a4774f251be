//! Which fields of an answer travel to the client.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use culvert_proto::head::{
    ConnectionTokens, ResponseRules, Verdict, response_field, response_trailer,
};

const RESPONSE: ResponseRules = ResponseRules {
    hub_origin: false,
    from_agent: true,
};
/// What pages of a cluster may do under the hub's own origin (T19): never act as it.
const SANDBOX: HeaderValue =
    HeaderValue::from_static("sandbox allow-scripts allow-forms allow-popups allow-downloads");

/// Keeps what may travel to the client; `culvert` when the answer comes from an
/// agent of ours, whose own refusals carry `Culvert-Error`; `hub_origin` when a
/// browser takes it for ours.
pub fn keep_response_fields(headers: &mut HeaderMap, culvert: bool, hub_origin: bool) {
    let rules = ResponseRules {
        from_agent: culvert,
        hub_origin,
    };
    let lines = headers
        .get_all(header::CONNECTION)
        .iter()
        .map(HeaderValue::as_bytes);
    let connection = ConnectionTokens::parse(lines).unwrap_or_default();
    let dropped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| response_field(name.as_str(), &rules, &connection) == Verdict::Drop)
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
}

/// Keeps pages of a cluster from acting as the hub's own. The last word is ours: policies add up.
pub fn guard_pages(headers: &mut HeaderMap) {
    headers.append(header::CONTENT_SECURITY_POLICY, SANDBOX);
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
}

/// The trailers that the service announces and that may travel: hyper sends none
/// that is not announced.
pub fn trailer_names(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines = headers.get_all(header::TRAILER).iter();
    let names = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    let kept: Vec<&str> = names
        .map(str::trim)
        .filter(|name| !name.is_empty() && response_trailer_passes(name))
        .collect();
    let text = kept.join(", ");
    (!kept.is_empty())
        .then(|| HeaderValue::try_from(text).ok())
        .flatten()
}

/// Whether a response trailer may travel.
pub fn response_trailer_passes(name: &str) -> bool {
    response_trailer(name, &RESPONSE) == Verdict::Pass
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_keep_what_may_travel() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "a/b"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("x-forwarded-user", "root"),
            ("culvert-error", "dial_refused"),
            ("set-cookie", "a=b"),
            ("x-accel-redirect", "/internal"),
        ] {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        let mut foreign = headers.clone();
        let mut page = headers.clone();
        keep_response_fields(&mut headers, true, false);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let kept = [
            "content-type",
            "culvert-error",
            "set-cookie",
            "x-accel-redirect",
        ];
        assert_eq!(names, kept);
        keep_response_fields(&mut foreign, false, false);
        keep_response_fields(&mut page, true, true);
        let mut names: Vec<_> = page.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let kept = ["content-type", "culvert-error"];
        assert_eq!(names, kept, "under our own origin");
        assert!(!foreign.contains_key("culvert-error"));
    }
}

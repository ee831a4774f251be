//! Pages for people, until the console ships: `/` with counts, where to sign in, and errors. No
//! names of clusters: the pages are open.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse};

use super::Shared;
use super::license::banner;
use super::problem::ProblemBody;
use crate::fleet::Presence;

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// A page with counts.
#[utoipa::path(get, operation_id = "show_page", path = "/", tag = "pages", security(()),
    responses((status = OK, content_type = "text/html", body = String), (status = "default", body = ProblemBody)))]
pub(super) async fn show(State(context): State<Shared>) -> impl IntoResponse {
    let hub = &context.hub;
    let (agents, dataplanes) = hub.fleet(|fleet| {
        let agents = fleet
            .agents()
            .filter(|agent| agent.presence == Presence::Connected)
            .count();
        (
            agents,
            fleet
                .dataplanes()
                .filter(|plane| plane.link.is_some())
                .count(),
        )
    });
    let banner = banner(&context.licensing.view(hub.now_ms()));
    let banner = banner.map_or_else(String::new, |banner| {
        let (level, text) = (banner.level, escaped(&banner.text));
        format!("<p class=\"{level}\" role=\"status\">{text}</p>")
    });
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Culvert</title>\
         <style>body{{font:16px sans-serif;margin:3em}}td{{padding:.2em 1em .2em 0}}\
         .yellow{{background:#fe9;padding:.5em}}.red{{background:#c22;color:#fff;padding:.5em}}</style>\
         {banner}<h1>Culvert {}</h1><table>\
         <tr><td>Clusters<td>{}<tr><td>Agents connected<td>{agents}\
         <tr><td>Data planes connected<td>{dataplanes}<tr><td>Generation<td>{}</table>\
         <p>API: /api/v1/openapi.json</html>\n",
        env!("CARGO_PKG_VERSION"),
        hub.clusters().len(),
        hub.generation().0,
    );
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page))
}

/// Whether a browser asks for a page.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// An error, for people.
pub(super) fn problem(body: &ProblemBody) -> impl IntoResponse + use<> {
    let [title, seen, fix, side] =
        [&body.title, &body.seen, &body.fix, &body.side].map(|text| escaped(text));
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Culvert: {title}</title>\
         <style>body{{font:16px sans-serif;margin:3em}}</style><h1>{title}</h1>\
         <p>Seen: {seen}<p>What to do: {fix}\
         <p><small>Side: {side}. Code: {}. Request: {}.</small>\
         <p><a href=\"/\">Back</a></html>\n",
        escaped(&body.code),
        escaped(&body.request_id),
    );
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page))
}

/// Where somebody signs in: titles and links.
pub(super) fn choice(links: &[(&str, String)]) -> impl IntoResponse + use<> {
    let links: String = links
        .iter()
        .map(|(title, url)| {
            let (title, url) = (escaped(title), escaped(url));
            format!("<li><a href=\"{url}\">{title}</a>")
        })
        .collect();
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Culvert: sign in</title>\
         <style>body{{font:16px sans-serif;margin:3em}}li{{padding:.3em}}</style>\
         <h1>Sign in</h1><p>Where is your account?<ul>{links}</ul></html>\n",
    );
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page))
}

/// Text that stays text, between tags and in quotes.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

//! The OpenAPI document: every route that this process serves, with an example of every body and
//! answer.

use std::sync::LazyLock;

use axum::Json as Answer;
use serde_json::{Map, Value};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, Content, RefOr, Schema, Server};
use utoipa::{Modify, OpenApi};

use super::problem::ProblemBody;
use culvert_identity::SESSION_COOKIE;

/// Examples by operation: `body` and `answer`; `problem` is that of every error.
const EXAMPLES: &str = include_str!("examples.json");

/// Schemas that are a part of others: one that takes no further fields could not be.
const PARTS: [&str; 2] = ["ClusterPatch", "Spec"];
const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Culvert admin API",
        description = "Clusters, tokens and the fleet. Errors are application/problem+json."
    ),
    servers((url = "/api/v1", description = "The own root."), (url = "/api", description = "The same routes, for the systems that Culvert replaces.")),
    security(("bearer" = []), ("session" = [])),
    modifiers(&Schemes)
)]
struct Document;

/// How callers show who they are.
struct Schemes;

impl Modify for Schemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = |what: &str| {
            let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
            SecurityScheme::Http(http.description(Some(what)).build())
        };
        let session = ApiKeyValue::with_description(
            SESSION_COOKIE,
            "A session. What changes something wants Origin of one of the hub's own pages too.",
        );
        let schemes = &mut document
            .components
            .get_or_insert_with(Components::default)
            .security_schemes;
        let own = "An API token, a personal token, or the admin token.";
        for (name, scheme) in [
            ("bearer", bearer(own)),
            ("session", SecurityScheme::ApiKey(ApiKey::Cookie(session))),
            ("cluster_token", bearer("A token of a cluster.")),
        ] {
            schemes.insert(name.to_owned(), scheme.into());
        }
    }
}

/// The OpenAPI document of the API.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    let rooted = super::admin().merge(super::agents_ask());
    document.merge(rooted.split_for_parts().1);
    let mut open = super::open().merge(super::forms()).split_for_parts().1;
    for (path, mut item) in std::mem::take(&mut open.paths.paths) {
        let (root, path) = match path.strip_prefix("/api/") {
            Some(path) => ("/api", format!("/{path}")),
            None => ("/", path),
        };
        item.servers = Some(vec![Server::new(root)]);
        document.paths.paths.insert(path, item);
    }
    document.merge(open);
    let paths = std::mem::take(&mut document.paths.paths);
    // One that takes several segments is written like any other there.
    let plain = |(path, item): (String, PathItem)| (path.replace("{*", "{"), item);
    document.paths.paths = paths.into_iter().map(plain).collect();
    let components = document.components.get_or_insert_default();
    for name in PARTS {
        if let Some(RefOr::T(Schema::Object(part))) = components.schemas.get_mut(name) {
            part.additional_properties = None;
        }
    }
    let examples = serde_json::from_str(EXAMPLES).unwrap_or_default();
    for item in document.paths.paths.values_mut() {
        let each = [
            &mut item.get,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in each.into_iter().flatten() {
            exemplify(operation, &examples);
        }
    }
    document
}

fn exemplify(operation: &mut Operation, examples: &Map<String, Value>) {
    let own = operation.operation_id.as_ref();
    let own = own.and_then(|id| examples.get(id)).unwrap_or_default();
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        give(body.content.values_mut(), own.get("body"));
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else {
            continue;
        };
        let example = match &**status {
            "default" => {
                let problem = response.content.swap_remove(JSON);
                response
                    .content
                    .extend(problem.map(|it| (PROBLEM.to_owned(), it)));
                examples.get("problem")
            }
            _ => own.get("answer"),
        };
        give(response.content.values_mut(), example);
    }
}

fn give<'a>(contents: impl Iterator<Item = &'a mut RefOr<Content>>, example: Option<&Value>) {
    for content in contents {
        if let RefOr::T(content) = content {
            content.example = example.cloned();
        }
    }
}

/// This document.
#[utoipa::path(get, operation_id = "show_document", path = "/openapi.json", tag = "document",
    responses((status = OK, body = Object), (status = "default", body = ProblemBody)))]
pub(super) async fn show() -> Answer<&'static utoipa::openapi::OpenApi> {
    static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(document);
    Answer(&DOCUMENT)
}

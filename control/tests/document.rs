//! The OpenAPI document against the real router and the real server, both ways.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "document/driven.rs"]
mod driven;
#[path = "room/site.rs"]
mod room;

use std::collections::BTreeSet;

use culvert_control::api;
use culvert_control::identity::{Admin, SignIn, Tiers, hash};
use culvert_identity::Tier;
use room::{KEY, LIFE, ORIGIN, Said, Site};
use serde_json::{Map, Value, json};

const ROOT: api::Caller = api::Caller::Socket { uid: 0 };
const METHODS: [&str; 4] = ["get", "post", "patch", "delete"];

fn document() -> Value {
    serde_json::to_value(api::document()).unwrap()
}

/// One operation of the document.
struct Operation<'a> {
    id: &'a str,
    method: &'a str,
    /// With the names of its parameters.
    path: &'a str,
    /// What stands in front of the path.
    roots: Vec<&'a str>,
    says: &'a Value,
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let own = &document["servers"];
    let paths = document["paths"].as_object().unwrap();
    let mut all = Vec::new();
    for (path, item) in paths {
        let servers = item.get("servers").unwrap_or(own).as_array().unwrap();
        let roots: Vec<_> = servers
            .iter()
            .map(|it| it["url"].as_str().unwrap().trim_end_matches('/'))
            .collect();
        for (method, says) in item.as_object().unwrap() {
            if method == "servers" {
                continue;
            }
            assert!(METHODS.contains(&&**method), "{method} {path}");
            all.push(Operation {
                id: says["operationId"].as_str().unwrap(),
                method,
                path,
                roots: roots.clone(),
                says,
            });
        }
    }
    all
}

fn sign_in() -> SignIn {
    let hash = hash("correct horse battery").unwrap();
    let admin = Admin::new("root@example.com", &hash).unwrap();
    let origins = vec![ORIGIN.to_owned()];
    let mut sign_in = SignIn::new(KEY, None, LIFE, Some(admin), origins).unwrap();
    let mut tiers = Tiers::default();
    tiers.give("user:ana@example.com".to_owned(), Tier::Read);
    sign_in.tiers = tiers;
    sign_in
}

/// The paths of a router, as it prints itself: the one way to see them all.
fn routed(router: &axum::Router) -> BTreeSet<String> {
    let printed = format!("{router:?}");
    let texts = printed.split('"').skip(1).step_by(2);
    texts
        .filter(|text| text.starts_with('/') && !text.contains("__private"))
        .map(|text| text.replace("{*", "{"))
        .collect()
}

fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| match part.starts_with('{') {
        true => "x",
        false => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn the_document_and_the_router_name_the_same_routes() {
    let site = Site::open(sign_in()).await;
    let (document, mut written) = (document(), BTreeSet::new());
    for operation in operations(&document) {
        for root in operation.roots {
            let line = format!(
                "{} {root}{}",
                operation.method.to_uppercase(),
                operation.path
            );
            assert!(written.insert(line.clone()), "{line} stands there twice");
        }
    }
    let mut served = BTreeSet::new();
    for path in routed(&api::router(site.context.clone())) {
        // No route has this method: the answer says which it has.
        let line = format!("CULVERT {}", filled(&path));
        let said = site.ask_as(ROOT, &line, &[], Value::Null).await;
        assert_eq!((said.status, said.code()), (405, "no_method"), "{path}");
        let allowed = said.headers["allow"].to_str().unwrap();
        let methods = allowed.split(',').map(str::trim);
        served.extend(
            methods
                .filter(|method| *method != "HEAD")
                .map(|method| format!("{method} {path}")),
        );
    }
    assert!(served.len() > 70, "the router does not print its paths");
    assert_eq!(
        served.difference(&written).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "served, and not in the document"
    );
    assert_eq!(
        written.difference(&served).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "in the document, and not served"
    );
}

/// Checks a value against a schema of the document: what the schema does not name is wrong too.
struct Checker {
    components: Value,
}

impl Checker {
    fn new(document: &Value) -> Self {
        let mut components = document["components"].clone();
        for schema in components["schemas"].as_object_mut().unwrap().values_mut() {
            // As a part of another it does not know all fields.
            strict(schema, true);
        }
        Self { components }
    }

    fn validator(&self, schema: &Value) -> jsonschema::Validator {
        let mut schema = schema.clone();
        strict(&mut schema, false);
        let mut whole = Map::new();
        whole.insert("components".to_owned(), self.components.clone());
        whole.insert("allOf".to_owned(), json!([schema]));
        let options = jsonschema::options().with_draft(jsonschema::Draft::Draft202012);
        options.build(&Value::Object(whole)).unwrap()
    }

    /// What is wrong with `value`.
    fn wrong(&self, schema: &Value, value: &Value) -> Vec<String> {
        let validator = self.validator(schema);
        let errors = validator.iter_errors(value);
        errors
            .map(|why| format!("{}: {why}", why.instance_path()))
            .collect()
    }
}

/// Closes every object against fields that no schema names.
fn strict(schema: &mut Value, is_part: bool) {
    match schema {
        Value::Object(object) => {
            for (key, inner) in object.iter_mut() {
                strict(inner, key == "allOf");
            }
            let is_shape = ["$ref", "properties", "allOf"]
                .iter()
                .any(|key| object.contains_key(*key));
            if is_shape && !is_part {
                object.insert("unevaluatedProperties".to_owned(), json!(false));
            }
        }
        Value::Array(all) => {
            for inner in all {
                strict(inner, is_part);
            }
        }
        _ => {}
    }
}

/// Every body of an operation: where it stands, and its content by type.
fn contents<'a>(operation: &Operation<'a>) -> Vec<(String, &'a Map<String, Value>)> {
    let content = |it: &'a Value| it["content"].as_object();
    let body = operation.says.get("requestBody").and_then(content);
    let mut all: Vec<_> = body.map(|it| ("body".to_owned(), it)).into_iter().collect();
    let responses = operation.says["responses"].as_object().unwrap();
    all.extend(
        responses
            .iter()
            .filter_map(|(status, it)| content(it).map(|content| (status.clone(), content))),
    );
    all
}

#[test]
fn every_body_and_answer_has_a_schema_and_an_example_that_holds() {
    let document = document();
    let (checker, mut held, mut ids) = (Checker::new(&document), 0, BTreeSet::new());
    for operation in operations(&document) {
        let id = operation.id;
        assert!(ids.insert(id), "{id} stands there twice");
        let responses = operation.says["responses"].as_object().unwrap();
        assert!(responses.contains_key("default"), "{id} knows no error");
        assert!(
            responses.keys().any(|it| it.starts_with(['2', '3'])),
            "{id} knows no success"
        );
        for (place, content) in contents(&operation) {
            for (kind, content) in content {
                let named = format!("{id} {place} {kind}");
                let schema = content.get("schema").unwrap_or_else(|| panic!("{named}"));
                let example = content
                    .get("example")
                    .unwrap_or_else(|| panic!("{named}: no example"));
                let wrong = checker.wrong(schema, example);
                assert!(wrong.is_empty(), "{named}: {wrong:#?}\n{example}");
                held += 1;
                let Some(object) = example
                    .as_object()
                    .filter(|_| content["schema"]["type"] != "object")
                else {
                    continue;
                };
                // The check can fail: a field too much does not hold.
                let mut more = object.clone();
                more.insert("bogus".to_owned(), json!(1));
                let wrong = checker.wrong(schema, &Value::Object(more));
                assert!(!wrong.is_empty(), "{named} takes a field that nobody knows");
            }
        }
        if operation.method == "post" || operation.method == "patch" {
            let has_body = operation.says.get("requestBody").is_some();
            let none = [
                "revoke_cluster",
                "logout",
                "logout_everywhere",
                "deny_connect_request",
                "stage_agent_ca",
                "promote_agent_ca",
            ];
            assert!(has_body || none.contains(&id), "{id} has no body");
        }
    }
    assert!(held > 80, "{held} examples");
    let examples: Map<String, Value> =
        serde_json::from_str(include_str!("../src/api/examples.json")).unwrap();
    for id in examples.keys().filter(|id| *id != "problem") {
        assert!(ids.contains(id.as_str()), "an example of no route: {id}");
    }
}

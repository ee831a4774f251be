//! Which requests are audited (C-65): by method and path, no body is read.
//!
//! A Kubernetes API server decodes the whole path before it splits it, so this
//! does too: `%73ecrets` is a Secret here as it is there.

use crate::event::{Resource, Verb};

/// An answer with a longer body is a [`Verb::BulkDownload`].
pub const BULK_BYTES: u64 = 64 << 20;
/// Segments of a path that are looked at; a longer one names no object of Kubernetes.
const SEGMENTS_MAX: usize = 64;
/// Subresources that lead into a container.
const INTO: [&str; 3] = ["exec", "attach", "portforward"];
/// The same of a kubelet, behind `nodes/{name}/proxy/`.
const INTO_NODE: [&str; 5] = ["exec", "attach", "portForward", "run", "cri"];

/// What a request does, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// The verb; `None` = not audited, unless its answer is large.
    pub verb: Option<Verb>,
    /// What it names.
    pub resource: Resource,
}

/// What `method` on `target` (path and query below the cluster) does; `is_kube` when
/// a Kubernetes API server is asked.
#[must_use]
pub fn classify(is_kube: bool, method: &str, target: &str) -> Action {
    let path = decoded(path(target));
    let segments = segments(&path);
    let resource = match Named::of(&segments).filter(|_| is_kube) {
        Some(named) => named.resource(),
        None => Resource {
            name: segments.join("/"),
            ..Resource::default()
        },
    };
    Action {
        verb: verb(is_kube, method, target),
        resource,
    }
}

/// The verb alone: what every request is asked, most of which leave no record.
#[must_use]
pub fn verb(is_kube: bool, method: &str, target: &str) -> Option<Verb> {
    if !is_kube {
        return written(method);
    }
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let path = decoded(path(target));
    match Named::of(&segments(&path)) {
        Some(named) => named.verb(method, query),
        None => written(method),
    }
}

fn path(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// What a method does to an object, whatever it is.
fn written(method: &str) -> Option<Verb> {
    match method {
        "POST" | "PUT" | "PATCH" => Some(Verb::Apply),
        "DELETE" => Some(Verb::Delete),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" => None,
        // A method nobody knows may do anything.
        _ => Some(Verb::Trigger),
    }
}

/// The parts of a path of the Kubernetes API.
struct Named<'a> {
    group: &'a str,
    version: &'a str,
    namespace: &'a str,
    resource: &'a str,
    name: &'a str,
    /// Empty, or the subresource and what follows it.
    below: &'a [&'a str],
}

impl<'a> Named<'a> {
    fn of(segments: &'a [&'a str]) -> Option<Self> {
        let (group, version, rest) = match segments {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        // The way of watching before there was a query for it.
        let rest = match rest {
            ["watch", rest @ ..] => rest,
            rest => rest,
        };
        let (namespace, rest) = match rest {
            // `finalize` and `status` are the namespace's own, not collections in it.
            ["namespaces", _, "finalize" | "status", ..] => ("", rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (resource, rest) = rest.split_first()?;
        let (name, below) = rest
            .split_first()
            .map_or(("", rest), |(name, below)| (*name, below));
        Some(Self {
            group,
            version,
            namespace,
            resource,
            name,
            below,
        })
    }

    fn verb(&self, method: &str, query: &str) -> Option<Verb> {
        let subresource = self.below.first().copied().unwrap_or("");
        if self.leads_in(subresource) && method != "OPTIONS" {
            return Some(Verb::ExecOpen);
        }
        match (method, subresource) {
            ("GET" | "HEAD", "log") if self.resource == "pods" && follows(query) => {
                Some(Verb::LogOpen)
            }
            ("GET", "") if self.is_secret() => Some(Verb::SecretReveal),
            ("POST", sub) if !sub.is_empty() => Some(Verb::Trigger),
            _ => written(method),
        }
    }

    fn leads_in(&self, subresource: &str) -> bool {
        let core = self.group.is_empty();
        match self.resource {
            "pods" => core && INTO.contains(&subresource),
            "nodes" => {
                let way = self.below.get(1);
                core && subresource == "proxy" && way.is_some_and(|way| INTO_NODE.contains(way))
            }
            // A virtual machine's console, and whoever else calls it so.
            _ => INTO.contains(&subresource),
        }
    }

    fn is_secret(&self) -> bool {
        self.group.is_empty() && self.resource == "secrets" && !self.name.is_empty()
    }

    fn resource(&self) -> Resource {
        let resource = match self.below.first() {
            Some(below) => format!("{}/{below}", self.resource),
            None => self.resource.to_owned(),
        };
        Resource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            resource,
            namespace: self.namespace.to_owned(),
            name: self.name.to_owned(),
        }
    }
}

/// As the API server reads it: there, and its first value is not `false`.
fn follows(query: &str) -> bool {
    let mut pairs = query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(&name.replace('+', " ")), value)
    });
    let first = pairs.find(|(name, _)| name == "follow");
    first.is_some_and(|(_, value)| !decoded(value).eq_ignore_ascii_case("false"))
}

/// Parts of a decoded path; `.` and empty ones are dropped, `..` takes one back.
fn segments(path: &str) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(found.pop()),
            segment if found.len() < SEGMENTS_MAX => found.push(segment),
            _ => break,
        }
    }
    found
}

/// Percent-decoded once. What is no UTF-8 then names nothing that exists.
fn decoded(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.first_chunk::<2>().filter(|_| *first == b'%');
        match digits.and_then(byte) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn byte(digits: &[u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? * 16 + low?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kube(method: &str, target: &str) -> (Option<Verb>, String) {
        let Action { verb, resource } = classify(true, method, target);
        let parts = [
            resource.group,
            resource.version,
            resource.resource,
            resource.namespace,
            resource.name,
        ];
        (verb, parts.join("|"))
    }

    #[test]
    fn paths_of_kubernetes() {
        use Verb::{Apply, Delete, ExecOpen, LogOpen, SecretReveal, Trigger};
        for (method, target, verb, resource) in [
            (
                "POST",
                "/api/v1/namespaces/a/pods",
                Some(Apply),
                "|v1|pods|a|",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d?fieldManager=k",
                Some(Apply),
                "apps|v1|deployments|a|d",
            ),
            (
                "PUT",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                Some(Apply),
                "apps|v1|deployments/scale|a|d",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a/pods/p",
                Some(Delete),
                "|v1|pods|a|p",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a/pods",
                Some(Delete),
                "|v1|pods|a|",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a",
                Some(Delete),
                "|v1|namespaces||a",
            ),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                Some(Apply),
                "|v1|namespaces/finalize||a",
            ),
            ("POST", "/api/v1/nodes", Some(Apply), "|v1|nodes||"),
            (
                "POST",
                "/api/v1/namespaces/a/pods/p/eviction",
                Some(Trigger),
                "|v1|pods/eviction|a|p",
            ),
            (
                "POST",
                "/api/v1/namespaces/a/serviceaccounts/s/token",
                Some(Trigger),
                "|v1|serviceaccounts/token|a|s",
            ),
            (
                "POST",
                "/api/v1/namespaces/a/pods/p/exec?command=sh",
                Some(ExecOpen),
                "|v1|pods/exec|a|p",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/exec?command=sh",
                Some(ExecOpen),
                "|v1|pods/exec|a|p",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/attach",
                Some(ExecOpen),
                "|v1|pods/attach|a|p",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/portforward",
                Some(ExecOpen),
                "|v1|pods/portforward|a|p",
            ),
            (
                "GET",
                "/api/v1/nodes/n/proxy/exec/a/p/c",
                Some(ExecOpen),
                "|v1|nodes/proxy||n",
            ),
            (
                "GET",
                "/api/v1/nodes/n/proxy/metrics",
                None,
                "|v1|nodes/proxy||n",
            ),
            (
                "POST",
                "/api/v1/namespaces/a/services/s/proxy/x",
                Some(Trigger),
                "|v1|services/proxy|a|s",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/log",
                None,
                "|v1|pods/log|a|p",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/log?follow=true",
                Some(LogOpen),
                "|v1|pods/log|a|p",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/log?tailLines=1&follow",
                Some(LogOpen),
                "|v1|pods/log|a|p",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/log?follow=False",
                None,
                "|v1|pods/log|a|p",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/log?%66ollow=1",
                Some(LogOpen),
                "|v1|pods/log|a|p",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/secrets/s",
                Some(SecretReveal),
                "|v1|secrets|a|s",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/secrets",
                None,
                "|v1|secrets|a|",
            ),
            (
                "GET",
                "/apis/example.com/v1/namespaces/a/secrets/s",
                None,
                "example.com|v1|secrets|a|s",
            ),
            ("GET", "/api/v1/pods", None, "|v1|pods||"),
            (
                "GET",
                "/api/v1/watch/namespaces/a/secrets/s",
                Some(SecretReveal),
                "|v1|secrets|a|s",
            ),
            (
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                Some(Apply),
                "authorization.k8s.io|v1|selfsubjectaccessreviews||",
            ),
            ("GET", "/version", None, "||||version"),
            ("POST", "/anything", Some(Apply), "||||anything"),
            ("BREW", "/api/v1/pods", Some(Trigger), "|v1|pods||"),
        ] {
            assert_eq!(
                kube(method, target),
                (verb, resource.to_owned()),
                "{method} {target}"
            );
        }
    }

    #[test]
    fn no_spelling_hides_a_secret() {
        for path in [
            "/api/v1/namespaces/a/%73ecrets/s",
            "/api/v1/namespaces/a/secrets%2Fs",
            "//api//v1/namespaces/a/./secrets/s/",
            "/api/v1/pods/../namespaces/a/secrets/s",
            "/%61pi/v1/namespaces/a/secrets/s?x=/pods",
        ] {
            let seen = kube("GET", path);
            assert_eq!(seen.0, Some(Verb::SecretReveal), "{path}");
            assert_eq!(seen.1, "|v1|secrets|a|s", "{path}");
        }
    }

    #[test]
    fn other_services_are_known_by_the_method() {
        for (method, verb) in [
            ("GET", None),
            ("HEAD", None),
            ("POST", Some(Verb::Apply)),
            ("DELETE", Some(Verb::Delete)),
        ] {
            let seen = classify(false, method, "/api/v1/namespaces/a/secrets/s?q");
            assert_eq!(seen.verb, verb, "{method}");
            assert_eq!(seen.resource.name, "api/v1/namespaces/a/secrets/s");
            assert_eq!(seen.resource.resource, "");
        }
    }

    proptest! {
        #[test]
        fn a_write_is_never_unaudited(kube: bool, method in "POST|PUT|PATCH|DELETE", target: String) {
            prop_assert!(classify(kube, &method, &target).verb.is_some());
        }

        #[test]
        fn encoding_a_path_changes_nothing(method in "GET|POST", path in "/(api|apis)/[a-z./]{0,40}") {
            let encoded: String = path.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(classify(true, &method, &path), classify(true, &method, &encoded));
        }
    }
}

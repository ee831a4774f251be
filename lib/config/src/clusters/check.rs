//! From what is written to what is meant.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use culvert_proto::id::ClusterId;
use culvert_proto::limits::{CLUSTERS_MAX, LABELS_MAX, STREAMS_MAX, TOKENS_PER_CLUSTER_MAX};
use culvert_proto::token::Digest;
use culvert_proto::update::{Access, PersonalToken, Policy, Route, TargetKind, TokenHash};

use super::{
    At, Claims, Entry, Problems, access, host_port_problem, personal, routes, text_problem,
};

/// What the reader of a file does with secrets: this crate digests nothing.
pub trait Secrets {
    /// What is kept of a cluster's token.
    ///
    /// # Errors
    /// A sentence that follows the name of the field, without the token.
    fn token(&self, text: &str) -> Result<TokenHash, String>;

    /// The digest of the personal token that stands in a file.
    ///
    /// # Errors
    /// As above.
    fn personal(&self, path: &Path) -> Result<Digest, String>;
}

/// One cluster of the file, checked. What is absent is not set.
#[expect(missing_docs, reason = "as for Entry")]
pub struct Listed {
    pub id: ClusterId,
    pub tokens: Vec<TokenHash>,
    /// An address alone is that of a Kubernetes API server.
    pub target_kind: Option<TargetKind>,
    pub target_addr: Option<String>,
    pub name: Option<String>,
    pub enabled: Option<bool>,
    pub policy: Option<Policy>,
    pub allow_impersonation: Option<bool>,
    pub audit_tunnel: Option<bool>,
    pub streams_max: Option<u32>,
    pub requests_max: Option<u32>,
    pub rate_per_second: Option<u32>,
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether it can be meant is not judged here.
    pub access: Option<At<Access>>,
    pub routes: Vec<Route>,
    /// Their ids are made by [`file_id`].
    pub personal_tokens: Vec<PersonalToken>,
}

/// Where a problem belongs.
pub(super) struct Place<'a> {
    cluster: &'a str,
    problems: &'a mut Problems,
}

impl Place<'_> {
    pub(super) fn say(&mut self, line: u64, field: &str, why: impl fmt::Display) {
        self.problems.say(line, self.cluster, field, why);
    }

    /// The value, or its problem said.
    pub(super) fn keep<T, E: fmt::Display>(
        &mut self,
        line: u64,
        field: &str,
        read: Result<T, E>,
    ) -> Option<T> {
        read.map_err(|why| self.say(line, field, why)).ok()
    }
}

/// Checks every entry of a file, and that they can stand beside each other: no id,
/// token, address or server name is used twice.
///
/// # Errors
/// All problems, each with its line.
pub fn check(entries: &[Entry], secrets: &dyn Secrets) -> Result<Vec<Listed>, Problems> {
    match entries.len() {
        0 => return Err(Problems::whole("no cluster is listed".to_owned())),
        1..=CLUSTERS_MAX => {}
        more => {
            let why = format!("{more} clusters are listed; at most {CLUSTERS_MAX}");
            return Err(Problems::whole(why));
        }
    }
    let mut problems = Problems::default();
    let mut whole = Whole::default();
    let mut listed = Vec::with_capacity(entries.len());
    for entry in entries {
        let mut place = Place {
            cluster: &entry.id.value,
            problems: &mut problems,
        };
        listed.extend(whole.entry(entry, secrets, &mut place));
    }
    problems.none_or(listed)
}

/// The id of a secret that stands in a file: `file-` and twelve digits of its digest.
#[must_use]
pub fn file_id(digest: &Digest) -> String {
    format!("file-{}", &digest.to_hex()[..12])
}

/// What only one of the file's clusters can have, and the line that has it.
#[derive(Default)]
struct Whole<'a> {
    ids: HashMap<&'a str, u64>,
    tokens: HashMap<[u8; 32], u64>,
    claims: Claims<u64>,
}

impl<'a> Whole<'a> {
    fn entry(
        &mut self,
        entry: &'a Entry,
        secrets: &dyn Secrets,
        place: &mut Place<'_>,
    ) -> Option<Listed> {
        let At { value, line } = &entry.id;
        let id = place.keep(*line, "id", ClusterId::new(value));
        if let Some(first) = self.ids.insert(value, *line) {
            place.say(
                *line,
                "id",
                format!("is listed twice, first on line {first}"),
            );
        }
        let tokens = self.tokens(entry, secrets, place);
        let routes = self.routes(entry, place);
        let personal_tokens = personal::tokens(entry, secrets, place);
        let policy = entry.policy.as_ref();
        let policy = word(
            policy,
            "policy",
            Policy::from_word,
            "spread, replace, refuse",
            place,
        );
        let kind = entry.target_kind.as_ref();
        let kind = word(
            kind,
            "targetKind",
            TargetKind::from_word,
            "http, kube",
            place,
        );
        texts(entry, place);
        Some(Listed {
            id: id?,
            tokens,
            target_kind: kind.or(entry.target_addr.as_ref().map(|_| TargetKind::Kube)),
            target_addr: value_of(entry.target_addr.as_ref()),
            name: value_of(entry.name.as_ref()),
            enabled: value_of(entry.enabled.as_ref()),
            policy,
            allow_impersonation: value_of(entry.allow_impersonation.as_ref()),
            audit_tunnel: value_of(entry.audit_tunnel.as_ref()),
            streams_max: value_of(entry.max_streams.as_ref()),
            requests_max: value_of(entry.max_requests.as_ref()),
            rate_per_second: value_of(entry.rate_limit.as_ref()),
            labels: value_of(entry.labels.as_ref()),
            access: access::access(entry, place),
            routes,
            personal_tokens,
        })
    }

    fn tokens(
        &mut self,
        entry: &Entry,
        secrets: &dyn Secrets,
        place: &mut Place<'_>,
    ) -> Vec<TokenHash> {
        let written = || entry.token.iter().chain(&entry.tokens);
        let count = written().count();
        if count > TOKENS_PER_CLUSTER_MAX {
            let why = format!("are {count}; at most {TOKENS_PER_CLUSTER_MAX}");
            place.say(entry.id.line, "tokens", why);
        }
        let mut tokens = Vec::new();
        for At { value, line } in written() {
            let Some(token) = place.keep(*line, "token", secrets.token(&value.0)) else {
                continue;
            };
            if let Some(first) = self.tokens.insert(token.digest.0, *line) {
                let why =
                    format!("is used twice, first on line {first}; give each cluster its own");
                place.say(*line, "token", why);
            }
            tokens.push(token);
        }
        tokens
    }

    fn routes(&mut self, entry: &Entry, place: &mut Place<'_>) -> Vec<Route> {
        let routes = routes::routes(entry, place);
        for (line, route) in &routes {
            if let Err(first) = self.claims.claim(&route.kind, *line) {
                let why = format!("collides with the route on line {first}");
                place.say(*line, "routes", why);
            }
        }
        routes.into_iter().map(|(_, route)| route).collect()
    }
}

pub(super) fn word<T>(
    at: Option<&At<String>>,
    field: &str,
    meant: impl Fn(&str) -> Option<T>,
    known: &str,
    place: &mut Place<'_>,
) -> Option<T> {
    let At { value, line } = at?;
    let found = meant(value);
    if found.is_none() {
        place.say(*line, field, format!("is {value:?}, none of {known}"));
    }
    found
}

/// Numbers, addresses and texts for people.
fn texts(entry: &Entry, place: &mut Place<'_>) {
    if let Some(At { value, line }) = &entry.name
        && let Some(why) = text_problem(value)
    {
        place.say(*line, "name", why);
    }
    if let Some(At { value, line }) = &entry.target_addr
        && let Some(why) = host_port_problem(value)
    {
        place.say(*line, "targetAddr", why);
    }
    if let Some(At { value, line }) = &entry.max_streams
        && !(1..=STREAMS_MAX).contains(value)
    {
        let why = format!("is {value}; 1 to {STREAMS_MAX} are allowed");
        place.say(*line, "maxStreams", why);
    }
    let Some(At { value, line }) = &entry.labels else {
        return;
    };
    if value.len() > LABELS_MAX {
        place.say(
            *line,
            "labels",
            format!("are {}; at most {LABELS_MAX}", value.len()),
        );
    }
    for (name, text) in value {
        let empty = name.is_empty().then(|| "has no name".to_owned());
        if let Some(why) = empty.or(text_problem(name)).or(text_problem(text)) {
            place.say(
                *line,
                "labels",
                format!("{:?} {why}", name.escape_debug().to_string()),
            );
        }
    }
}

fn value_of<T: Clone>(at: Option<&At<T>>) -> Option<T> {
    at.map(|at| at.value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clusters::parse;
    use culvert_proto::update::RouteKind;

    /// Digests are the first bytes of the text.
    struct Plain;

    fn digest(text: &str) -> Digest {
        let mut digest = [0; 32];
        let bytes = &text.as_bytes()[..text.len().min(32)];
        digest[..bytes.len()].copy_from_slice(bytes);
        Digest(digest)
    }

    impl Secrets for Plain {
        fn token(&self, text: &str) -> Result<TokenHash, String> {
            if text.len() < 16 {
                return Err("is too short".to_owned());
            }
            let digest = digest(text);
            Ok(TokenHash {
                digest,
                id: file_id(&digest).into(),
                not_after_unix_ms: None,
            })
        }

        fn personal(&self, path: &Path) -> Result<Digest, String> {
            path.to_str().map(digest).ok_or_else(String::new)
        }
    }

    fn checked(text: &str) -> Result<Vec<Listed>, String> {
        check(&parse(text)?, &Plain).map_err(|problems| problems.to_string())
    }

    #[test]
    fn everything_an_entry_may_say() {
        let hex = "ab".repeat(32);
        let text = format!(
            r#"[{{"id":"a","token":"0123456789abcdef","tokens":["fedcba9876543210"],
            "targetAddr":"svc:80","policy":"replace","allowImpersonation":true,"enabled":false,
            "maxStreams":7,"maxRequests":8,"rateLimit":9,"name":"A","labels":{{"env":"x"}},
            "routes":[{{"service":"pg","tcp":"127.0.0.1:15432"}},
             {{"service":"web","sealed":"Web.example.com"}},
             {{"service":"vault","sealed":"*.vault.example.com","addr":"[::1]:9443"}}],
            "personalTokens":[
             {{"principal":"ana@example.com","services":["pg","web"],"digest":"sha256:{hex}",
               "expires":"2027-01-31T12:00:00Z"}},
             {{"principal":"bo","services":["*"],"tokenFile":"/run/token"}}]}}]"#
        );
        let all = checked(&text).unwrap();
        let [one] = &all[..] else {
            panic!("one is listed")
        };
        assert_eq!((one.tokens.len(), one.policy), (2, Some(Policy::Replace)));
        assert_eq!(one.target_kind, Some(TargetKind::Kube));
        assert_eq!((one.streams_max, one.enabled), (Some(7), Some(false)));
        let kinds: Vec<_> = one.routes.iter().map(|route| route.kind.clone()).collect();
        let [
            RouteKind::Tcp { addr },
            RouteKind::Sealed { sni, addr: None },
            RouteKind::Sealed {
                addr: Some(own), ..
            },
        ] = &kinds[..]
        else {
            panic!("{kinds:?}")
        };
        assert_eq!(
            (&**addr, sni.as_str(), &**own),
            ("127.0.0.1:15432", "web.example.com", "[::1]:9443")
        );
        let [ana, bo] = &one.personal_tokens[..] else {
            panic!("two are listed")
        };
        assert_eq!(
            (&*ana.principal, &*ana.id),
            ("ana@example.com", "file-abababababab")
        );
        assert_eq!(ana.not_after_unix_ms, Some(1_801_396_800_000));
        assert!(ana.reaches("pg") && !ana.reaches("vault") && bo.reaches("vault"));
        assert_eq!(
            (bo.digest, bo.not_after_unix_ms),
            (digest("/run/token"), None)
        );
    }

    #[test]
    fn all_problems_are_listed_at_once_with_their_place_and_no_token() {
        let text = "- id: UPPER\n- id: a\n  token: short\n- id: a\n  token: 0123456789abcdef\n\
            - id: b\n  tokens:\n  - 0123456789abcdef\n  policy: x\n  targetKind: y\n  targetAddr: z\n\
            \x20 maxStreams: 99999\n  name: \"a\\tb\"\n  labels: {\"\": x}\n";
        let said = checked(text).err().expect("refused");
        for part in [
            "line 1: cluster \"UPPER\": id ",
            "line 3: cluster \"a\": token is too short",
            "line 4: cluster \"a\": id is listed twice, first on line 2",
            "line 8: cluster \"b\": token is used twice, first on line 5",
            "line 9: cluster \"b\": policy is \"x\"",
            "line 10: cluster \"b\": targetKind",
            "line 11: cluster \"b\": targetAddr",
            "line 12: cluster \"b\": maxStreams is 99999",
            "line 13: cluster \"b\": name has",
            "line 14: cluster \"b\": labels \"\" has no name",
        ] {
            assert!(said.contains(part), "{part} is missing from {said:?}");
        }
        assert!(!said.contains("0123456789abcdef"), "{said}");
        assert_eq!(
            said.matches("line ").count() - said.matches("on line").count(),
            10,
            "{said}"
        );
        assert!(checked("[]").err().expect("empty").contains("no cluster"));
    }

    #[test]
    fn routes_and_personal_tokens_that_are_wrong_are_named() {
        for (routes, part) in [
            (
                "{service: pg, tcp: 'localhost:1'}",
                "routes.tcp is \"localhost:1\"; wanted IP:PORT",
            ),
            ("{service: pg, tcp: '127.0.0.1:0'}", "routes.tcp is"),
            (
                "{service: PG, tcp: '127.0.0.1:1'}",
                "routes.service is no service name \"PG\"",
            ),
            ("{service: pg}", "routes.tcp is missing"),
            (
                "{service: pg, tcp: '1.2.3.4:1', sealed: a.test}",
                "sealed stands beside tcp",
            ),
            (
                "{service: pg, tcp: '1.2.3.4:1', addr: '1.2.3.4:2'}",
                "routes.addr is for sealed alone",
            ),
            (
                "{service: pg, sealed: '*.com'}",
                "routes.sealed is no server name",
            ),
            (
                "{service: pg, sealed: a.test, addr: x}",
                "routes.addr is \"x\"",
            ),
            (
                "{service: a, tcp: '1.2.3.4:1'}, {service: b, sealed: a.test, addr: '0.0.0.0:1'}",
                "collides with the route on line 2",
            ),
            ("{service: pg, udp: '1.2.3.4:1'}", "udp"),
        ] {
            let said = checked(&format!("- id: a\n  routes: [{routes}]\n"))
                .err()
                .expect(part);
            assert!(said.contains(part) && said.contains("line 2"), "{said}");
        }
        let hex = "ab".repeat(32);
        for (token, part) in [
            ("principal: p, services: [pg]".to_owned(), "neither given"),
            (
                format!("principal: p, services: [pg], digest: '{hex}', tokenFile: /f"),
                "both given",
            ),
            (
                "principal: p, services: [pg], digest: ab".to_owned(),
                "personalTokens.digest",
            ),
            (
                "principal: p, services: [pg], tokenFile: f".to_owned(),
                "no absolute path",
            ),
            (
                format!("principal: '', services: [pg], digest: '{hex}'"),
                "principal is empty",
            ),
            (
                format!("principal: p, services: [], digest: '{hex}'"),
                "services are 0",
            ),
            (
                format!("principal: p, services: [P], digest: '{hex}'"),
                "holds no service name",
            ),
            (
                format!("principal: p, services: [p], digest: '{hex}', expires: soon"),
                "RFC 3339",
            ),
            (
                format!(
                    "principal: p, services: [p], digest: '{hex}'}}, {{principal: q, services: [p], digest: '{hex}'"
                ),
                "twice",
            ),
        ] {
            let said = checked(&format!("- id: a\n  personalTokens: [{{{token}}}]\n"))
                .err()
                .expect(part);
            assert!(said.contains(part) && said.contains("line 2"), "{said}");
        }
    }

    #[test]
    fn a_file_full_of_problems_counts_them() {
        let all: String = (0..70).map(|n| format!("- id: UPPER{n}\n")).collect();
        let said = checked(&all).err().expect("refused");
        assert!(said.ends_with("and 20 more problems"), "{said}");
    }
}

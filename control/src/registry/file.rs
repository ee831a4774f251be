//! The registry file (P-20): clusters that an operator keeps in a file. What it
//! says wins over what the API was told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use culvert_config::clusters::{At, Claims, Entry, Secrets, check, file_id, read};
use culvert_identity as identity;
use culvert_net::crypto::read_private;
use culvert_proto::id::ClusterId;
use culvert_proto::limits::{
    CLUSTERS_MAX, PERSONAL_TOKENS_PER_CLUSTER_MAX, ROUTES_PER_CLUSTER_MAX, TOKENS_PER_CLUSTER_MAX,
};
use culvert_proto::token::{Digest, TokenIndex, TokenText};
use culvert_proto::update::{PersonalToken, TokenHash};

use super::create;
use crate::cluster::{Cluster, Patch, Personal, Policy, Route, Spec, TargetKind, Token};
use crate::hub::Clusters;
use crate::token;

/// Ids of what stands in the file begin so; an id that was minted never does.
const OF_FILE: &str = "file-";

/// Why the file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("registry file {path}: {why}")]
pub struct FileError {
    path: String,
    why: String,
}

/// What the file says.
#[derive(Default)]
pub struct Listing {
    /// Where it stands.
    pub path: PathBuf,
    /// By cluster.
    pub clusters: BTreeMap<ClusterId, Listed>,
}

/// What it says about one cluster.
#[derive(Clone, Default)]
pub struct Listed {
    /// The fields it sets.
    pub patch: Patch,
    /// Its tokens.
    pub tokens: Vec<TokenHash>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// The personal tokens that reach it.
    pub personal: Vec<PersonalToken>,
}

/// One change that brings the registry to what the file says.
pub enum Merge {
    /// Registered by the file.
    Create(Cluster),
    /// Changed by the file.
    Update(Cluster),
    /// Made by the file, which lists it no more.
    Delete(ClusterId),
}

impl Listing {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Everything that is wrong, with line and field.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        read(path)
            .and_then(|entries| Self::of(path, &entries))
            .map_err(|why| FileError {
                path: path.display().to_string(),
                why,
            })
    }

    fn of(path: &Path, entries: &[Entry]) -> Result<Self, String> {
        if entries.is_empty() {
            return Err("no cluster is listed; leave --clusters out to use none".to_owned());
        }
        let listed = check(entries, &Digests).map_err(|problems| problems.to_string())?;
        sound_access(&listed)?;
        let clusters = listed
            .into_iter()
            .map(|listed| (listed.id.clone(), listed.into()));
        Ok(Self {
            path: path.to_owned(),
            clusters: clusters.collect(),
        })
    }

    /// The fields of `spec` that the file says otherwise, by their names in the API.
    #[must_use]
    pub fn contradicted(&self, id: &ClusterId, spec: &Spec) -> Vec<String> {
        let mut wanted = spec.clone();
        if let Some(listed) = self.clusters.get(id) {
            listed.patch.clone().apply(&mut wanted);
        }
        let fields = |spec: &Spec| serde_json::to_value(spec).unwrap_or_default();
        let (given, wanted) = (fields(spec), fields(&wanted));
        let differ = given.as_object().into_iter().flatten();
        differ
            .filter(|(name, value)| wanted.get(name) != Some(value))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What has to be done so that `held` is what the file says.
    ///
    /// # Errors
    /// When the whole would break a rule of the registry.
    pub fn merge(&self, held: &Clusters, now_ms: u64) -> Result<Vec<Merge>, FileError> {
        self.merged(held, now_ms).map_err(|why| FileError {
            path: self.path.display().to_string(),
            why,
        })
    }

    fn merged(&self, held: &Clusters, now_ms: u64) -> Result<Vec<Merge>, String> {
        let mut merges: Vec<Merge> = held
            .values()
            .filter(|cluster| cluster.from_file && !self.clusters.contains_key(&cluster.id))
            .map(|cluster| Merge::Delete(cluster.id.clone()))
            .collect();
        let mut after: BTreeMap<&ClusterId, Cluster> = held
            .iter()
            .filter(|(_, cluster)| !cluster.from_file)
            .map(|(id, cluster)| (id, Cluster::clone(cluster)))
            .collect();
        for (id, listed) in &self.clusters {
            let next = match held.get(id) {
                None => listed.made(id, now_ms)?,
                Some(cluster) => listed.changed(cluster, now_ms)?,
            };
            after.insert(id, next);
        }
        if after.len() > CLUSTERS_MAX {
            return Err(format!("more than {CLUSTERS_MAX} clusters in all"));
        }
        TokenIndex::build(after.values().flat_map(Cluster::token_entries))
            .map_err(|why| why.to_string())?;
        self.give_way(&mut after);
        for (id, mut next) in after {
            next.updated_unix_ms = now_ms;
            match held.get(id) {
                None => merges.push(Merge::Create(next)),
                Some(cluster) if !is_same(cluster, &next) => merges.push(Merge::Update(next)),
                Some(_) => {}
            }
        }
        Ok(merges)
    }

    /// Takes routes away that collide with those of the file, which wins.
    fn give_way(&self, after: &mut BTreeMap<&ClusterId, Cluster>) {
        let mut claims = Claims::default();
        for route in self.clusters.values().flat_map(|listed| &listed.routes) {
            // The file was checked: its routes can stand beside each other.
            let _ = claims.claim(&route.route.kind, ());
        }
        for (id, cluster) in after {
            let listed = self.clusters.get(*id);
            cluster.routes.retain(|route| {
                let is_own =
                    listed.is_some_and(|it| it.routes.iter().any(|own| own.id == route.id));
                is_own || claims.claim(&route.route.kind, ()).is_ok()
            });
        }
    }
}

/// Refuses access policies that cannot be meant.
fn sound_access(listed: &[culvert_config::clusters::Listed]) -> Result<(), String> {
    for cluster in listed {
        let Some(At { value, line }) = &cluster.access else {
            continue;
        };
        if let Err(why) = identity::Policy::from(value).checked() {
            return Err(format!(
                "line {line}: cluster {}: access: {why}",
                cluster.id
            ));
        }
    }
    Ok(())
}

/// What is kept of secrets in the file.
struct Digests;

impl Secrets for Digests {
    fn token(&self, text: &str) -> Result<TokenHash, String> {
        let text = TokenText::new(text).map_err(|why| format!("is unfit: {why}"))?;
        let digest = token::digest(text.expose());
        Ok(TokenHash {
            digest,
            id: file_id(&digest).into(),
            not_after_unix_ms: None,
        })
    }

    fn personal(&self, path: &Path) -> Result<Digest, String> {
        let bytes = read_private(path).map_err(|why| format!("cannot be read: {why}"))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| "holds no text".to_owned())?;
        let text = TokenText::new(text.trim()).map_err(|why| format!("holds no token: {why}"))?;
        Ok(token::digest(text.expose()))
    }
}

impl From<culvert_config::clusters::Listed> for Listed {
    fn from(listed: culvert_config::clusters::Listed) -> Self {
        let routes = listed.routes.into_iter().map(|route| {
            let route = Route::new(route, 0);
            let id = format!("{OF_FILE}{}", route.id);
            Route { id, ..route }
        });
        Self {
            patch: Patch {
                name: listed.name,
                enabled: listed.enabled,
                policy: listed.policy.map(Policy::from),
                target_kind: listed.target_kind.map(TargetKind::from),
                target_addr: listed.target_addr,
                labels: listed.labels,
                streams_max: listed.streams_max,
                requests_max: listed.requests_max,
                rate_per_second: listed.rate_per_second,
                allow_impersonation: listed.allow_impersonation,
                access: listed.access.map(|at| at.value.into()),
                audit_tunnel: listed.audit_tunnel,
            },
            tokens: listed.tokens,
            routes: routes.collect(),
            personal: listed.personal_tokens,
        }
    }
}

impl Listed {
    fn made(&self, id: &ClusterId, now_ms: u64) -> Result<Cluster, String> {
        let bare = create(id.clone(), Spec::default(), now_ms).map_err(|why| why.to_string())?;
        let made = Cluster {
            from_file: true,
            ..bare
        };
        self.changed(&made, now_ms)
    }

    fn changed(&self, cluster: &Cluster, now_ms: u64) -> Result<Cluster, String> {
        let mut next = cluster.clone();
        self.patch.clone().apply(&mut next.spec);
        next.tokens = self.tokens(cluster, now_ms);
        next.routes = self.routes(cluster, now_ms);
        next.personal = self.personal(cluster, now_ms);
        for (what, count, most) in [
            ("tokens", next.tokens.len(), TOKENS_PER_CLUSTER_MAX),
            ("routes", next.routes.len(), ROUTES_PER_CLUSTER_MAX),
            (
                "personal tokens",
                next.personal.len(),
                PERSONAL_TOKENS_PER_CLUSTER_MAX,
            ),
        ] {
            if count > most {
                let id = &cluster.id;
                return Err(format!(
                    "cluster {id} would have more than {most} {what}; remove some"
                ));
            }
        }
        Ok(next)
    }

    /// The tokens that were minted, and exactly those of the file.
    fn tokens(&self, cluster: &Cluster, now_ms: u64) -> Vec<Token> {
        let listed = |token: &Token| self.tokens.iter().any(|it| it.digest == token.digest);
        let held = cluster.tokens.iter();
        let mut next: Vec<Token> = held
            .filter(|token| !is_of_file(&token.id) || listed(token))
            .cloned()
            .collect();
        for token in &self.tokens {
            if !next.iter().any(|held| held.digest == token.digest) {
                let new = super::NewToken {
                    id: token.id.to_string(),
                    digest: token.digest,
                };
                next.push(new.live(now_ms, None));
            }
        }
        next
    }

    /// The routes that the API made, and exactly those of the file.
    fn routes(&self, cluster: &Cluster, now_ms: u64) -> Vec<Route> {
        let held = || cluster.routes.iter();
        let mut next: Vec<Route> = held()
            .filter(|route| !is_of_file(&route.id))
            .cloned()
            .collect();
        next.extend(self.routes.iter().map(|listed| {
            let known =
                held().find(|route| (&route.id, &route.route) == (&listed.id, &listed.route));
            known.cloned().unwrap_or_else(|| Route {
                created_unix_ms: now_ms,
                ..listed.clone()
            })
        }));
        next
    }

    /// The personal tokens that were minted, and exactly those of the file.
    fn personal(&self, cluster: &Cluster, now_ms: u64) -> Vec<Personal> {
        let held = || cluster.personal.iter();
        let mut next: Vec<Personal> = held()
            .filter(|personal| !is_of_file(&personal.token.id))
            .cloned()
            .collect();
        let listed = self.personal.iter().map(|listed| {
            let known = held().find(|personal| personal.token == *listed);
            known.cloned().unwrap_or_else(|| Personal {
                token: listed.clone(),
                created_unix_ms: now_ms,
            })
        });
        next.extend(listed.filter(|personal| personal.is_live(now_ms)));
        next
    }
}

/// Whether nothing that the file may say differs.
fn is_same(held: &Cluster, next: &Cluster) -> bool {
    let ids = |cluster: &Cluster| -> Vec<String> {
        let tokens = cluster.tokens.iter();
        tokens.map(|token| token.id.clone()).collect()
    };
    held.spec == next.spec
        && ids(held) == ids(next)
        && held.routes == next.routes
        && held.personal == next.personal
}

/// Whether a token or route stands in the file, by its id.
#[must_use]
pub fn is_of_file(id: &str) -> bool {
    id.starts_with(OF_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const TOKEN: &str = "0123456789abcdef";

    fn listing(text: &str) -> Result<Listing, String> {
        let entries = culvert_config::clusters::parse(text)?;
        Listing::of(Path::new("/f"), &entries)
    }

    /// What becomes of `held`, as (verb, cluster).
    fn after(held: &mut Clusters, text: &str) -> Vec<(&'static str, String)> {
        let merges = listing(text).unwrap().merge(held, 9_000).unwrap();
        let apply = |merge| match merge {
            Merge::Create(cluster) => ("create", put(held, cluster)),
            Merge::Update(cluster) => ("update", put(held, cluster)),
            Merge::Delete(id) => {
                held.remove(&id);
                ("delete", id.to_string())
            }
        };
        merges.into_iter().map(apply).collect()
    }

    fn put(held: &mut Clusters, cluster: Cluster) -> String {
        let id = cluster.id.clone();
        held.insert(id.clone(), Arc::new(cluster));
        id.to_string()
    }

    #[test]
    fn the_file_makes_changes_and_removes_what_it_made_and_no_more() {
        let mut held = Clusters::new();
        let api = super::super::NewToken {
            id: "api".to_owned(),
            digest: Digest([7; 32]),
        };
        let own = create("own".parse().unwrap(), Spec::default(), 1).unwrap();
        put(
            &mut held,
            super::super::add_token(&own, api, None, 1).unwrap(),
        );
        let text = "- {id: made, token: 0123456789abcdef, maxStreams: 7, targetAddr: 'a:1'}\n\
                    - {id: own, name: N, token: fedcba9876543210}\n";
        let done = after(&mut held, text);
        assert_eq!(done, [("create", "made".into()), ("update", "own".into())]);
        let (made, own) = (&held["made"], &held["own"]);
        assert!(made.from_file && !own.from_file);
        assert_eq!(
            (made.spec.streams_max, made.spec.target_kind),
            (7, TargetKind::Kube)
        );
        assert_eq!(made.tokens[0].digest, token::digest(TOKEN));
        assert_eq!((own.spec.name.as_str(), own.tokens.len()), ("N", 2));
        assert_eq!(after(&mut held, text), [], "nothing is left to do");
        let done = after(&mut held, "- {id: own, name: M}\n");
        assert_eq!(done, [("delete", "made".into()), ("update", "own".into())]);
        let own = &held["own"];
        assert_eq!((own.spec.name.as_str(), own.tokens.len()), ("M", 1));
        assert_eq!(own.tokens[0].id, "api", "a minted token stays");
    }

    #[test]
    fn only_what_the_file_sets_is_contradicted() {
        let listing = listing("- {id: a, name: N, rateLimit: 5}").unwrap();
        let mut spec = Spec {
            name: "N".to_owned(),
            rate_per_second: 5,
            streams_max: 9,
            ..Spec::default()
        };
        let id: ClusterId = "a".parse().unwrap();
        assert!(listing.contradicted(&id, &spec).is_empty());
        spec.name = "other".to_owned();
        spec.rate_per_second = 0;
        let fields = listing.contradicted(&id, &spec);
        assert_eq!(fields, ["name", "rate_per_second"]);
        assert!(
            listing
                .contradicted(&"b".parse().unwrap(), &spec)
                .is_empty()
        );
    }

    #[test]
    fn a_bad_entry_is_named_by_line_and_field_and_its_token_is_not_shown() {
        for (text, parts) in [
            ("- id: UPPER\n", ["line 1", "id"]),
            ("- id: a\n- id: a\n", ["line 2", "twice"]),
            ("- id: a\n  token: short-one\n", ["line 2", "token"]),
            (
                "- id: a\n  tokens:\n  - 0123456789abcdef\n  - 0123456789abcdef\n",
                ["line 4", "twice"],
            ),
            ("- id: a\n  policy: x\n", ["line 2", "policy"]),
            ("- id: a\n\n  targetKind: x\n", ["line 3", "targetKind"]),
            ("- id: a\n  targetAddr: x\n", ["line 2", "targetAddr"]),
            ("- id: a\n  maxStreams: 99999\n", ["line 2", "maxStreams"]),
            ("- id: a\n  labels: {\"\": x}\n", ["line 2", "labels"]),
            ("- id: a\n  rateLimit: -1\n", ["line 2", ""]),
            ("[]", ["no cluster", "--clusters"]),
        ] {
            let said = listing(text).err().expect("refused");
            for part in parts {
                assert!(said.contains(part), "{part} is missing from {said:?}");
            }
            assert!(!said.contains(TOKEN), "{said}");
        }
    }

    #[test]
    fn routes_and_personal_tokens_of_the_file_win_and_go_with_it() {
        use super::super::{personal, routes};
        let mut held = Clusters::new();
        let of_api = |port: &str| {
            let addr = format!("127.0.0.1:{port}");
            culvert_config::clusters::route("pg", Some(&addr), None, None).unwrap()
        };
        for (id, port) in [("one", "1"), ("two", "2")] {
            let made = create(id.parse().unwrap(), Spec::default(), 1).unwrap();
            let made = routes::add_route(&made, &held, of_api(port), 1).unwrap();
            let minted = PersonalToken {
                digest: Digest([9; 32]),
                id: "minted".into(),
                principal: "bo".into(),
                not_after_unix_ms: None,
                services: vec!["pg".into()],
            };
            put(&mut held, personal::admit(&made, minted, 1).unwrap());
        }
        let hex = "ab".repeat(32);
        let text = format!(
            "- id: one\n  routes: [{{service: web, tcp: '0.0.0.0:2'}}]\n  personalTokens:\n\
             \x20 - {{principal: ana, services: ['*'], digest: '{hex}', expires: '2027-01-31T12:00:00Z'}}\n\
             \x20 - {{principal: old, services: [pg], digest: 'cd{}', expires: '1970-01-01T00:00:01Z'}}\n",
            "cd".repeat(31)
        );
        let done = after(&mut held, &text);
        assert_eq!(done, [("update", "one".into()), ("update", "two".into())]);
        let (one, two) = (&held["one"], &held["two"]);
        let services: Vec<_> = one
            .routes
            .iter()
            .map(|it| it.route.service.as_str())
            .collect();
        assert_eq!(
            (services, two.routes.len()),
            (vec!["pg", "web"], 0),
            "the file wins"
        );
        assert!(is_of_file(&one.routes[1].id));
        let ids: Vec<_> = one.personal.iter().map(|it| &*it.token.id).collect();
        assert_eq!(
            ids,
            ["minted", "file-abababababab"],
            "an expired one is none"
        );
        assert_eq!(after(&mut held, &text), [], "nothing is left to do");
        let created = held["one"].routes[1].created_unix_ms;
        let other = text.replace("ana", "eve").replace("0.0.0.0:2", "0.0.0.0:3");
        assert_eq!(after(&mut held, &other), [("update", "one".into())]);
        let one = &held["one"];
        assert_eq!(&*one.personal[1].token.principal, "eve");
        assert_eq!((one.routes.len(), created), (2, 9_000));
        after(&mut held, "- id: one\n");
        assert_eq!(
            (held["one"].routes.len(), held["one"].personal.len()),
            (1, 1)
        );
    }

    #[test]
    fn two_clusters_with_one_token_are_refused_by_name() {
        let mut held = Clusters::new();
        after(&mut held, "- {id: a, token: 0123456789abcdef}");
        held.insert(
            "a".parse().unwrap(),
            Arc::new(Cluster {
                from_file: false,
                ..Cluster::clone(&held["a"])
            }),
        );
        let second = listing("- {id: b, token: 0123456789abcdef}").unwrap();
        let said = second.merge(&held, 1).err().unwrap().to_string();
        assert!(
            said.contains("/f") && said.contains('a') && said.contains("same token"),
            "{said}"
        );
    }
}

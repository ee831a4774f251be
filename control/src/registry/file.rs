//! The registry file (P-20): clusters that an operator keeps in a file. What it
//! says wins over what the API was told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use culvert_config::clusters::{At, Entry};
use culvert_proto::id::ClusterId;
use culvert_proto::limits::{CLUSTERS_MAX, TOKENS_PER_CLUSTER_MAX};
use culvert_proto::token::{Digest, TokenIndex, TokenText};

use super::{Refused, create};
use crate::cluster::{Cluster, Patch, Policy, Spec, TargetKind, Token};
use crate::hub::Clusters;
use crate::token;

/// Shorter tokens can be guessed.
pub const TOKEN_BYTES_SAFE: usize = 16;
/// Ids of the file's tokens begin so; an id that was minted never does.
const FILE_TOKEN: &str = "file-";

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
    pub tokens: Vec<Digest>,
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
    /// The first thing that is wrong, with its line and field.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        culvert_config::clusters::read(path)
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
        let mut listing = Self {
            path: path.to_owned(),
            ..Self::default()
        };
        for entry in entries {
            let line = entry.id.line;
            let named = |(field, line, why): Wrong| {
                let id = &entry.id.value;
                format!("line {line}: cluster {id:?}: {field} {why}")
            };
            let id = ClusterId::new(&entry.id.value)
                .map_err(|why| named(("id", line, why.to_string())))?;
            let listed = Listed::of(entry).map_err(named)?;
            if listing.clusters.insert(id, listed).is_some() {
                return Err(named(("id", line, "is listed twice".to_owned())));
            }
        }
        Ok(listing)
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
            let merge = match held.get(id) {
                None => Some(Merge::Create(
                    listed.made(id, now_ms).map_err(|why| why.to_string())?,
                )),
                Some(cluster) => listed.changed(cluster, now_ms)?.map(Merge::Update),
            };
            let next = match (&merge, held.get(id)) {
                (Some(Merge::Create(next) | Merge::Update(next)), _) => next.clone(),
                (_, Some(same)) => Cluster::clone(same),
                (_, None) => continue,
            };
            after.insert(id, next);
            merges.extend(merge);
        }
        if after.len() > CLUSTERS_MAX {
            return Err(format!("more than {CLUSTERS_MAX} clusters in all"));
        }
        TokenIndex::build(after.values().flat_map(Cluster::token_entries))
            .map_err(|why| why.to_string())?;
        Ok(merges)
    }
}

/// Field, line, and what is wrong.
type Wrong = (&'static str, u64, String);

impl Listed {
    fn of(entry: &Entry) -> Result<Self, Wrong> {
        let patch = patch(entry)?;
        let mut spec = Spec::default();
        patch.clone().apply(&mut spec);
        if let Some((field, why)) = spec.problems().into_iter().next() {
            let (field, line) = place(entry, &field);
            return Err((field, line, why));
        }
        let mut tokens = Vec::new();
        for At { value, line } in entry.token.iter().chain(&entry.tokens) {
            let wrong = |why: String| ("token", *line, why);
            let text = TokenText::new(&value.0).map_err(|why| wrong(format!("is unfit: {why}")))?;
            let bytes = text.expose().len();
            if bytes < TOKEN_BYTES_SAFE {
                let why = format!("of {bytes} bytes; at least {TOKEN_BYTES_SAFE} are required");
                return Err(wrong(why));
            }
            let digest = token::digest(text.expose());
            if tokens.contains(&digest) {
                return Err(wrong("is listed twice".to_owned()));
            }
            tokens.push(digest);
            if tokens.len() > TOKENS_PER_CLUSTER_MAX {
                return Err(wrong(format!(
                    "is one of more than {TOKENS_PER_CLUSTER_MAX}"
                )));
            }
        }
        Ok(Self { patch, tokens })
    }

    fn made(&self, id: &ClusterId, now_ms: u64) -> Result<Cluster, Refused> {
        let mut spec = Spec::default();
        self.patch.clone().apply(&mut spec);
        let cluster = create(id.clone(), spec, now_ms)?;
        Ok(Cluster {
            from_file: true,
            tokens: self.tokens(&cluster, now_ms),
            ..cluster
        })
    }

    fn changed(&self, cluster: &Cluster, now_ms: u64) -> Result<Option<Cluster>, String> {
        let mut next = cluster.clone();
        self.patch.clone().apply(&mut next.spec);
        next.tokens = self.tokens(cluster, now_ms);
        if next.tokens.len() > TOKENS_PER_CLUSTER_MAX {
            let id = &cluster.id;
            return Err(format!(
                "cluster {id} would have more than {TOKENS_PER_CLUSTER_MAX} tokens; remove some"
            ));
        }
        let ids = |cluster: &Cluster| -> Vec<String> {
            let tokens = cluster.tokens.iter();
            tokens.map(|token| token.id.clone()).collect()
        };
        let is_same = next.spec == cluster.spec && ids(&next) == ids(cluster);
        next.updated_unix_ms = now_ms;
        Ok((!is_same).then_some(next))
    }

    /// The tokens that were minted, and exactly those of the file.
    fn tokens(&self, cluster: &Cluster, now_ms: u64) -> Vec<Token> {
        let held = cluster.tokens.iter();
        let mut next: Vec<Token> = held
            .filter(|token| !is_of_file(&token.id) || self.tokens.contains(&token.digest))
            .cloned()
            .collect();
        for digest in &self.tokens {
            if !next.iter().any(|token| token.digest == *digest) {
                let id = format!("{FILE_TOKEN}{}", &digest.to_hex()[..12]);
                next.push(
                    super::NewToken {
                        id,
                        digest: *digest,
                    }
                    .live(now_ms, None),
                );
            }
        }
        next
    }
}

/// Whether a token stands in the file, by its id.
#[must_use]
pub fn is_of_file(token_id: &str) -> bool {
    token_id.starts_with(FILE_TOKEN)
}

fn value<T: Clone>(field: Option<&At<T>>) -> Option<T> {
    field.map(|at| at.value.clone())
}

fn patch(entry: &Entry) -> Result<Patch, Wrong> {
    let policy = match &entry.policy {
        None => None,
        Some(At { value, line }) => Some(match value.as_str() {
            "spread" => Policy::Spread,
            "replace" => Policy::Replace,
            "refuse" => Policy::Refuse,
            _ => {
                let why = format!("is {value:?}, none of spread, replace, refuse");
                return Err(("policy", *line, why));
            }
        }),
    };
    let target_kind = match (&entry.target_kind, &entry.target_addr) {
        (None, None) => None,
        // As in the data plane's file: an address alone is a Kubernetes API server's.
        (None, Some(_)) => Some(TargetKind::Kube),
        (Some(At { value, line }), _) => Some(match value.as_str() {
            "http" => TargetKind::Http,
            "kube" => TargetKind::Kube,
            _ => {
                let why = format!("is {value:?}, none of http, kube");
                return Err(("targetKind", *line, why));
            }
        }),
    };
    Ok(Patch {
        name: value(entry.name.as_ref()),
        enabled: value(entry.enabled.as_ref()),
        policy,
        target_kind,
        target_addr: value(entry.target_addr.as_ref()),
        labels: value(entry.labels.as_ref()),
        streams_max: value(entry.max_streams.as_ref()),
        requests_max: value(entry.max_requests.as_ref()),
        rate_per_second: value(entry.rate_limit.as_ref()),
        allow_impersonation: value(entry.allow_impersonation.as_ref()),
    })
}

/// The file's name for a field of [`Spec`], and its line.
fn place(entry: &Entry, field: &str) -> (&'static str, u64) {
    fn line<T>(at: Option<&At<T>>) -> Option<u64> {
        at.map(|at| at.line)
    }
    let (field, line) = match field {
        "name" => ("name", line(entry.name.as_ref())),
        "streams_max" => ("maxStreams", line(entry.max_streams.as_ref())),
        "target_addr" => ("targetAddr", line(entry.target_addr.as_ref())),
        _ => ("labels", line(entry.labels.as_ref())),
    };
    (field, line.unwrap_or(entry.id.line))
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

//! The clusters file: what a data plane without control serves.
//!
//! JSON or YAML, a list of entries: `[{"id": "dev", "token": "...", "targetAddr":
//! "127.0.0.1:6443"}]`. One bad entry makes the whole file bad.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use culvert_net::crypto::sha256;
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::limits::{CLUSTERS_MAX, STREAMS_MAX, TOKENS_PER_CLUSTER_MAX};
use culvert_proto::token::{Digest, TOKEN_BYTES_MIN, TokenEntry, TokenIndex, TokenText};
use culvert_proto::update::{ClusterState, Policy, State, Target, TargetKind, TokenHash};

/// Longest clusters file in bytes.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// What is wrong with a clusters file.
#[derive(Debug, thiserror::Error)]
#[error("clusters file: {0}")]
pub struct ClustersError(String);

/// A clusters file that was read.
pub struct Clusters {
    /// Its clusters, as control would have sent them.
    pub state: State,
    /// Clusters whose token is short enough to be guessed.
    pub short_tokens: Vec<ClusterId>,
    /// Why others than the owner can get at the tokens, and what to do.
    pub exposed: Option<String>,
}

impl Clusters {
    /// Logs what makes its tokens weaker than they could be.
    pub fn announce(&self) {
        if let Some(why) = &self.exposed {
            tracing::warn!(%why, "the clusters file is not its owner's alone");
        }
        for cluster in &self.short_tokens {
            tracing::info!(%cluster, "this cluster's token is short enough to be guessed");
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    id: String,
    #[serde(default)]
    token: Option<Secret>,
    #[serde(default)]
    tokens: Vec<Secret>,
    #[serde(default)]
    target_addr: Option<String>,
    #[serde(default)]
    target_kind: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    allow_impersonation: bool,
    #[serde(default)]
    max_streams: Option<u32>,
    #[serde(default)]
    max_requests: u32,
    #[serde(default)]
    rate_limit: u32,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// A token on its way to its digest: no `Debug`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Secret(String);

/// Reads the file at `path`, which should be its owner's alone; `tls` refuses
/// one that is not, and tokens for development.
///
/// # Errors
/// The first thing that is wrong, by entry.
pub fn read(path: &Path, tls: bool) -> Result<Clusters, ClustersError> {
    let fail = |why: String| ClustersError(format!("{}: {why}", path.display()));
    let broken = |why: io::Error| fail(why.to_string());
    let file = File::open(path).map_err(broken)?;
    let meta = file.metadata().map_err(broken)?;
    if meta.len() > FILE_BYTES_MAX {
        let size = meta.len();
        return Err(fail(format!(
            "{size} bytes; at most {FILE_BYTES_MAX} are read"
        )));
    }
    let exposed = exposure(meta.mode(), path);
    if let Some((why, true)) = exposed.as_ref().filter(|_| tls) {
        return Err(fail(why.clone()));
    }
    let mut text = String::new();
    let mut limited = file.take(FILE_BYTES_MAX);
    limited.read_to_string(&mut text).map_err(broken)?;
    let mut read = parse(&text, tls).map_err(|ClustersError(why)| fail(why))?;
    read.exposed = exposed.map(|(why, _)| why);
    Ok(read)
}

/// Whom `mode` lets at the tokens beside the owner, and whether that is worse
/// than what orchestrators do: they mount secrets readable for the group.
fn exposure(mode: u32, path: &Path) -> Option<(String, bool)> {
    let others = mode & 0o077;
    let why = || {
        let (mode, path) = (mode & 0o7777, path.display());
        format!("mode {mode:04o} lets others at the tokens in plain text; run: chmod 0600 '{path}'")
    };
    (others != 0).then(|| (why(), others & 0o037 != 0))
}

/// Reads the text of a file.
///
/// # Errors
/// The first thing that is wrong, by entry.
pub fn parse(text: &str, tls: bool) -> Result<Clusters, ClustersError> {
    let entries = entries(text)?;
    if entries.is_empty() {
        return Err(ClustersError("no cluster is listed".to_owned()));
    }
    if entries.len() > CLUSTERS_MAX {
        return Err(ClustersError(format!("more than {CLUSTERS_MAX} clusters")));
    }
    let mut read = Clusters {
        state: State {
            generation: Generation(1),
            ..State::default()
        },
        short_tokens: Vec::new(),
        exposed: None,
    };
    for (place, entry) in entries.into_iter().enumerate() {
        let named = format!("entry {} (id {:?})", place + 1, entry.id);
        let cluster = entry
            .into_state(tls, &mut read.short_tokens)
            .map_err(|why| ClustersError(format!("{named}: {why}")))?;
        let id = cluster.id.clone();
        if read.state.clusters.insert(id, Arc::new(cluster)).is_some() {
            return Err(ClustersError(format!("{named}: this id is listed twice")));
        }
    }
    let owners = read
        .state
        .clusters
        .values()
        .flat_map(|cluster| cluster.token_entries());
    TokenIndex::build(owners.collect::<Vec<TokenEntry>>())
        .map_err(|why| ClustersError(why.to_string()))?;
    Ok(read)
}

/// Error texts of the parsers may quote the input; a token must not be shown.
fn entries(text: &str) -> Result<Vec<Entry>, ClustersError> {
    if text.trim_start().starts_with(['[', '{']) {
        return serde_json::from_str(text).map_err(|why| {
            let what = match why.classify() {
                serde_json::error::Category::Data => why.to_string(),
                _ => format!("not JSON at line {} column {}", why.line(), why.column()),
            };
            ClustersError(what)
        });
    }
    serde_saphyr::from_str(text).map_err(|why| {
        let said = why.to_string();
        ClustersError(said.lines().next().unwrap_or("not YAML").to_owned())
    })
}

impl Entry {
    fn into_state(self, tls: bool, short: &mut Vec<ClusterId>) -> Result<ClusterState, String> {
        let id = ClusterId::new(&self.id).map_err(|why| why.to_string())?;
        let mut state = ClusterState::new(id);
        let tokens = self.token.into_iter().chain(self.tokens);
        for (place, token) in tokens.enumerate() {
            let token = match tls {
                true => TokenText::new(&token.0),
                false => TokenText::for_development(&token.0),
            };
            let token = token.map_err(|why| format!("token: {why}"))?;
            let text = token.expose();
            if text.len() < TOKEN_BYTES_MIN {
                short.push(state.id.clone());
            }
            let digest = Digest(sha256(text.as_bytes()));
            let token_id = token
                .id()
                .map_or_else(|| format!("file-{}", place + 1), str::to_owned);
            state.tokens.push(TokenHash {
                digest,
                id: token_id.into(),
                not_after_unix_ms: None,
            });
        }
        if state.tokens.is_empty() {
            return Err("no token is given".to_owned());
        }
        if state.tokens.len() > TOKENS_PER_CLUSTER_MAX {
            return Err(format!("more than {TOKENS_PER_CLUSTER_MAX} tokens"));
        }
        state.target = target(self.target_addr, self.target_kind)?;
        if let Some(word) = self.policy {
            let unknown = || format!("policy {word:?} is none of spread, replace, refuse");
            state.policy = Policy::from_word(&word).ok_or_else(unknown)?;
        }
        // Without a limit of its own the data plane's applies.
        state.streams_max = self.max_streams.unwrap_or(0);
        if state.streams_max > STREAMS_MAX || self.max_streams == Some(0) {
            return Err(format!("maxStreams is not between 1 and {STREAMS_MAX}"));
        }
        state.requests_max = self.max_requests;
        state.rate_per_second = self.rate_limit;
        state.allow_impersonation = self.allow_impersonation;
        state.name = self.name.map(Arc::from);
        let labels = self.labels.into_iter();
        state.labels = labels
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        Ok(state)
    }
}

/// As in the source system, an address is that of a Kubernetes API server
/// unless the kind says otherwise; without either, any HTTP service.
fn target(addr: Option<String>, kind: Option<String>) -> Result<Target, String> {
    let kind = match kind {
        Some(word) => TargetKind::from_word(&word)
            .ok_or_else(|| format!("targetKind {word:?} is none of http, kube"))?,
        None if addr.is_some() => TargetKind::Kube,
        None => TargetKind::Http,
    };
    if let Some(addr) = &addr
        && (addr.is_empty() || addr.len() > 255 || !addr.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err("targetAddr is no host:port".to_owned());
    }
    Ok(Target {
        kind,
        addr: addr.map(Arc::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        parse(text, false)
            .err()
            .map(|why| why.to_string())
            .expect("refused")
    }

    #[test]
    fn the_contracts_example_is_read_in_both_syntaxes() {
        let json = r#"[{"id":"dev","token":"dev-token","targetAddr":"127.0.0.1:6443"}]"#;
        let yaml = "- id: dev\n  token: dev-token\n  targetAddr: 127.0.0.1:6443\n";
        for text in [json, yaml] {
            let read = parse(text, false).unwrap();
            let cluster = &read.state.clusters["dev"];
            assert_eq!(cluster.target.addr.as_deref(), Some("127.0.0.1:6443"));
            assert_eq!(cluster.target.kind, TargetKind::Kube);
            assert_eq!(cluster.tokens[0].digest, Digest(sha256(b"dev-token")));
            assert_eq!(read.short_tokens.len(), 1);
        }
        assert!(parse(json, true).is_err(), "a short token beside TLS");
    }

    #[test]
    fn a_file_that_others_can_read_is_said_and_beside_tls_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clusters.json");
        std::fs::write(&path, r#"[{"id":"a","token":"0123456789abcdef"}]"#).unwrap();
        for (mode, said, refused) in [
            (0o600, false, false),
            (0o400, false, false),
            (0o440, true, false),
            (0o640, true, false),
            (0o660, true, true),
            (0o644, true, true),
            (0o601, true, true),
        ] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let plain = read(&path, false).unwrap();
            assert_eq!(plain.exposed.is_some(), said, "{mode:o}");
            let beside_tls = read(&path, true).err().map(|why| why.to_string());
            assert_eq!(beside_tls.is_some(), refused, "{mode:o}: {beside_tls:?}");
            for why in beside_tls.into_iter().chain(plain.exposed) {
                assert!(why.contains(&format!("mode {mode:04o}")), "{why}");
                assert!(
                    why.contains(&format!("chmod 0600 '{}'", path.display())),
                    "{why}"
                );
            }
        }
    }

    #[test]
    fn everything_an_entry_may_say() {
        let text = r#"[{"id":"a","tokens":["0123456789abcdef","fedcba9876543210"],
            "targetKind":"http","targetAddr":"svc:80","policy":"replace","allowImpersonation":true,
            "maxStreams":7,"maxRequests":8,"rateLimit":9,"name":"A","labels":{"env":"x"}}]"#;
        let read = parse(text, true).unwrap();
        let cluster = &read.state.clusters["a"];
        assert_eq!((cluster.tokens.len(), cluster.policy), (2, Policy::Replace));
        assert_eq!(
            (
                cluster.streams_max,
                cluster.requests_max,
                cluster.rate_per_second
            ),
            (7, 8, 9)
        );
        assert!(cluster.allow_impersonation && cluster.target.kind == TargetKind::Http);
    }

    #[test]
    fn a_bad_entry_is_named_and_its_token_is_not_shown() {
        let token = "0123456789abcdef";
        for (text, part) in [
            (r#"[{"id":"UPPER","token":"0123456789abcdef"}]"#, "UPPER"),
            (r#"[{"id":"a","token":"short"}]"#, "token"),
            (r#"[{"id":"a"}]"#, "no token"),
            (
                r#"[{"id":"a","token":"0123456789abcdef"},{"id":"a","token":"0123456789abcdeF"}]"#,
                "twice",
            ),
            (
                r#"[{"id":"a","token":"0123456789abcdef"},{"id":"b","token":"0123456789abcdef"}]"#,
                "same token",
            ),
            (
                r#"[{"id":"a","token":"0123456789abcdef","tokne":1}]"#,
                "tokne",
            ),
            (
                r#"[{"id":"a","token":"0123456789abcdef","policy":"x"}]"#,
                "policy",
            ),
            (
                r#"[{"id":"a","token":"0123456789abcdef","maxStreams":99999}]"#,
                "maxStreams",
            ),
            (r#"[{"id":"a","token":"0123456789abcdef"#, "line 1"),
            ("[]", "no cluster"),
            ("- id: a\n  token: 0123456789abcdef\n  tokne: 1\n", "tokne"),
            ("- id: a\n token: [", "line"),
        ] {
            let said = why(text);
            assert!(said.contains(part), "{part} is missing from {said}");
            assert!(!said.contains(token), "{said}");
        }
    }
}

//! The clusters file: what a data plane without control serves.
//!
//! Its syntax and what its values may be are those of control's registry file;
//! here everything that control would add has to stand in it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use culvert_config::clusters::{
    self, At, CLUSTERS_FILE_BYTES_MAX as FILE_BYTES_MAX, Listed, Secrets, file_id,
};
use culvert_identity::Policy;
use culvert_net::crypto::{read_private, sha256};
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::token::{Digest, TOKEN_BYTES_MIN, TokenText};
use culvert_proto::update::{ClusterState, State, Target, TargetKind, TokenHash};

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

/// Reads the file at `path`, which should be its owner's alone; `tls` refuses
/// one that is not, and tokens for development.
///
/// # Errors
/// Everything that is wrong, by line.
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
/// Everything that is wrong, by line.
pub fn parse(text: &str, tls: bool) -> Result<Clusters, ClustersError> {
    let entries = clusters::parse(text).map_err(ClustersError)?;
    let digests = Digests {
        tls,
        short: RefCell::default(),
    };
    let listed = clusters::check(&entries, &digests);
    let listed = listed.map_err(|why| ClustersError(why.to_string()))?;
    let short = digests.short.into_inner();
    let mut read = Clusters {
        state: State {
            generation: Generation(1),
            ..State::default()
        },
        short_tokens: Vec::new(),
        exposed: None,
    };
    for cluster in listed {
        let id = cluster.id.clone();
        let tokens = &cluster.tokens;
        if tokens.is_empty() {
            return Err(ClustersError(format!("cluster {id}: no token is given")));
        }
        if cluster.audit_tunnel == Some(true) {
            let why = "auditTunnel needs control, which keeps the log; take it out, or run control";
            return Err(ClustersError(format!("cluster {id}: {why}")));
        }
        if let Some(At { value, line }) = &cluster.access {
            let checked = Policy::from(value).checked();
            let why = |why| ClustersError(format!("line {line}: cluster {id}: access: {why}"));
            checked.map_err(why)?;
        }
        if tokens.iter().any(|token| short.contains(&token.digest)) {
            read.short_tokens.push(id.clone());
        }
        read.state.clusters.insert(id, Arc::new(state(cluster)));
    }
    Ok(read)
}

/// What this process keeps of tokens.
struct Digests {
    tls: bool,
    /// Of those short enough to be guessed.
    short: RefCell<Vec<Digest>>,
}

impl Secrets for Digests {
    fn token(&self, text: &str) -> Result<TokenHash, String> {
        let token = match self.tls {
            true => TokenText::new(text),
            false => TokenText::for_development(text),
        };
        let token = token.map_err(|why| format!("is unfit: {why}"))?;
        let digest = Digest(sha256(token.expose().as_bytes()));
        if token.expose().len() < TOKEN_BYTES_MIN {
            self.short.borrow_mut().push(digest);
        }
        let id = token.id().map_or_else(|| file_id(&digest), str::to_owned);
        Ok(TokenHash {
            digest,
            id: id.into(),
            not_after_unix_ms: None,
        })
    }

    fn personal(&self, path: &Path) -> Result<Digest, String> {
        let bytes = read_private(path).map_err(|why| format!("cannot be read: {why}"))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| "holds no text".to_owned())?;
        let token = TokenText::new(text.trim()).map_err(|why| format!("holds no token: {why}"))?;
        Ok(Digest(sha256(token.expose().as_bytes())))
    }
}

fn state(listed: Listed) -> ClusterState {
    let mut state = ClusterState::new(listed.id);
    state.enabled = listed.enabled.unwrap_or(true);
    state.tokens = listed.tokens;
    state.target = Target {
        kind: listed.target_kind.unwrap_or(TargetKind::Http),
        addr: listed.target_addr.map(Arc::from),
    };
    state.policy = listed.policy.unwrap_or_default();
    // Without a limit of its own the data plane's applies.
    state.streams_max = listed.streams_max.unwrap_or(0);
    state.requests_max = listed.requests_max.unwrap_or(0);
    state.rate_per_second = listed.rate_per_second.unwrap_or(0);
    state.allow_impersonation = listed.allow_impersonation.unwrap_or(false);
    state.name = listed.name.map(Arc::from);
    let labels = listed.labels.into_iter().flatten();
    state.labels = labels
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    state.access = listed.access.map(|at| at.value).unwrap_or_default();
    state.routes = listed.routes;
    state.personal_tokens = listed.personal_tokens;
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::update;

    fn why(text: &str) -> String {
        parse(text, false)
            .err()
            .map(|why| why.to_string())
            .expect("refused")
    }

    #[test]
    fn nobody_keeps_an_audit_log_without_control() {
        let text = r#"[{"id":"dev","token":"dev-token","auditTunnel":true}]"#;
        assert!(why(text).contains("needs control"), "{}", why(text));
        let off = text.replace("true", "false");
        assert!(!parse(&off, false).unwrap().state.clusters["dev"].audit_tunnel);
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
        assert_eq!(
            (cluster.tokens.len(), cluster.policy),
            (2, update::Policy::Replace)
        );
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
                "used twice",
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
            (
                r#"[{"id":"a","token":"0123456789abcdef","routes":[{"service":"pg","tcp":"nowhere"}]}]"#,
                "nowhere",
            ),
        ] {
            let said = why(text);
            assert!(said.contains(part), "{part} is missing from {said}");
            assert!(!said.contains(token), "{said}");
        }
    }
}

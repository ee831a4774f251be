//! Where registrations and certificates of pairs are kept, and what an agent keeps.

use std::sync::Arc;

use culvert_pair::{KubeAccess, SecretStore, Stored};

use super::reader::Reader;
use crate::mirror::Mirror;

/// How an agent's Secret is called where nothing else is said: with `-state` behind it.
const AGENT_PREFIX: &str = "culvert-agent";

/// File in a pod that names its namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Where a broker keeps what it got.
pub struct StateAt {
    /// Its bootstrap key, and its certificate unless that stays in memory.
    pub store: Option<Arc<Stored>>,
    /// The certificate is kept there too.
    pub keeps: bool,
}

impl Reader {
    /// The Secret that keeps the state directory, which is filled from it.
    pub(super) fn mirror(&mut self) -> Option<Arc<Mirror>> {
        let value = self.layers.get("state-secret").cloned()?;
        let Some(dir) = self.path("state-dir") else {
            self.problem(&value, "needs --state-dir, which an emptyDir may be");
            return None;
        };
        let pod = KubeAccess::in_cluster();
        let server = self.layers.get("kube-api").map(|it| it.text.clone());
        let access = KubeAccess {
            server: server.unwrap_or(pod.server),
            ca_file: self.path("kube-ca-file").unwrap_or(pod.ca_file),
            token_file: self.path("kube-token-file").unwrap_or(pod.token_file),
        };
        let (namespace, prefix) = value
            .text
            .split_once('/')
            .unwrap_or((&value.text, AGENT_PREFIX));
        let mirror = match SecretStore::of_agent(&access, namespace, prefix) {
            Ok(store) => Arc::new(Mirror::new(store, dir)),
            Err(why) => {
                self.problem(&value, format_args!("is no place for state: {why}"));
                return None;
            }
        };
        match filled(&mirror) {
            Ok(()) => Some(mirror),
            Err(why) => {
                self.problem(&value, format_args!("cannot be read: {why}"));
                None
            }
        }
    }

    pub(super) fn store(&mut self, name: &str) -> Option<Arc<Stored>> {
        let value = self.layers.get(name).cloned()?;
        match Stored::open(&value.text) {
            Ok(store) => Some(Arc::new(store)),
            Err(why) => {
                self.layers.problems.push(format!("{}: {why}", value.from));
                None
            }
        }
    }

    /// `file:DIR`, `secret[:NAMESPACE]`, `memory`, or `memory:` and one of the others, which then
    /// holds the bootstrap key alone.
    pub(super) fn state(&mut self) -> Option<StateAt> {
        let value = self.layers.get("state").cloned()?;
        let (keeps, rest) = match value.text.split_once(':') {
            Some(("memory", rest)) => (false, rest.to_owned()),
            None if value.text == "memory" => {
                return Some(StateAt {
                    store: None,
                    keeps: false,
                });
            }
            _ => (true, value.text.clone()),
        };
        let place = match rest.as_str() {
            "secret" => match std::fs::read_to_string(NAMESPACE_FILE) {
                Ok(namespace) => format!("secret:{}", namespace.trim()),
                Err(why) => {
                    let text = format!(
                        "names no namespace and this is no pod ({NAMESPACE_FILE}: {why}); write secret:NAMESPACE or file:DIR"
                    );
                    self.problem(&value, text);
                    return None;
                }
            },
            _ => rest,
        };
        match Stored::open(&place) {
            Ok(store) => Some(StateAt {
                store: Some(Arc::new(store)),
                keeps,
            }),
            Err(why) => {
                self.problem(&value, format_args!("is no place for state: {why}"));
                None
            }
        }
    }
}

/// Before there is a runtime, on a thread of its own: whoever reads a configuration may have one.
fn filled(mirror: &Mirror) -> Result<(), String> {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build();
        let runtime = runtime.map_err(|why| why.to_string())?;
        let fetched = runtime.block_on(mirror.fetch());
        fetched.map_err(|why| why.to_string())
    };
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|_| Err("a defect of ours".to_owned()))
}

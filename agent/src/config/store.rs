//! Where registrations and certificates of pairs are kept.

use std::sync::Arc;

use culvert_pair::Stored;

use super::reader::Reader;

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

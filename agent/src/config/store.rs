//! Where registrations and certificates of pairs are kept.

use std::path::PathBuf;

use super::reader::Reader;

/// A place that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAt {
    /// Files in this directory.
    File(PathBuf),
    /// Secrets in this namespace of the Kubernetes cluster that this process runs in.
    Secret(String),
}

impl StoreAt {
    /// Parses `file:DIR` or `secret:NAMESPACE`.
    #[must_use]
    pub fn parse(text: &str) -> Option<StoreAt> {
        match text.split_once(':')? {
            ("file", dir) if !dir.is_empty() => Some(StoreAt::File(dir.into())),
            ("secret", namespace) if !namespace.is_empty() => {
                Some(StoreAt::Secret(namespace.to_owned()))
            }
            _ => None,
        }
    }
}

impl Reader {
    pub(super) fn store(&mut self, name: &str) -> Option<StoreAt> {
        let value = self.layers.get(name).cloned()?;
        let parsed = StoreAt::parse(&value.text);
        if parsed.is_none() {
            self.problem(&value, "is neither file:DIR nor secret:NAMESPACE");
        }
        parsed
    }
}

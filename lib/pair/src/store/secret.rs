//! Kubernetes Secrets as a store: one for each document, `<prefix>-<name>`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::kube::{Answer, Api, KubeAccess};
use super::{
    DOCUMENT_BYTES_MAX, DOCUMENTS_MAX, Document, Found, Revision, Store, StoreError,
    check_document_name,
};

/// How Secrets are called where the flag says no prefix.
const PREFIX: &str = "culvert-pair";
/// Tells our Secrets from others.
const LABEL: &str = "app.kubernetes.io/managed-by";
const LABEL_VALUE: &str = "culvert";
/// The key of the document in a Secret of a pair.
const KEY: &str = "pair.json";
/// Secrets of one page: with the longest documents it stays within the bound of an answer.
const PAGE: usize = 8;
/// Longest text by which the API tells where a page went on.
const CONTINUE_BYTES_MAX: usize = 4 << 10;

/// Documents in the Secrets of one namespace.
pub struct SecretStore {
    api: Api,
    namespace: String,
    prefix: String,
    key: &'static str,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, default)]
    items: Vec<Item<'a>>,
    #[serde(default)]
    metadata: ListMeta,
}

#[derive(Deserialize, Default)]
struct ListMeta {
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Item<'a> {
    metadata: ItemMeta,
    #[serde(borrow, default)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct ItemMeta {
    name: String,
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

/// Borrowed, so that the document is in no buffer but those that are wiped.
#[derive(Deserialize, Default)]
struct Data<'a> {
    #[serde(borrow, default, rename = "pair.json", alias = "state.json")]
    document: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    api_version: &'a str,
    kind: &'a str,
    r#type: &'a str,
    metadata: WrittenMeta<'a>,
    data: std::collections::BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMeta<'a> {
    name: &'a str,
    namespace: &'a str,
    labels: std::collections::BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<&'a str>,
}

impl SecretStore {
    /// The store in the Secrets of `namespace` whose names begin with `prefix`.
    ///
    /// # Errors
    /// When a name is none, or the API's CA cannot be read.
    pub fn new(
        access: &KubeAccess,
        namespace: &str,
        prefix: Option<&str>,
    ) -> Result<SecretStore, StoreError> {
        let prefix = prefix.unwrap_or(PREFIX);
        check_document_name(namespace)?;
        check_document_name(prefix)?;
        Ok(SecretStore {
            api: Api::new(access)?,
            namespace: namespace.to_owned(),
            prefix: prefix.to_owned(),
            key: KEY,
        })
    }

    /// As [`SecretStore::new`], for what an agent keeps: the document is `state.json`.
    ///
    /// # Errors
    /// As there.
    pub fn of_agent(
        access: &KubeAccess,
        namespace: &str,
        prefix: &str,
    ) -> Result<SecretStore, StoreError> {
        let store = SecretStore::new(access, namespace, Some(prefix))?;
        Ok(SecretStore {
            key: "state.json",
            ..store
        })
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets", self.namespace)
    }

    fn secret(&self, name: &str) -> Result<String, StoreError> {
        check_document_name(name)?;
        Ok(format!("{}-{name}", self.prefix))
    }

    /// The document in a Secret; none in one that is not of this store.
    fn document(&self, item: Item<'_>) -> Option<Found> {
        let name = item.metadata.name.strip_prefix(&self.prefix)?;
        let name = name.strip_prefix('-')?.to_owned();
        check_document_name(&name).ok()?;
        let Some(encoded) = item.data.document else {
            let why = format!("the Secret has no key {}", self.key);
            let damaged = StoreError::damaged(&name, &why);
            return Some(Err((name, damaged)));
        };
        if encoded.len() > DOCUMENT_BYTES_MAX.div_ceil(3) * 4 {
            let too_long = StoreError::TooLong { name: name.clone() };
            return Some(Err((name, too_long)));
        }
        let Ok(bytes) = STANDARD.decode(encoded.as_bytes()).map(Zeroizing::new) else {
            let damaged = StoreError::damaged(&name, &"not base64");
            return Some(Err((name, damaged)));
        };
        let revision = Revision(item.metadata.resource_version);
        Some(Ok(Document {
            name,
            bytes,
            revision,
        }))
    }

    fn conflict(&self, name: &str) -> StoreError {
        StoreError::Conflict {
            place: self.place(),
            name: name.to_owned(),
        }
    }

    fn parse<'a, T: Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T, StoreError> {
        serde_json::from_slice(&answer.body).map_err(|why| {
            // The parser's own words may quote the Secret.
            let at = format!("line {} column {}", why.line(), why.column());
            self.api
                .broken(format!("an answer that is no Secret: {at}"))
        })
    }
}

impl Store for SecretStore {
    fn place(&self) -> String {
        format!("secret:{}/{}", self.namespace, self.prefix)
    }

    async fn all(&self) -> Result<Vec<Found>, StoreError> {
        let selector = percent(&format!("{LABEL}={LABEL_VALUE}"));
        let first = format!("{}?labelSelector={selector}&limit={PAGE}", self.path());
        let (mut path, mut documents) = (first.clone(), Vec::new());
        // One page more than full ones: the API may give short pages, but not for ever.
        for _ in 0..=DOCUMENTS_MAX {
            let answer = self.api.ask(Method::GET, &path, None).await?;
            if answer.status != StatusCode::OK {
                let what = format!("a list of the Secrets in {}", self.namespace);
                return Err(self.api.refused(what, &answer));
            }
            let list: List<'_> = self.parse(&answer)?;
            for item in list.items {
                documents.extend(self.document(item));
            }
            if documents.len() > DOCUMENTS_MAX {
                break;
            }
            match list.metadata.next {
                Some(next) if !next.is_empty() && next.len() <= CONTINUE_BYTES_MAX => {
                    path = format!("{first}&continue={}", percent(&next));
                }
                _ => return Ok(documents),
            }
        }
        let place = self.place();
        Err(StoreError::TooMany { place })
    }

    async fn read(&self, name: &str) -> Result<Option<Document>, StoreError> {
        let secret = self.secret(name)?;
        let path = format!("{}/{secret}", self.path());
        let answer = self.api.ask(Method::GET, &path, None).await?;
        match answer.status {
            StatusCode::OK => {
                let item: Item<'_> = self.parse(&answer)?;
                self.document(item).transpose().map_err(|(_, why)| why)
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self
                .api
                .refused(format!("reading the Secret {secret}"), &answer)),
        }
    }

    async fn write(
        &self,
        name: &str,
        bytes: &[u8],
        expected: Option<&Revision>,
    ) -> Result<Revision, StoreError> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            let name = name.to_owned();
            return Err(StoreError::TooLong { name });
        }
        let secret = self.secret(name)?;
        let encoded = Zeroizing::new(STANDARD.encode(bytes));
        let body = Written {
            api_version: "v1",
            kind: "Secret",
            r#type: "Opaque",
            metadata: WrittenMeta {
                name: &secret,
                namespace: &self.namespace,
                labels: [(LABEL, LABEL_VALUE)].into(),
                resource_version: expected.map(|revision| revision.0.as_str()),
            },
            data: [(self.key, encoded.as_str())].into(),
        };
        let mut json = Zeroizing::new(Vec::with_capacity(encoded.len() + 1_024));
        serde_json::to_writer(&mut *json, &body).expect("a Secret of strings goes into memory");
        let (method, path) = match expected {
            Some(_) => (Method::PUT, format!("{}/{secret}", self.path())),
            None => (Method::POST, self.path()),
        };
        let answer = self.api.ask(method, &path, Some(json)).await?;
        match answer.status {
            StatusCode::OK | StatusCode::CREATED => {
                let item: Item<'_> = self.parse(&answer)?;
                Ok(Revision(item.metadata.resource_version))
            }
            StatusCode::CONFLICT => Err(self.conflict(name)),
            StatusCode::NOT_FOUND if expected.is_some() => Err(self.conflict(name)),
            _ => Err(self
                .api
                .refused(format!("writing the Secret {secret}"), &answer)),
        }
    }

    async fn erase(&self, name: &str, expected: &Revision) -> Result<(), StoreError> {
        let secret = self.secret(name)?;
        let path = format!("{}/{secret}", self.path());
        let body = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions",
            "preconditions": {"resourceVersion": expected.0},
        });
        let body = Zeroizing::new(body.to_string().into_bytes());
        let answer = self.api.ask(Method::DELETE, &path, Some(body)).await?;
        match answer.status {
            StatusCode::OK | StatusCode::ACCEPTED => Ok(()),
            StatusCode::CONFLICT | StatusCode::NOT_FOUND => Err(self.conflict(name)),
            _ => Err(self
                .api
                .refused(format!("deleting the Secret {secret}"), &answer)),
        }
    }
}

/// A text as a part of a query.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

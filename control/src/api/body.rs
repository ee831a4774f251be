//! Reading what a request carries: bodies, queries, ids; and pages of answers.

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_proto::id::ClusterId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Field;
use super::{Problem, kind};

/// Longest request body in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest page.
pub const PAGE_MAX: usize = 1_000;
const PAGE_DEFAULT: usize = 100;

/// A JSON body; an empty one counts as `{}`.
pub(super) struct Json<T>(pub T);
/// A query; unknown parameters are refused.
pub(super) struct Params<T>(pub T);
/// The cluster id in a path.
pub(super) struct Id(pub ClusterId);

/// Which page is asked for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageParams {
    /// Items at most, 1 to 1,000; 100 by default.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// One page of a list.
#[derive(Serialize, ToSchema)]
pub(super) struct Page<T> {
    items: Vec<T>,
    /// Cursor of the next page; null on the last one.
    next: Option<String>,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|it| it.to_str().ok());
        let is_json = kind.is_some_and(|kind| {
            kind.split(';')
                .next()
                .is_some_and(|it| it.trim().eq_ignore_ascii_case("application/json"))
        });
        let seen = kind.unwrap_or("no Content-Type").to_owned();
        let body = to_bytes(request.into_body(), BODY_BYTES_MAX)
            .await
            .map_err(|why| {
                let fix = format!("send at most {BODY_BYTES_MAX} bytes");
                Problem::new(&kind::BODY_TOO_LARGE, why.to_string(), fix)
            })?;
        if body.is_empty() {
            return parse(b"{}");
        }
        if !is_json {
            let fix = "send Content-Type: application/json";
            return Err(Problem::new(&kind::NOT_JSON, seen, fix));
        }
        parse(&body)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<Json<T>, Problem> {
    use serde_json::error::Category;
    serde_json::from_slice(body)
        .map(Json)
        .map_err(|why| match why.classify() {
            Category::Data => of_data(&why.to_string()),
            Category::Io | Category::Syntax | Category::Eof => {
                Problem::new(&kind::BAD_JSON, why.to_string(), "send one JSON object")
            }
        })
}

/// A value of the wrong kind, or a field nobody knows.
pub(super) fn of_data(why: &str) -> Problem {
    let named = why.split('`').nth(1).filter(|_| why.contains("field"));
    Problem::fields(vec![Field {
        field: named.unwrap_or("body").to_owned(),
        why: why.to_owned(),
    }])
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(why) => Err(of_data(&why.body_text())),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Named {
            id: String,
        }
        let Path(Named { id }) = Path::<Named>::from_request_parts(parts, state)
            .await
            .map_err(|why| Problem::field("id", why.body_text()))?;
        cluster_id(&id).map(Self)
    }
}

/// A cluster id, or what is wrong with it.
pub(super) fn cluster_id(text: &str) -> Result<ClusterId, Problem> {
    text.parse()
        .map_err(|why: culvert_proto::id::IdError| Problem::field("id", why.to_string()))
}

impl PageParams {
    pub(super) fn new(limit: Option<usize>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// The page of `items`, which come in the order of their keys.
    pub(super) fn page<T>(
        &self,
        items: impl Iterator<Item = (String, T)>,
    ) -> Result<Page<T>, Problem> {
        let limit = self.limit.unwrap_or(PAGE_DEFAULT);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Problem::field(
                "limit",
                format!("is {limit}; 1 to {PAGE_MAX} are allowed"),
            ));
        }
        let after = self.cursor.as_deref().map(decode).transpose()?;
        let mut rest =
            items.skip_while(|(key, _)| after.as_ref().is_some_and(|after| key <= after));
        let mut last = None;
        let mut page = Vec::new();
        for (key, item) in rest.by_ref().take(limit) {
            page.push(item);
            last = Some(key);
        }
        let more = rest.next().is_some();
        let next = last.filter(|_| more).map(|key| URL_SAFE_NO_PAD.encode(key));
        Ok(Page { items: page, next })
    }
}

fn decode(cursor: &str) -> Result<String, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    let key = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    key.ok_or_else(|| Problem::field("cursor", "is none that this API gave"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(limit: usize, cursor: Option<String>) -> PageParams {
        PageParams {
            limit: Some(limit),
            cursor,
        }
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let items = || (0..25).map(|n| (format!("k{n:02}"), n));
        let (mut cursor, mut seen) = (None, Vec::new());
        loop {
            let page = params(10, cursor).page(items()).ok().unwrap();
            seen.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, (0..25).collect::<Vec<_>>());
        assert!(
            params(10, None)
                .page(items().take(10))
                .ok()
                .unwrap()
                .next
                .is_none()
        );
        for wrong in [
            params(0, None),
            params(1001, None),
            params(1, Some("%".into())),
        ] {
            assert_eq!(wrong.page(items()).err().unwrap().code(), "bad_field");
        }
    }
}

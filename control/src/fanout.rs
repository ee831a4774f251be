//! One question to many clusters at once, as the person who asks, through the data plane.

mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_net::dial::HubUrl;
use culvert_proto::id::ClusterId;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::outbound::{Conversation, Outbound, OutboundError};

pub use verdict::{Health, Verdict};

/// Clusters that are asked at the same time.
pub const IN_FLIGHT_MAX: usize = 64;
/// Longest wait for one cluster.
pub const EACH_MAX: Duration = Duration::from_secs(2);
/// Longest answer of one cluster, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Answers of all clusters together, in bytes.
pub const ALL_BYTES_MAX: usize = 16 << 20;
const TOTAL_STEP: Duration = Duration::from_millis(200);
const TOTAL_MAX: Duration = Duration::from_secs(8);
/// The data plane's code of an error of its own.
const CODE: HeaderName = HeaderName::from_static("culvert-error");

/// Where the clusters are asked.
pub struct Fanout {
    url: HubUrl,
    /// The name that people ask by, which the data plane wants of a session.
    host: Option<HeaderValue>,
    outbound: Outbound,
}

/// What a cluster is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whom.
    pub cluster: ClusterId,
    /// GET or HEAD.
    pub method: Method,
    /// Path and query behind `/c/{cluster}`.
    pub path: String,
}

/// The credential of the person who asks, as they sent it: `Cookie` or `Authorization`.
#[derive(Clone)]
pub struct Credential(pub HeaderName, pub HeaderValue);

/// An answer of a cluster, or of the data plane in its place.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of the answer.
    pub status: StatusCode,
    /// The code of the data plane's or the agent's own error.
    pub code: Option<String>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The cluster.
    #[error("no answer within {} s", EACH_MAX.as_secs())]
    Late,
    /// The page's time was over before its turn came, or in the middle of it.
    #[error("not asked to the end: the page's time was over")]
    OutOfTime,
    /// The others' answers filled the page.
    #[error("left out: the answers together exceed {} MiB", ALL_BYTES_MAX >> 20)]
    PageFull,
    /// It is there, and says too much.
    #[error("left out: the answer is longer than {} KiB", ANSWER_BYTES_MAX >> 10)]
    TooLong,
    /// The data plane, or what it sent.
    #[error("{0}")]
    Outbound(String),
}

/// How long all of `clusters` may take: 2 s and 200 ms for each, 8 s at most (P-06).
#[must_use]
pub fn total(clusters: usize) -> Duration {
    let steps = u32::try_from(clusters).unwrap_or(u32::MAX);
    let all = TOTAL_STEP.saturating_mul(steps).saturating_add(EACH_MAX);
    all.min(TOTAL_MAX)
}

impl Fanout {
    /// Asks by way of the data plane at `url`, whose name for people is that of `public_url`.
    #[must_use]
    pub fn new(url: HubUrl, public_url: Option<&str>, outbound: Outbound) -> Self {
        let public = public_url.and_then(|url| url.parse::<Uri>().ok());
        let host = public.and_then(|url| HeaderValue::from_str(url.authority()?.as_str()).ok());
        Self {
            url,
            host,
            outbound,
        }
    }

    /// Asks all of them; an answer for each, in their order. One cluster's silence costs the
    /// others nothing but one of [`IN_FLIGHT_MAX`] places for [`EACH_MAX`].
    pub async fn ask(
        self: &Arc<Self>,
        credential: &Credential,
        questions: Vec<Question>,
    ) -> Vec<Result<Answer, Missing>> {
        let count = questions.len();
        let deadline = Instant::now() + total(count);
        let answers = vec![Err(Missing::OutOfTime); count];
        let round = Arc::new(Round {
            fanout: self.clone(),
            credential: credential.clone(),
            questions: Mutex::new(questions.into_iter().enumerate()),
            answers: Mutex::new(answers),
            bytes: AtomicUsize::new(0),
        });
        let mut askers = JoinSet::new();
        for _ in 0..count.min(IN_FLIGHT_MAX) {
            let round = round.clone();
            askers.spawn(async move { round.work().await });
        }
        // Those that are late are dropped with the set.
        let _ = timeout_at(deadline, askers.join_all()).await;
        let mut answers = round.answers.lock();
        std::mem::take(&mut *answers)
    }
}

/// One fan-out.
struct Round {
    fanout: Arc<Fanout>,
    credential: Credential,
    questions: Mutex<std::iter::Enumerate<std::vec::IntoIter<Question>>>,
    answers: Mutex<Vec<Result<Answer, Missing>>>,
    bytes: AtomicUsize,
}

impl Round {
    /// One place of [`IN_FLIGHT_MAX`]: asks one cluster after another on one connection.
    async fn work(&self) {
        let mut conversation = None;
        loop {
            let Some((at, question)) = self.questions.lock().next() else {
                return;
            };
            let asked = timeout(EACH_MAX, self.one(&mut conversation, &question)).await;
            let answer = match asked {
                Ok(Ok(answer)) => self.fitting(answer),
                Ok(Err(why)) => {
                    conversation = None;
                    Err(match why {
                        OutboundError::TooLong { .. } => Missing::TooLong,
                        why => Missing::Outbound(why.to_string()),
                    })
                }
                // What is on its way there would be taken for the next answer.
                Err(_) => {
                    conversation = None;
                    Err(Missing::Late)
                }
            };
            if let Some(slot) = self.answers.lock().get_mut(at) {
                *slot = answer;
            }
        }
    }

    async fn one(
        &self,
        conversation: &mut Option<Conversation>,
        question: &Question,
    ) -> Result<Answer, OutboundError> {
        if let Some(open) = conversation.as_mut().filter(|open| open.is_open()) {
            let answer = open.send(self.request(question), ANSWER_BYTES_MAX).await;
            // The other side may have closed it meanwhile; a read may be asked twice.
            if open.is_open() || answer.is_ok() {
                return answer.map(Answer::of);
            }
        }
        let fanout = &self.fanout;
        let open = conversation.insert(fanout.outbound.converse(&fanout.url).await?);
        let answer = open.send(self.request(question), ANSWER_BYTES_MAX).await;
        answer.map(Answer::of)
    }

    fn request(&self, question: &Question) -> Request<Vec<u8>> {
        let mut request = Request::new(Vec::new());
        *request.method_mut() = question.method.clone();
        // Both parts were checked: an id, and the path of a request that was parsed.
        let path = format!("/c/{}{}", question.cluster, question.path);
        *request.uri_mut() = path.parse().unwrap_or_default();
        let Credential(name, value) = &self.credential;
        request.headers_mut().insert(name.clone(), value.clone());
        if let Some(host) = &self.fanout.host {
            request
                .headers_mut()
                .insert(http::header::HOST, host.clone());
        }
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(http::header::ACCEPT, json);
        request
    }

    fn fitting(&self, answer: Answer) -> Result<Answer, Missing> {
        let size = answer.body.len();
        if self.bytes.fetch_add(size, Ordering::Relaxed) + size > ALL_BYTES_MAX {
            return Err(Missing::PageFull);
        }
        Ok(answer)
    }
}

impl Answer {
    fn of(response: Response<Vec<u8>>) -> Self {
        let (head, body) = response.into_parts();
        let code = head.headers.get(CODE);
        let code = code.and_then(|code| code.to_str().ok());
        Self {
            status: head.status,
            code: code.map(ToOwned::to_owned),
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_page_grows_with_its_clusters_to_eight_seconds() {
        for (clusters, ms) in [(0, 2_000), (1, 2_200), (30, 8_000), (31, 8_000)] {
            assert_eq!(total(clusters), Duration::from_millis(ms), "{clusters}");
        }
        assert_eq!(total(usize::MAX), TOTAL_MAX);
    }
}

//! Control's end of the link.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::update::Report;
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::accept::{self, LinkInfo};
use crate::feed::{Feed, Position};
use crate::generated::state_server::{State, StateServer};
use crate::generated::{AuditAck, AuditBatch, Certified, CertifyRequest, StateMessage, Up};

pub use crate::accept::Access;

/// Data planes connected at once; further ones are refused.
pub const DATAPLANES_MAX: usize = 256;
/// Longest report of a data plane in bytes: 10,000 sessions fit.
pub const REPORT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Audit records in one batch.
pub const AUDIT_RECORDS_MAX: usize = 4_096;
/// A quiet link carries a beat this often.
pub(crate) const BEAT: Duration = Duration::from_secs(5);
/// A peer that answers no ping for this long is cut; it comes back and resumes.
pub(crate) const DEAD: Duration = Duration::from_secs(10);
const FIRST_UP_DEADLINE: Duration = Duration::from_secs(5);
/// Calls at once on one connection.
const CALLS_MAX: u32 = 4;

/// One subscription of one data plane; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What control offers to its data planes.
pub trait Hub: Send + Sync + 'static {
    /// The state to send.
    fn feed(&self) -> &Feed;
    /// A data plane subscribed; `peer` says who it is, for people.
    fn opened(&self, link: LinkId, peer: &str);
    /// A data plane holds `generation` and, unless it only acknowledges, says what it saw.
    fn report(&self, link: LinkId, generation: Generation, report: Option<Report>);
    /// The subscription ended.
    fn closed(&self, link: LinkId);
    /// Takes audit records for good, in order; of those it has already, none twice.
    fn audit(&self, records: &[Bytes]) -> impl Future<Output = Result<(), NotTaken>> + Send;
    /// Signs a request (PKCS#10) for a certificate: of an agent of `cluster`, or of the data
    /// plane's listener of agents.
    fn certify(
        &self,
        cluster: Option<ClusterId>,
        csr: &[u8],
    ) -> impl Future<Output = Result<Vec<u8>, NotCertified>> + Send;
}

/// No certificate was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCertified {
    /// Nor will it be, if asked the same again.
    #[error("{0}")]
    Refused(String),
    /// Not now; ask again.
    #[error("{0}")]
    Later(String),
}

/// Audit records are not in the store; the data plane keeps them and sends them again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotTaken(pub String);

/// Serves `hub` to data planes until `stop` resolves; open links end with it.
///
/// # Errors
/// What the transport says when it cannot go on.
pub async fn serve<H: Hub>(
    hub: Arc<H>,
    access: Access,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    // Links hold the receiver: they end when this future ends, however it ends.
    let (_serving, stopped) = watch::channel(());
    let links = AtomicU64::new(1);
    let service = StateServer::new(Service {
        hub,
        links,
        stopped,
    })
    .max_decoding_message_size(REPORT_BYTES_MAX);
    let incoming = accept::incoming(access);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(BEAT))
        .http2_keepalive_timeout(Some(DEAD))
        .max_concurrent_streams(CALLS_MAX)
        .add_service(service)
        .serve_with_incoming(incoming);
    tokio::select! {
        ended = serving => ended,
        () = stop => Ok(()),
    }
}

struct Service<H> {
    hub: Arc<H>,
    links: AtomicU64,
    stopped: watch::Receiver<()>,
}

/// One subscription; its drop tells the hub.
struct Link<H: Hub> {
    hub: Arc<H>,
    id: LinkId,
    inbound: Streaming<Up>,
    news: watch::Receiver<u64>,
    stopped: watch::Receiver<()>,
    position: Position,
    beat: Interval,
}

type Down = Pin<Box<dyn Stream<Item = Result<StateMessage, Status>> + Send>>;
type Acks = Pin<Box<dyn Stream<Item = Result<AuditAck, Status>> + Send>>;

/// One call that brings audit records.
struct Taking<H> {
    hub: Arc<H>,
    inbound: Streaming<AuditBatch>,
    stopped: watch::Receiver<()>,
}

#[tonic::async_trait]
impl<H: Hub> State for Service<H> {
    type SubscribeStream = Down;

    async fn subscribe(&self, call: Request<Streaming<Up>>) -> Result<Response<Down>, Status> {
        let peer = call
            .extensions()
            .get::<LinkInfo>()
            .map_or("unknown", |info| &*info.peer);
        let peer = peer.to_owned();
        let mut inbound = call.into_inner();
        let first = timeout(FIRST_UP_DEADLINE, inbound.message()).await;
        let Ok(Ok(Some(first))) = first else {
            return Err(Status::deadline_exceeded("no first message within 5 s"));
        };
        let id = LinkId(self.links.fetch_add(1, Ordering::Relaxed));
        self.hub.opened(id, &peer);
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let feed = self.hub.feed();
        let mut link = Link {
            hub: self.hub.clone(),
            id,
            inbound,
            news: feed.news(),
            stopped: self.stopped.clone(),
            position: feed.position(&first.hub_id, Generation(first.generation)),
            beat,
        };
        link.take(&first)?;
        let down = stream::unfold(link, |mut link| async move {
            let message = link.next().await?;
            Some((message, link))
        });
        Ok(Response::new(Box::pin(down)))
    }

    type AuditStream = Acks;

    async fn audit(&self, call: Request<Streaming<AuditBatch>>) -> Result<Response<Acks>, Status> {
        let taking = Taking {
            hub: self.hub.clone(),
            inbound: call.into_inner(),
            stopped: self.stopped.clone(),
        };
        // After a refusal the call is over: what came behind it may not be taken first.
        let acks = stream::unfold(Some(taking), |taking| async move {
            let mut taking = taking?;
            let answer = taking.next().await?;
            let goes_on = answer.is_ok().then_some(taking);
            Some((answer, goes_on))
        });
        Ok(Response::new(Box::pin(acks)))
    }

    async fn certify(&self, call: Request<CertifyRequest>) -> Result<Response<Certified>, Status> {
        let CertifyRequest { cluster, csr } = call.into_inner();
        let cluster = match &cluster[..] {
            "" => None,
            id => {
                Some(ClusterId::new(id).map_err(|why| Status::invalid_argument(why.to_string()))?)
            }
        };
        let signed = self.hub.certify(cluster, &csr).await;
        let certificate = signed.map_err(|why| match why {
            NotCertified::Refused(why) => Status::failed_precondition(why),
            NotCertified::Later(why) => Status::unavailable(why),
        })?;
        Ok(Response::new(Certified {
            certificate: certificate.into(),
        }))
    }
}

impl<H: Hub> Taking<H> {
    async fn next(&mut self) -> Option<Result<AuditAck, Status>> {
        let batch = tokio::select! {
            _ = self.stopped.changed() => return None,
            batch = self.inbound.message() => batch.ok()??,
        };
        if batch.records.len() > AUDIT_RECORDS_MAX {
            let seen = batch.records.len();
            let why = format!("{seen} audit records in a batch; at most {AUDIT_RECORDS_MAX}");
            return Some(Err(Status::invalid_argument(why)));
        }
        let taken = self.hub.audit(&batch.records).await;
        let refused = |NotTaken(why)| Status::unavailable(why);
        Some(taken.map(|()| AuditAck { end: batch.end }).map_err(refused))
    }
}

impl<H: Hub> Link<H> {
    async fn next(&mut self) -> Option<Result<StateMessage, Status>> {
        loop {
            if let Some(message) = self.hub.feed().next(&mut self.position) {
                self.beat.reset();
                return Some(Ok(message));
            }
            tokio::select! {
                biased;
                _ = self.stopped.changed() => return None,
                changed = self.news.changed() => changed.ok()?,
                up = self.inbound.message() => {
                    let up = up.ok()??;
                    if let Err(refused) = self.take(&up) {
                        return Some(Err(refused));
                    }
                }
                _ = self.beat.tick() => return Some(Ok(self.hub.feed().beat())),
            }
        }
    }

    fn take(&mut self, up: &Up) -> Result<(), Status> {
        if up.need_snapshot {
            self.position.start_over();
        }
        let report = match &up.report[..] {
            [] => None,
            body => Some(Report::decode(body).map_err(|why| {
                Status::invalid_argument(format!("report cannot be read: {why}"))
            })?),
        };
        self.hub.report(self.id, Generation(up.generation), report);
        Ok(())
    }
}

impl<H: Hub> Drop for Link<H> {
    fn drop(&mut self) {
        self.hub.closed(self.id);
    }
}

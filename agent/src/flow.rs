//! One relayed connection to a service: from the hub's open to its end.
//!
//! A flow on a stream lives and dies with its carrier. One on a data channel has
//! a TCP connection of its own and outlives the session it was opened in.

pub mod leg;
mod mover;

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_engine::Engine;
use culvert_net::carrier::Stream;
use culvert_net::relay::{Early, arm};
use culvert_proto::channel::Form;
use culvert_proto::close::CloseReason;
use culvert_proto::control::Grant;
use culvert_proto::open::{DialAnswer, DialCode, StreamHeader};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::metrics::{AgentMetrics, Datapath};
use crate::services::{Service, Services};
use crate::upstream::dial::DIAL_DEADLINE;

pub use mover::{Mover, PAIRS_MAX};

/// The services and what runs to them.
pub struct Flows {
    services: Services,
    metrics: Arc<AgentMetrics>,
    mover: Arc<Mover>,
}

impl Flows {
    /// Flows to `services`; without an `engine` everything is copied.
    #[must_use]
    pub fn new(services: Services, engine: Option<Engine>, metrics: Arc<AgentMetrics>) -> Self {
        Self {
            services,
            mover: Arc::new(Mover::new(engine, metrics.clone())),
            metrics,
        }
    }

    /// The services.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The instruments.
    #[must_use]
    pub fn metrics(&self) -> &AgentMetrics {
        &self.metrics
    }

    /// What moves the bytes of flows.
    #[must_use]
    pub fn mover(&self) -> &Arc<Mover> {
        &self.mover
    }

    /// Serves a flow on the stream that opened it.
    pub async fn on_stream(&self, header: &StreamHeader, grant: Option<&Grant>, stream: Stream) {
        let dialled = match self.judge(header, grant, None) {
            Ok(service) => self.dial(service, header).await,
            Err(refused) => Err(refused),
        };
        match dialled {
            Ok(service) => self.stay(stream, service, Bytes::new()).await,
            Err(answer) => self.refuse(stream, &answer).await,
        }
    }

    /// The answer on the stream, and the flow behind it.
    pub(crate) async fn stay(&self, stream: Stream, service: TcpStream, to_service: Bytes) {
        let early = Early {
            to_service,
            to_client: DialAnswer::connected().encode(),
        };
        self.mover
            .copy(Datapath::Stream, stream, service, early)
            .await;
    }

    /// Tells why not, on the stream.
    pub(crate) async fn refuse(&self, mut stream: Stream, answer: &DialAnswer) {
        if stream.write_all(&answer.encode()).await.is_ok() {
            let _ = stream.shutdown().await;
        }
    }

    /// The service that `header` asks for, if it may be reached on a channel of `form`, or on a
    /// stream.
    ///
    /// # Errors
    /// The answer that refuses.
    pub(crate) fn judge(
        &self,
        header: &StreamHeader,
        grant: Option<&Grant>,
        form: Option<Form>,
    ) -> Result<&Service, DialAnswer> {
        let judged = self.services.judge(header.target.as_deref(), grant, form);
        judged.inspect_err(|answer| self.refused(header, answer))
    }

    /// Counts and logs a refusal.
    pub(crate) fn refused(&self, header: &StreamHeader, answer: &DialAnswer) {
        let reason = answer.code.close_reason().unwrap_or(CloseReason::Internal);
        self.metrics.stream_refused(reason);
        tracing::debug!(
            code = reason.as_str(),
            seen = answer.reason,
            service = header.target.as_deref(),
            client = header.client_addr.as_deref(),
            "connection not served"
        );
    }

    /// Connects to `service` within the time that the hub waits.
    ///
    /// # Errors
    /// The answer that says what was seen.
    pub(crate) async fn dial(
        &self,
        service: &Service,
        header: &StreamHeader,
    ) -> Result<TcpStream, DialAnswer> {
        let limit = dial_limit(header);
        let began = Instant::now();
        match service.dial(limit).await {
            Ok(tcp) => {
                self.metrics.dialled(began.elapsed());
                // Whatever happens before the relay runs must not look like an end.
                if let Err(why) = arm(tcp.as_fd()) {
                    tracing::debug!(%why, "a connection to the service cannot be armed");
                }
                Ok(tcp)
            }
            Err(why) => {
                self.metrics.upstream_failed(why.reason);
                let answer = DialAnswer {
                    code: dial_code(why.reason),
                    reason: format!(
                        "service {:?}: {}; {}",
                        service.name(),
                        why.detail,
                        remedy(why.reason)
                    ),
                };
                self.refused(header, &answer);
                Err(answer)
            }
        }
    }
}

/// How long the hub waits for the service.
pub(crate) fn dial_limit(header: &StreamHeader) -> Duration {
    let asked = header.dial_deadline_ms.map(u64::from);
    asked.map_or(DIAL_DEADLINE, Duration::from_millis)
}

pub(crate) fn dial_code(reason: CloseReason) -> DialCode {
    match reason {
        CloseReason::TargetNotAllowed => DialCode::NotAllowed,
        CloseReason::AgentDraining => DialCode::Draining,
        CloseReason::DialRefused => DialCode::Refused,
        CloseReason::DialTimeout => DialCode::Timeout,
        CloseReason::DialUnreachable => DialCode::Unreachable,
        CloseReason::DialName => DialCode::Name,
        CloseReason::TargetTls => DialCode::Tls,
        _ => DialCode::Overload,
    }
}

fn remedy(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::DialRefused => "see that it runs and listens there",
        CloseReason::DialTimeout => {
            "look at its load and at the firewalls between it and the agent"
        }
        CloseReason::DialUnreachable => "look at the agent's routes and network policy",
        CloseReason::DialName => "look at the agent's DNS, or give --service an address",
        _ => "look at the agent's log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_code_that_the_hub_reads_it_from() {
        for code in (1..=8).filter_map(DialCode::from_u8) {
            let reason = code.close_reason().unwrap();
            assert_eq!(dial_code(reason), code, "{reason}");
        }
        assert_eq!(dial_code(CloseReason::TooManyStreams), DialCode::Overload);
    }
}

//! The bridge's side of a pair: what meets us is let in, by TLS, and served.

use std::sync::Arc;
use std::time::Duration;

use culvert_mux::Budget;
use culvert_net::carrier::{Carrier, CarrierConfig, CarrierEnd, Driver, Incoming, carrier};
use culvert_net::introduction::Link;
use culvert_net::relay::{Early, End as _, arm};
use culvert_net::socket::set_carrier_options;
use culvert_net::tls::pair::PairTlsError;
use culvert_proto::close::CloseReason;
use culvert_proto::control::{AgentFacts, Grant};
use culvert_proto::hello::Caps;
use culvert_proto::open::{DialAnswer, StreamHeader, StreamKind};
use culvert_proto::pair::ALPN_PAIR_RAW;
use culvert_proto::session::{self, Role};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::aloud::Aloud;
use super::party::Party;
use super::{Joined, SERVICE, grant};
use crate::flow::{Flows, dial_code};
use crate::metrics::{Datapath, PairForm, PairStep};

/// Handshakes at once; more wait.
const HANDSHAKES_MAX: usize = 64;
/// Pairs that stand at once, of all brokers; one more is ended before its handshake.
pub const PAIRS_MAX: usize = 4096;
/// Longest wait until the broker has heard that this bridge leaves.
const CROSSING: Duration = Duration::from_secs(1);

/// From the end of the last stream to ours: the broker's readers take the last bytes.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(200);

/// Serves pairs.
pub(super) struct Welcome {
    flows: Arc<Flows>,
    grant: Grant,
    budget: Arc<Budget>,
    streams_max: u32,
    /// Connections to the service, of all pairs.
    slots: Arc<Semaphore>,
    handshakes: Semaphore,
    pairs: Arc<Semaphore>,
    aloud: Aloud,
    running: TaskTracker,
    retire: CancellationToken,
}

impl Welcome {
    pub(super) fn new(flows: Arc<Flows>, budget: Arc<Budget>, streams_max: u32) -> Welcome {
        Welcome {
            flows,
            grant: grant(),
            budget,
            streams_max,
            slots: Arc::new(Semaphore::new(streams_max as usize)),
            handshakes: Semaphore::new(HANDSHAKES_MAX),
            pairs: Arc::new(Semaphore::new(PAIRS_MAX)),
            aloud: Aloud::default(),
            running: TaskTracker::new(),
            retire: CancellationToken::new(),
        }
    }

    /// Serves a connection in a task of its own.
    pub(super) fn take(self: &Arc<Self>, link: Link<TcpStream>, party: Arc<Party>, known: bool) {
        let Ok(place) = self.pairs.clone().try_acquire_owned() else {
            tracing::warn!(PAIRS_MAX, "too many pairs stand; one more is ended");
            return;
        };
        let welcome = self.clone();
        self.running.spawn(async move {
            welcome.serve(link, &party, known).await;
            drop(place);
        });
    }

    /// Takes nothing new; what runs goes on.
    pub(super) fn retire(&self) {
        self.retire.cancel();
        self.running.close();
    }

    /// After [`Welcome::retire`]: waits until every pair has ended.
    pub(super) async fn idle(&self) {
        self.running.wait().await;
    }

    /// Resets what still runs.
    pub(super) fn cut(&self) {
        self.flows.mover().cut();
    }

    async fn serve(self: &Arc<Self>, link: Link<TcpStream>, party: &Party, known: bool) {
        let handshake = async {
            let _place = self.handshakes.acquire().await;
            match &party.boot {
                None => Box::pin(party.tls.handshake(link))
                    .await
                    .map(|it| (it, false)),
                Some(boot) => Box::pin(party.tls.handshake_or(&boot.tls, link)).await,
            }
        };
        let (mut stream, is_boot) = match handshake.await {
            Ok(met) => met,
            Err(why) => return self.refused(&why, known),
        };
        let boot = party.boot.as_deref().filter(|_| is_boot);
        if let Some(issuer) = &boot.unwrap_or(party).issuer {
            if let Err(why) = issuer.serve(&mut stream).await {
                self.flows.metrics().pair().failed(PairStep::Boot);
                tracing::warn!(%why, "a broker got no certificate");
                stream.hangup().demand();
            }
            return;
        }
        if stream.alpn() == Some(ALPN_PAIR_RAW) {
            self.raw(stream).await;
        } else {
            self.mux(stream).await;
        }
    }

    /// At a listener anybody may knock; at a relay or a broker that was dialled it was one of ours.
    fn refused(&self, why: &PairTlsError, known: bool) {
        self.flows.metrics().pair().failed(PairStep::Handshake);
        let matters = matches!(
            why,
            PairTlsError::Refused(_) | PairTlsError::RefusedByPeer(_)
        );
        if known && matters && self.aloud.now("broker", &why.to_string()).is_some() {
            tracing::warn!(%why, "a broker was not let in");
        } else {
            tracing::debug!(%why, "a broker was not let in");
        }
    }

    /// One connection.
    async fn raw(&self, stream: Joined) {
        let metrics = self.flows.metrics();
        let _stands = metrics.pair().stands(PairForm::Raw);
        // Whatever happens before the service is reached must not look like its end.
        if stream.socket().is_none_or(|socket| arm(socket).is_err()) {
            return;
        }
        let Ok(_slot) = self.slots.try_acquire() else {
            metrics.stream_refused(CloseReason::TooManyStreams);
            let most = self.streams_max;
            self.unserved(&format!(
                "the bridge serves {most} connections already (--max-conns)"
            ));
            return;
        };
        let header = StreamHeader {
            target: Some(Arc::from(SERVICE)),
            ..StreamHeader::new(StreamKind::Tcp)
        };
        let judged = self.flows.judge(&header, Some(&self.grant), None);
        let Ok(service) = judged else {
            return;
        };
        match self.flows.dial(service, &header).await {
            Ok(service) => {
                let mover = self.flows.mover();
                mover
                    .copy(Datapath::Copy, stream, service, Early::default())
                    .await;
            }
            Err(answer) => self.unserved(&answer.reason),
        }
    }

    /// Where a connection is a pair, this is the only place that can say why there was none.
    fn unserved(&self, seen: &str) {
        match self.aloud.now("service", seen) {
            Some(kept_back) => tracing::warn!(seen, kept_back, "a connection was not served"),
            None => tracing::debug!(seen, "a connection was not served"),
        }
    }

    /// All connections of a broker.
    async fn mux(self: &Arc<Self>, stream: Joined) {
        if let Some(Err(why)) = stream.socket().map(|socket| set_carrier_options(&socket)) {
            tracing::debug!(%why, "a pair ended before it began");
            return;
        }
        let _stands = self.flows.metrics().pair().stands(PairForm::Mux);
        let facts = AgentFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            targets: vec![SERVICE.to_owned()],
            streams_max: Some(self.streams_max),
            region: String::new(),
            labels: Vec::new(),
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        };
        let mut config = CarrierConfig::native(Role::Agent(facts), session_config());
        config.mux.streams_max = self.streams_max;
        config.hangup = stream.hangup();
        let (carrier, driver) = carrier(stream, config, self.budget.clone());
        tracing::info!("a pair stands");
        let end = self.streams(carrier, driver).await;
        self.flows.metrics().pair().ended(end.reason.as_str());
        tracing::info!(
            code = end.reason.as_str(),
            seen = end.detail,
            "the pair ended"
        );
    }

    async fn streams(self: &Arc<Self>, carrier: Carrier, driver: Driver<Joined>) -> CarrierEnd {
        let mut driver = tokio::spawn(driver);
        let mut left = false;
        let ended = loop {
            tokio::select! {
                end = &mut driver => break end,
                Some(incoming) = carrier.accept() => self.stream(incoming),
                Some(event) = carrier.event() => tracing::trace!(?event, "the broker said"),
                () = self.retire.cancelled(), if !left => {
                    left = true;
                    carrier.retire();
                    let leaving = carrier.clone();
                    tokio::spawn(async move {
                        let _ = timeout(CROSSING, leaving.heard()).await;
                        leaving.idle().await;
                        sleep(LAST_WORDS).await;
                        leaving.close(CloseReason::AgentDraining);
                    });
                }
            }
        };
        ended.unwrap_or_else(|why| CarrierEnd {
            reason: CloseReason::Internal,
            detail: why.to_string(),
        })
    }

    fn stream(self: &Arc<Self>, incoming: Incoming) {
        let Incoming { header, stream } = incoming;
        let Some(header) = header.filter(|header| header.kind == StreamKind::Tcp) else {
            // Dropped is reset.
            return;
        };
        let slot = self.slots.clone().try_acquire_owned();
        let open = self.flows.metrics().open_stream();
        let welcome = self.clone();
        tokio::spawn(async move {
            let flows = &welcome.flows;
            match &slot {
                Ok(_) => flows.on_stream(&header, Some(&welcome.grant), stream).await,
                Err(_) => {
                    let most = welcome.streams_max;
                    let answer = DialAnswer {
                        code: dial_code(CloseReason::TooManyStreams),
                        reason: format!(
                            "the bridge serves {most} connections already (--max-conns)"
                        ),
                    };
                    flows.refused(&header, &answer);
                    flows.refuse(stream, &answer).await;
                }
            }
            drop((slot, open));
        });
    }
}

/// Life by BEAT 5/15 s; nothing else of what a hub can do.
pub(super) fn session_config() -> session::Config {
    session::Config {
        caps: Caps::SMALL_WINDOW,
        ..session::Config::default()
    }
}

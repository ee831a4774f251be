//! Keeps connections at every address of every place where the other side may be found.
//!
//! Each name is resolved anew whenever an attempt has ended, so a relay that was added or replaced
//! is found. At an address that works there are as many waiting connections as asked for; at one
//! that does not, a single one tries again with jitter.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_net::crypto::random_bytes;
use culvert_net::dial::{Backoff, Setback};
use culvert_net::introduction::Link;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::aloud::Aloud;
use super::party::Party;
use super::reach::{Failed, Reach};
use super::{CONNECT_MAX, RETRY_MAX};
use crate::metrics::{AgentMetrics, PairStep};
use crate::target::Target;
use crate::upstream::resolve::Resolve;

/// A name is asked again after this time even when nothing happened.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// Words of attempts that began to wait and were not heard yet.
const TOLD_MAX: usize = 64;
/// Between the first attempts at two addresses, where any one is enough.
pub(super) const STAGGER: Duration = Duration::from_millis(250);

/// A connection to the other side, and what to prove on it.
pub(super) struct Met {
    pub(super) link: Link<TcpStream>,
    pub(super) party: Arc<Party>,
}

/// What connections are kept, and where.
pub(super) struct Post {
    pub(super) places: Vec<Arc<Target>>,
    pub(super) reach: Reach,
    /// Waiting connections at an address that works.
    pub(super) spare: usize,
    /// The first one is enough: what met the other side is not replaced.
    pub(super) once: bool,
    /// From one address to the next.
    pub(super) stagger: Duration,
    pub(super) resolver: Arc<dyn Resolve>,
    pub(super) metrics: Arc<AgentMetrics>,
    pub(super) aloud: Arc<Aloud>,
}

/// One address.
struct Gate {
    backoff: Backoff,
    delay: Duration,
    running: usize,
    /// Of those, the ones that wait for the other side.
    waiting: usize,
    works: bool,
}

/// How an attempt ended, and whether it had waited.
struct Ended {
    addr: SocketAddr,
    waited: bool,
    outcome: Result<Met, Failed>,
}

type Attempt<'a> = BoxFuture<'a, Ended>;

impl Post {
    /// Hands on what meets the other side, until nobody takes it any more.
    pub(super) async fn keep(
        &self,
        party: impl Fn() -> Arc<Party> + Send + Sync,
        out: &mpsc::Sender<Met>,
    ) {
        let party = &party;
        let places = self.places.iter().enumerate();
        join_all(places.map(|(nth, place)| self.at_place(nth, place, party, out))).await;
    }

    /// The first connection that meets the other side; all others are given up.
    pub(super) async fn first(&self, party: impl Fn() -> Arc<Party> + Send + Sync) -> Met {
        let (out, mut met) = mpsc::channel(1);
        tokio::select! {
            biased;
            Some(met) = met.recv() => met,
            () = self.keep(party, &out) => std::future::pending().await,
        }
    }

    async fn at_place(
        &self,
        nth: usize,
        place: &Target,
        party: &(impl Fn() -> Arc<Party> + Send + Sync),
        out: &mpsc::Sender<Met>,
    ) {
        let mut gates: HashMap<SocketAddr, Gate> = HashMap::new();
        let mut attempts: FuturesUnordered<Attempt<'_>> = FuturesUnordered::new();
        let (tell, mut told) = mpsc::channel(TOLD_MAX);
        let mut name = Backoff::new(RETRY_MAX);
        let mut first = true;
        loop {
            match self.resolve(place).await {
                Ok(found) => {
                    gates.retain(|addr, gate| gate.running > 0 || found.contains(addr));
                    for (at, addr) in found.into_iter().enumerate() {
                        let steps = u32::try_from(nth + at).unwrap_or(u32::MAX);
                        let head_start = if first {
                            self.stagger * steps
                        } else {
                            Duration::ZERO
                        };
                        let gate = gates.entry(addr).or_insert_with(|| Gate::new(head_start));
                        while gate.wants_more(self.spare) {
                            gate.running += 1;
                            let delay = std::mem::take(&mut gate.delay);
                            let attempt = self.attempt(place, addr, delay, party, tell.clone());
                            attempts.push(Box::pin(attempt));
                        }
                    }
                    first = false;
                }
                Err(why) => {
                    self.metrics.pair().failed(PairStep::Resolve);
                    tracing::warn!(
                        place = place.address(),
                        why,
                        "a name has no address; it is asked again"
                    );
                    if attempts.is_empty() {
                        sleep(name.next(Setback::Ordinary, random())).await;
                        continue;
                    }
                }
            }
            tokio::select! {
                biased;
                // First, so that nothing ends before it was heard of.
                Some(addr) = told.recv() => {
                    if let Some(gate) = gates.get_mut(&addr) {
                        gate.waits();
                    }
                }
                Some(ended) = attempts.next(), if !attempts.is_empty() => {
                    let Some(gate) = gates.get_mut(&ended.addr) else { continue };
                    if let Some(met) = self.ended(place, ended, gate) {
                        if out.send(met).await.is_err() {
                            return;
                        }
                        if self.once {
                            return std::future::pending().await;
                        }
                    }
                }
                () = sleep(ASK_AGAIN) => {}
            }
        }
    }

    fn ended(&self, place: &Target, ended: Ended, gate: &mut Gate) -> Option<Met> {
        gate.ended(ended.waited);
        match ended.outcome {
            Ok(met) => {
                gate.heals();
                Some(met)
            }
            Err(why) => {
                if why.again {
                    // Nothing is wrong, but whoever answers does not set the pace.
                    gate.delay = Backoff::new(RETRY_MAX).next(Setback::Ordinary, random());
                } else {
                    gate.failed(why.setback);
                }
                self.note(place, ended.addr, &why, gate);
                None
            }
        }
    }

    async fn resolve(&self, place: &Target) -> Result<Vec<SocketAddr>, String> {
        if let Some(ip) = place.literal() {
            return Ok(vec![SocketAddr::new(ip, place.port)]);
        }
        match timeout(CONNECT_MAX, self.resolver.resolve(&place.host, place.port)).await {
            Ok(Ok(found)) if !found.is_empty() => Ok(found),
            Ok(Ok(_)) => Err("the name has no address".to_owned()),
            Ok(Err(why)) => Err(why.to_string()),
            Err(_) => Err(format!("no answer within {CONNECT_MAX:?}")),
        }
    }

    async fn attempt(
        &self,
        place: &Target,
        addr: SocketAddr,
        delay: Duration,
        party: &(impl Fn() -> Arc<Party> + Send + Sync),
        tell: mpsc::Sender<SocketAddr>,
    ) -> Ended {
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let now = party();
        let mut waits = None;
        let waiting = || {
            waits = Some(self.metrics.pair().waits());
            // One that is not told is counted when it ends.
            let _ = tell.try_send(addr);
        };
        let reached = self.reach.meet(place, addr, &now, waiting).await;
        Ended {
            addr,
            waited: waits.is_some(),
            outcome: reached.map(|link| Met {
                link,
                // What a relay was shown holds; elsewhere days may have passed.
                party: match &self.reach {
                    Reach::Relay { .. } => now,
                    Reach::Called | Reach::Calls => party(),
                },
            }),
        }
    }

    fn note(&self, place: &Target, addr: SocketAddr, why: &Failed, gate: &Gate) {
        self.metrics.pair().failed(why.step);
        let (place, retry_in_ms) = (place.address(), gate.delay.as_millis());
        let is_news = why.loud && gate.backoff.failures() <= 1;
        let whom = || format!("{place} {addr}");
        if is_news && self.aloud.now(&whom(), &why.text).is_some() {
            tracing::warn!(place, %addr, seen = why.text, retry_in_ms, "cannot wait for the other side here");
        } else {
            tracing::debug!(place, %addr, seen = why.text, retry_in_ms, "cannot wait for the other side here");
        }
    }
}

impl Gate {
    fn new(delay: Duration) -> Gate {
        Gate {
            backoff: Backoff::new(RETRY_MAX),
            delay,
            running: 0,
            waiting: 0,
            works: false,
        }
    }

    /// Whether one more attempt is due: where nothing works, one at a time.
    fn wants_more(&self, spare: usize) -> bool {
        let trying = self.running.saturating_sub(self.waiting);
        self.running < spare && (self.works || trying == 0)
    }

    fn waits(&mut self) {
        self.waiting += 1;
        self.heals();
    }

    fn ended(&mut self, waited: bool) {
        self.running = self.running.saturating_sub(1);
        self.waiting = self.waiting.saturating_sub(usize::from(waited));
    }

    /// The address takes connections: what failed before counts no more.
    fn heals(&mut self) {
        if !self.works {
            self.works = true;
            self.backoff = Backoff::new(RETRY_MAX);
            self.delay = Duration::ZERO;
        }
    }

    fn failed(&mut self, setback: Setback) {
        self.works = false;
        self.delay = self.backoff.next(setback, random());
    }
}

fn random() -> u64 {
    u64::from_ne_bytes(random_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_works_one_tries_at_a_time_and_a_working_place_keeps_its_spares() {
        let mut gate = Gate::new(Duration::ZERO);
        let start = |gate: &mut Gate| {
            let wanted = gate.wants_more(2);
            gate.running += usize::from(wanted);
            wanted
        };
        assert!(start(&mut gate) && !start(&mut gate), "one tries");
        gate.waits();
        assert!(start(&mut gate) && !start(&mut gate), "two wait");
        gate.waits();
        // One is used: the other stays, a new one comes.
        gate.ended(true);
        gate.heals();
        assert!(start(&mut gate) && !start(&mut gate));
        // It fails while the other still waits: one tries again, after a while.
        gate.ended(false);
        gate.failed(Setback::Ordinary);
        assert!(start(&mut gate) && !start(&mut gate));
        assert_eq!(gate.backoff.failures(), 1);
        gate.waits();
        assert_eq!((gate.backoff.failures(), gate.delay), (0, Duration::ZERO));
    }
}

//! Happy Eyeballs (RFC 8305) over the addresses of all hubs.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use culvert_proto::close::CloseReason;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::CANDIDATES_MAX;

/// One address that may lead to a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) url_index: usize,
    pub(super) addr: SocketAddr,
}

/// Why an attempt failed, as a word and in the system's words.
pub(super) type Failed = (CloseReason, String);

/// Orders addresses: families alternate, beginning with the family the resolver put first.
pub(super) fn interleave(addrs: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let addrs: Vec<SocketAddr> = addrs.into_iter().collect();
    let first_is_v6 = addrs.first().is_some_and(SocketAddr::is_ipv6);
    let (a, b): (Vec<_>, Vec<_>) = addrs.into_iter().partition(|x| x.is_ipv6() == first_is_v6);
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    loop {
        let before = out.len();
        for addr in a.next().into_iter().chain(b.next()) {
            if !out.contains(&addr) {
                out.push(addr);
            }
        }
        if before == out.len() && a.len() == 0 && b.len() == 0 {
            return out;
        }
    }
}

/// A lookup that is still under way.
pub(super) type Lookup<'a> = Pin<Box<dyn Future<Output = Found<'a>> + Send + 'a>>;

/// What one hub's name has led to so far.
pub(super) struct Found<'a> {
    pub(super) url_index: usize,
    pub(super) addrs: Vec<SocketAddr>,
    /// The rest of the same lookup, when it is late.
    pub(super) rest: Option<Lookup<'a>>,
}

/// Who may still be tried, the preferred hub first, and who is still being looked up.
#[derive(Default)]
pub(super) struct Field<'a> {
    pub(super) waiting: VecDeque<Candidate>,
    pub(super) lookups: FuturesUnordered<Lookup<'a>>,
    seen: Vec<Candidate>,
}

impl<'a> Field<'a> {
    /// Adds what was found, each address once and [`CANDIDATES_MAX`] of all hubs together.
    pub(super) fn add(&mut self, found: Found<'a>) {
        let Found {
            url_index,
            addrs,
            rest,
        } = found;
        self.lookups.extend(rest);
        for addr in addrs {
            let candidate = Candidate { url_index, addr };
            if self.seen.len() < CANDIDATES_MAX && !self.seen.contains(&candidate) {
                self.seen.push(candidate.clone());
                let place = self.waiting.partition_point(|c| c.url_index <= url_index);
                self.waiting.insert(place, candidate);
            }
        }
    }
}

/// Connects to the candidates, a new attempt every `stagger` or as soon as one fails; a hub whose
/// name takes longer is overtaken like one that is silent. Returns the first that is connected;
/// failures are handed to `failed`. Tried candidates leave the field.
pub(super) async fn race(
    field: &mut Field<'_>,
    stagger: Duration,
    attempt_max: Duration,
    mut failed: impl FnMut(&Candidate, Failed),
) -> Option<(Candidate, TcpStream)> {
    let mut attempts = FuturesUnordered::new();
    let mut next_start = Instant::now();
    // The preferred hub has this long to be found before another one is tried.
    let mut is_first = field.waiting.is_empty();
    let mut started: Vec<Candidate> = Vec::new();
    let winner = loop {
        tokio::select! {
            biased;
            Some((candidate, result)) = attempts.next(), if !attempts.is_empty() => {
                started.retain(|c| *c != candidate);
                match result {
                    Ok(stream) => break Some((candidate, stream)),
                    Err(problem) => {
                        failed(&candidate, problem);
                        next_start = Instant::now();
                    }
                }
            }
            Some(found) = field.lookups.next(), if !field.lookups.is_empty() => {
                let is_preferred = found.url_index == 0;
                field.add(found);
                if std::mem::take(&mut is_first) && !is_preferred && !field.lookups.is_empty() {
                    next_start = Instant::now() + stagger;
                } else if is_preferred && started.is_empty() && attempts.is_empty() {
                    next_start = Instant::now();
                }
            }
            () = sleep_until(next_start), if !field.waiting.is_empty() => {
                if let Some(candidate) = field.waiting.pop_front() {
                    started.push(candidate.clone());
                    attempts.push(attempt(candidate, attempt_max));
                }
                next_start = Instant::now() + stagger;
            }
            else => break None,
        }
    };
    // Those still connecting are tried again if the winner fails later on.
    for candidate in started.into_iter().rev() {
        field.waiting.push_front(candidate);
    }
    winner
}

/// One TCP connection, within `max`.
pub(super) async fn attempt(
    candidate: Candidate,
    max: Duration,
) -> (Candidate, Result<TcpStream, Failed>) {
    let result = match timeout(max, TcpStream::connect(candidate.addr)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let reason = match error.kind() {
                io::ErrorKind::ConnectionRefused => CloseReason::HubRefused,
                io::ErrorKind::TimedOut => CloseReason::HubTimeout,
                _ => CloseReason::HubUnreachable,
            };
            Err((reason, error.to_string()))
        }
        Err(_) => Err((
            CloseReason::HubTimeout,
            format!("no answer within {} s", max.as_secs()),
        )),
    };
    (candidate, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn found(url_index: usize, addr: SocketAddr) -> Found<'static> {
        Found {
            url_index,
            addrs: vec![addr],
            rest: None,
        }
    }

    fn field(all: impl IntoIterator<Item = Found<'static>>) -> Field<'static> {
        let mut field = Field::default();
        all.into_iter().for_each(|one| field.add(one));
        field
    }

    async fn listening() -> (tokio::net::TcpListener, SocketAddr) {
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = open.local_addr().unwrap();
        (open, addr)
    }

    async fn closed() -> SocketAddr {
        listening().await.1
    }

    #[test]
    fn families_alternate_and_repeats_go() {
        let order = interleave(
            [
                "[::1]:1",
                "[::2]:1",
                "[::1]:1",
                "1.1.1.1:1",
                "1.1.1.2:1",
                "1.1.1.3:1",
            ]
            .map(addr),
        );
        let wanted = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "1.1.1.3:1"].map(addr);
        assert_eq!(order, wanted);
        assert!(interleave([]).is_empty());
    }

    #[tokio::test]
    async fn a_refusal_starts_the_next_at_once_and_is_reported() {
        let (_open, good) = listening().await;
        let closed = closed().await;
        let mut candidates = field([found(0, closed), found(1, good)]);
        let mut failures = Vec::new();
        // With an hour of stagger only the refusal can start the second attempt.
        let hour = Duration::from_secs(3600);
        let (winner, _) = race(&mut candidates, hour, hour, |c, p| {
            failures.push((c.addr, p.0));
        })
        .await
        .unwrap();
        assert_eq!((winner.addr, winner.url_index), (good, 1));
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0], (closed, CloseReason::HubRefused));
        assert!(candidates.waiting.is_empty());
    }

    #[tokio::test]
    async fn a_slow_lookup_is_overtaken_after_the_stagger_and_joins_later() {
        let (_open, good) = listening().await;
        let late = closed().await;
        let mut candidates = field([]);
        // The preferred hub's name takes 300 ms, the other one's none.
        candidates.lookups.push(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            found(0, late)
        }));
        candidates
            .lookups
            .push(Box::pin(async move { found(1, good) }));
        let (stagger, hour) = (Duration::from_millis(50), Duration::from_secs(3600));
        let begun = Instant::now();
        let (winner, _) = race(&mut candidates, stagger, hour, |_, p| panic!("{p:?}"))
            .await
            .unwrap();
        assert_eq!(winner.url_index, 1);
        assert!(begun.elapsed() >= stagger, "the preferred one had its time");
        assert_eq!(
            candidates.lookups.len(),
            1,
            "nobody waited for the late one"
        );
        // That hub turns out to be no good: the late one is not forgotten.
        let mut failures = Vec::new();
        let none = race(&mut candidates, stagger, hour, |c, _| failures.push(c.addr)).await;
        assert!(none.is_none());
        assert_eq!(failures, [late]);
    }

    #[test]
    fn an_address_counts_once_and_all_of_them_are_bounded() {
        let one = addr("192.0.2.1:1");
        let mut all = field([found(1, one), found(1, one), found(0, one)]);
        let places: Vec<usize> = all.waiting.iter().map(|c| c.url_index).collect();
        assert_eq!(places, [0, 1], "the preferred hub first");
        for port in 1..=200 {
            all.add(found(2, SocketAddr::new(one.ip(), port)));
        }
        assert_eq!(all.waiting.len(), CANDIDATES_MAX);
    }

    #[tokio::test]
    async fn a_silent_address_is_overtaken_after_the_stagger_and_stays_a_candidate() {
        let (_open, good) = listening().await;
        // A listener whose backlog is full never completes a handshake.
        let silent =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent.bind(&addr("127.0.0.1:0").into()).unwrap();
        silent.listen(0).unwrap();
        let silent_addr = silent.local_addr().unwrap().as_socket().unwrap();
        let mut fill = Vec::new();
        while let Ok(Ok(stream)) =
            timeout(Duration::from_millis(200), TcpStream::connect(silent_addr)).await
        {
            fill.push(stream);
            assert!(fill.len() < 16, "the backlog never filled");
        }
        let mut candidates = field([found(0, silent_addr), found(0, good)]);
        let stagger = Duration::from_millis(50);
        let (winner, _) = race(&mut candidates, stagger, Duration::from_secs(20), |_, p| {
            panic!("{p:?}")
        })
        .await
        .unwrap();
        assert_eq!(winner.addr, good);
        assert_eq!(
            candidates.waiting,
            [Candidate {
                url_index: 0,
                addr: silent_addr
            }]
        );
    }
}

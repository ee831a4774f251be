//! Happy Eyeballs (RFC 8305) over the addresses of all hubs.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use culvert_proto::close::CloseReason;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

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

/// Connects to the candidates, a new attempt every `stagger` or as soon as one fails. Returns the
/// first that is connected; failures are handed to `failed`. Tried candidates leave the list.
pub(super) async fn race(
    candidates: &mut Vec<Candidate>,
    stagger: Duration,
    attempt_max: Duration,
    mut failed: impl FnMut(&Candidate, Failed),
) -> Option<(Candidate, TcpStream)> {
    let mut waiting: std::collections::VecDeque<Candidate> = candidates.drain(..).collect();
    let mut attempts = FuturesUnordered::new();
    let mut next_start = Instant::now();
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
            () = sleep_until(next_start), if !waiting.is_empty() => {
                if let Some(candidate) = waiting.pop_front() {
                    started.push(candidate.clone());
                    attempts.push(attempt(candidate, attempt_max));
                }
                next_start = Instant::now() + stagger;
            }
            else => break None,
        }
    };
    // Those still connecting are tried again if the winner fails later on.
    candidates.extend(started.into_iter().chain(waiting));
    winner
}

async fn attempt(candidate: Candidate, max: Duration) -> (Candidate, Result<TcpStream, Failed>) {
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
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap()
        };
        let good = open.local_addr().unwrap();
        let mut candidates = vec![
            Candidate {
                url_index: 0,
                addr: closed,
            },
            Candidate {
                url_index: 1,
                addr: good,
            },
        ];
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
        assert!(candidates.is_empty());
    }

    #[tokio::test]
    async fn a_silent_address_is_overtaken_after_the_stagger_and_stays_a_candidate() {
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
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
        let mut candidates = vec![
            Candidate {
                url_index: 0,
                addr: silent_addr,
            },
            Candidate {
                url_index: 0,
                addr: open.local_addr().unwrap(),
            },
        ];
        let stagger = Duration::from_millis(50);
        let (winner, _) = race(&mut candidates, stagger, Duration::from_secs(20), |_, p| {
            panic!("{p:?}")
        })
        .await
        .unwrap();
        assert_eq!(winner.addr, open.local_addr().unwrap());
        assert_eq!(
            candidates,
            [Candidate {
                url_index: 0,
                addr: silent_addr
            }]
        );
    }
}

//! Ours against the `yamux` crate, in both roles.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test may stop where it stands; the rig is shared"
)]

#[path = "rig/drive.rs"]
mod drive;
#[path = "rig/random.rs"]
mod random;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use culvert_mux::{Budget, Config, Event, Mux, Read, Role, StreamId, Write};
use drive::drive;
use futures_util::future::poll_fn;
use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use random::Random;
use tokio::io::DuplexStream;
use tokio_util::compat::TokioAsyncReadCompatExt as _;

const REQUESTS: usize = 1_000;
const AT_ONCE: usize = 50;

fn ours(role: Role) -> Mux {
    Mux::new(Config::new(role), Arc::new(Budget::new(1 << 30)))
}

/// Request n: some are larger than any window. None is empty, because the crate forgets to send
/// SYN when a stream is closed before its first write.
fn body(n: usize) -> Vec<u8> {
    let mut random = Random(n as u64);
    let most = random.pick(&[1, 100, 5_000, 40_000]);
    let length = if n.is_multiple_of(100) {
        700_000
    } else {
        1 + random.below(most)
    };
    (0..length)
        .map(|at| (at * 7 + n).to_le_bytes()[0])
        .collect()
}

fn reversed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

/// One stream of ours, whichever side opened it.
#[derive(Default)]
struct Exchange {
    out: Bytes,
    said_all: bool,
    heard: Vec<u8>,
    eof: bool,
}

impl Exchange {
    fn turn(&mut self, mux: &mut Mux, id: StreamId) {
        while !self.eof {
            match mux.read(id, 1 << 20).unwrap() {
                Read::Data(data) => self.heard.extend_from_slice(&data),
                Read::Pending => break,
                Read::Eof => self.eof = true,
            }
        }
    }

    fn say(&mut self, mux: &mut Mux, id: StreamId) {
        if self.said_all {
            return;
        }
        match mux.write(id, std::mem::take(&mut self.out)).unwrap() {
            Write::Accepted => {
                mux.finish(id);
                self.said_all = true;
            }
            Write::Blocked(rest) => self.out = rest,
        }
    }
}

/// The crate as server: reads each stream to its end, answers with the reverse.
async fn crate_server(io: DuplexStream, config: yamux::Config) {
    let mut connection = yamux::Connection::new(io.compat(), config, yamux::Mode::Server);
    while let Some(Ok(mut stream)) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        tokio::spawn(async move {
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            stream.write_all(&reversed(heard)).await.unwrap();
            stream.close().await.unwrap();
        });
    }
}

#[tokio::test(flavor = "current_thread")]
async fn our_hub_with_the_crate_as_agent() {
    let (near, far) = tokio::io::duplex(64 << 10);
    let server = tokio::spawn(crate_server(far, yamux::Config::default()));
    let mut mux = ours(Role::Client);
    let mut next = 0;
    let mut done = 0;
    let mut live: HashMap<StreamId, (usize, Exchange)> = HashMap::new();
    drive(near, &mut mux, |mux, now_ms| {
        while mux.next_event().is_some() {}
        while live.len() < AT_ONCE && next < REQUESTS {
            let id = mux.open(now_ms).unwrap();
            assert_eq!(id.0 as usize, 2 * next + 1);
            live.insert(
                id,
                (
                    next,
                    Exchange {
                        out: body(next).into(),
                        ..Exchange::default()
                    },
                ),
            );
            next += 1;
        }
        live.retain(|id, (n, exchange)| {
            exchange.say(mux, *id);
            exchange.turn(mux, *id);
            if exchange.eof {
                assert!(exchange.said_all);
                assert_eq!(exchange.heard, reversed(body(*n)), "request {n}");
                mux.release(*id);
                done += 1;
            }
            !exchange.eof
        });
        done == REQUESTS
    })
    .await;
    assert_eq!((done, mux.stats().streams_live), (REQUESTS, 0));
    server.await.unwrap();
}

/// The crate as client: asks `REQUESTS` times, `AT_ONCE` at once.
async fn crate_client(io: DuplexStream, config: yamux::Config) -> usize {
    let mut connection = yamux::Connection::new(io.compat(), config, yamux::Mode::Client);
    let mut tasks = tokio::task::JoinSet::new();
    let (mut next, mut done) = (0, 0);
    let mut wanted: VecDeque<usize> = VecDeque::new();
    while done < REQUESTS {
        while next < REQUESTS && tasks.len() + wanted.len() < AT_ONCE {
            wanted.push_back(next);
            next += 1;
        }
        let step = poll_fn(|cx| {
            use std::task::Poll;
            if !wanted.is_empty()
                && let Poll::Ready(stream) = connection.poll_new_outbound(cx)
            {
                return Poll::Ready(Some(stream.unwrap()));
            }
            if let Poll::Ready(Some(task)) = tasks.poll_join_next(cx) {
                let () = task.unwrap();
                done += 1;
                return Poll::Ready(None);
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(inbound) => panic!("{inbound:?}"),
                Poll::Pending => Poll::Pending,
            }
        });
        if let Some(mut stream) = step.await {
            let n = wanted.pop_front().unwrap();
            tasks.spawn(async move {
                stream.write_all(&body(n)).await.unwrap();
                stream.close().await.unwrap();
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard, reversed(body(n)), "request {n}");
            });
        }
    }
    poll_fn(|cx| connection.poll_close(cx)).await.unwrap();
    done
}

/// Our agent: answers each stream with the reverse of what it heard.
async fn our_server(io: DuplexStream, mux: &mut Mux) {
    let mut live: HashMap<StreamId, Exchange> = HashMap::new();
    drive(io, mux, |mux, _| {
        while let Some(event) = mux.next_event() {
            if let Event::Opened(id) = event {
                live.insert(id, Exchange::default());
            }
        }
        live.retain(|id, exchange| {
            let had_eof = exchange.eof;
            exchange.turn(mux, *id);
            if exchange.eof && !had_eof {
                exchange.out = reversed(std::mem::take(&mut exchange.heard)).into();
            }
            if exchange.eof {
                exchange.say(mux, *id);
            }
            if exchange.said_all {
                mux.release(*id);
            }
            !exchange.said_all
        });
        false
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn our_agent_with_the_crate_as_hub() {
    let (near, far) = tokio::io::duplex(64 << 10);
    let client = tokio::spawn(crate_client(far, yamux::Config::default()));
    let mut mux = ours(Role::Server);
    our_server(near, &mut mux).await;
    assert_eq!(client.await.unwrap(), REQUESTS);
    assert_eq!(
        (mux.stats().streams_live, mux.stats().opened_remote),
        (0, 1_000)
    );
}

/// Frames as large as the credit: the wire promises no split.
#[tokio::test(flavor = "current_thread")]
async fn frames_of_a_mebibyte() {
    let mut config = yamux::Config::default();
    config.set_split_send_size(1 << 20);
    let (near, far) = tokio::io::duplex(3 << 20);
    let client = tokio::spawn(crate_client(far, config.clone()));
    let mut mux = ours(Role::Server);
    our_server(near, &mut mux).await;
    assert_eq!(client.await.unwrap(), REQUESTS);
}

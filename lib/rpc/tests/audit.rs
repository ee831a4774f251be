//! Audit records over real sockets: refusals, restarts of control, order.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use culvert_net::crypto::SigningKey;
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::update::{Report, State};
use culvert_rpc::{
    Access, Address, Batch, Feed, Hub, LinkConfig, LinkId, NotCertified, NotTaken, Outbox,
    PeerCheck, Subscription, Trust, bind_unix, serve,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

struct Control {
    feed: Feed,
    taken: Mutex<Vec<u64>>,
    calls: AtomicU32,
}

impl Hub for Control {
    fn feed(&self) -> &Feed {
        &self.feed
    }
    fn opened(&self, _: LinkId, _: &str) {}
    fn report(&self, _: LinkId, _: Generation, _: Option<Report>) {}
    fn closed(&self, _: LinkId) {}

    async fn certify(&self, _: Option<ClusterId>, _: &[u8]) -> Result<Vec<u8>, NotCertified> {
        Err(NotCertified::Later("not here".to_owned()))
    }

    /// Every third batch is refused.
    async fn audit(&self, records: &[Bytes]) -> Result<(), NotTaken> {
        if self.calls.fetch_add(1, Ordering::Relaxed) % 3 == 2 {
            return Err(NotTaken("not now".to_owned()));
        }
        let numbers = records.iter();
        let numbers = numbers.map(|it| u64::from_be_bytes(it[..].try_into().unwrap()));
        self.taken.lock().extend(numbers);
        Ok(())
    }
}

/// The numbers from 0 to `all`, ten in a batch.
#[derive(Default)]
struct Numbers {
    sent: Mutex<u64>,
    acked: Mutex<u64>,
    refused: AtomicU32,
    changed: Notify,
}

const ALL: u64 = 300;

impl Outbox for Numbers {
    fn restart(&self) {
        *self.sent.lock() = *self.acked.lock();
    }

    fn next(&self) -> Pin<Box<dyn Future<Output = Batch> + Send + '_>> {
        Box::pin(async {
            loop {
                let from = *self.sent.lock();
                if from < ALL && from - *self.acked.lock() < 40 {
                    *self.sent.lock() = from + 10;
                    let numbers = from..from + 10;
                    let records = numbers.map(|it| Bytes::copy_from_slice(&it.to_be_bytes()));
                    return Batch {
                        end: from + 10,
                        records: records.collect(),
                    };
                }
                self.changed.notified().await;
            }
        })
    }

    fn acked(&self, end: u64) -> Result<(), String> {
        assert!(end <= *self.sent.lock() && end > *self.acked.lock());
        *self.acked.lock() = end;
        self.changed.notify_one();
        Ok(())
    }

    fn refused(&self, _: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let polled = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = timeout(DEADLINE, polled).await;
    waited.unwrap_or_else(|_| panic!("{what} in time"));
}

async fn start(hub: &Arc<Control>, socket: &Path) -> JoinHandle<()> {
    let mut bound = None;
    until("the socket is free", || {
        bound = bind_unix(socket, 0o600).ok();
        bound.is_some()
    })
    .await;
    let access = Access::Unix {
        listener: bound.unwrap(),
        check: PeerCheck::default(),
    };
    let hub = hub.clone();
    tokio::spawn(async move { serve(hub, access, std::future::pending()).await.unwrap() })
}

#[tokio::test]
async fn records_arrive_in_order_through_refusals_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("state.sock");
    let state = State {
        generation: Generation(1),
        hub_id: "hub".into(),
        ..State::default()
    };
    let control = Arc::new(Control {
        feed: Feed::new(SigningKey::generate().unwrap(), state),
        taken: Mutex::default(),
        calls: AtomicU32::default(),
    });
    let numbers = Arc::new(Numbers::default());
    let mut server = start(&control, &socket).await;
    let mut subscription = Subscription::start(LinkConfig {
        address: Address::Unix(socket.clone()),
        peer: PeerCheck::default(),
        tls: None,
        trust: Trust::File(dir.path().join("trust")),
        held: None,
        outbox: Some(numbers.clone()),
    });
    // Somebody has to take the events, or the link stands still.
    let events = tokio::spawn(async move {
        loop {
            subscription.next().await;
        }
    });
    for part in 1..=3 {
        until("a part is taken", || {
            *numbers.acked.lock() >= part * ALL / 3
        })
        .await;
        if part < 3 {
            server.abort();
            server = start(&control, &socket).await;
        }
    }
    events.abort();
    // Some may have come twice, for the store to tell; none was left out or overtaken.
    let taken = control.taken.lock().clone();
    let mut seen = BTreeSet::new();
    for number in &taken {
        assert!(
            *number == 0 || seen.contains(&(number - 1)),
            "{number} came too early"
        );
        seen.insert(*number);
    }
    assert_eq!(seen.len() as u64, ALL);
    assert!(numbers.refused.load(Ordering::Relaxed) > 3);
    println!("{} records taken for {ALL}", taken.len());
}

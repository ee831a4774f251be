//! A side that waits. It is small: a socket, a key, a timer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use culvert_net::introduction::{Disturbance, Waiter};
use culvert_proto::pair::{Reply, ReplyCode, Role};
use culvert_proto::relay::{Patience, Place, Source};

use super::desk::{Order, Seat};
use super::hall::{Counted, Hall};
use super::join;

/// A word to a waiter fits any socket; one that takes longer is dead.
const WORD_MAX: Duration = Duration::from_secs(5);

/// One side before it is joined.
pub struct Party {
    /// Where it came from.
    pub peer: SocketAddr,
    /// Whom it is counted with.
    pub source: Source,
    /// Where it wants to meet.
    pub place: Place,
    /// Which side it is.
    pub role: Role,
    /// Its connection.
    pub waiter: Waiter<TcpStream>,
    /// How long it has waited.
    pub patience: Patience,
    /// Its place in the count.
    pub counted: Counted,
}

/// Gives `party` a seat and a task of its own: the one that introduced it was large.
pub fn enter(hall: &Arc<Hall>, party: Party) {
    match hall.desk.enter(party.source, party.place, party.role) {
        Ok(seat) => drop(tokio::spawn(wait(hall.clone(), seat, party))),
        Err(none) => {
            hall.metrics.refused(none.reason);
            drop(tokio::spawn(party.dismiss(none.reply)));
        }
    }
}

async fn wait(hall: Arc<Hall>, mut seat: Seat, mut party: Party) {
    loop {
        let due = party.patience.due_ms().saturating_sub(hall.now_ms());
        tokio::select! {
            biased;
            order = &mut seat.order => return Box::pin(obey(hall, seat, party, order.ok())).await,
            what = party.waiter.disturbance() => return party.disturbed(&hall, what),
            () = sleep(Duration::from_millis(due)) => {}
        }
        match party.patience.word(hall.now_ms()) {
            Some(ReplyCode::Wait) if party.say(ReplyCode::Wait.into()).await => {}
            Some(ReplyCode::Wait) => return party.disturbed(&hall, Disturbance::Gone),
            Some(code) => {
                drop(seat);
                hall.metrics.refused(code.as_str());
                return Box::pin(party.dismiss(code.into())).await;
            }
            None => {}
        }
    }
}

async fn obey(hall: Arc<Hall>, seat: Seat, mut party: Party, order: Option<Order>) {
    drop(seat);
    match order {
        None => {}
        Some(Order::Lead(other, place)) => join::lead(&hall, party, other, place).await,
        Some(Order::Give(to)) => match party.disturbance_now() {
            Some(what) => party.disturbed(&hall, what),
            None => {
                if let Err(back) = to.send(party) {
                    // Whom it should go to went first.
                    enter(&hall, back);
                }
            }
        },
        Some(Order::End(reply)) => {
            hall.metrics.refused(reply.code.as_str());
            party.dismiss(reply).await;
        }
    }
}

impl Party {
    /// What it did before it was asked, if anything.
    pub fn disturbance_now(&mut self) -> Option<Disturbance> {
        self.waiter.disturbance().now_or_never()
    }

    /// It is gone, or sent away without a word.
    pub fn disturbed(self, hall: &Hall, what: Disturbance) {
        let what = match what {
            Disturbance::Gone => "gone",
            Disturbance::Spoke => "spoke",
        };
        if what == "spoke" {
            hall.metrics.refused(ReplyCode::BadPreface.as_str());
        }
        tracing::debug!(peer = %self.peer, role = self.role.as_str(), what, "a waiter left");
    }

    /// Whether it could be told.
    async fn say(&mut self, reply: Reply) -> bool {
        let said = timeout(WORD_MAX, self.waiter.say(reply)).await;
        matches!(said, Ok(Ok(())))
    }

    /// Its last word.
    pub async fn dismiss(self, reply: Reply) {
        let Party {
            waiter, counted, ..
        } = self;
        let _ = timeout(WORD_MAX, waiter.dismiss(reply)).await;
        drop(counted);
    }
}

//! Who meets whom, for tasks: each waiter has a seat, to which its order comes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use culvert_proto::pair::{Reply, ReplyCode, Role};
use culvert_proto::relay::{Full, Limits, Matched, Place, Source, WaiterId, Waiting};

use super::wait::Party;

/// A source that has as many waiters as it may comes again after this, s.
const FULL_RETRY_S: u16 = 15;

/// What a waiter has to do now.
pub enum Order {
    /// Go over to the task of the other side.
    Give(oneshot::Sender<Party>),
    /// Take the other side, and join it.
    Lead(oneshot::Receiver<Party>, PairPlace),
    /// Leave, with this word.
    End(Reply),
}

/// All seats.
#[derive(Default)]
pub struct Desk {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Waiting,
    orders: HashMap<WaiterId, oneshot::Sender<Order>>,
    closed: Option<Reply>,
}

/// A waiter's seat. Dropped, it is left.
pub struct Seat {
    desk: Arc<Desk>,
    id: WaiterId,
    /// Brings one order.
    pub order: oneshot::Receiver<Order>,
}

/// A pair's place among all that there may be. Dropped, it is the next one's.
pub struct PairPlace {
    desk: Arc<Desk>,
    sources: [Source; 2],
}

/// Who is here.
pub struct Count {
    /// Sides that wait.
    pub waiting: usize,
    /// Of those, the ones that have met and wait for a place.
    pub held_back: usize,
    /// Pairs.
    pub pairs: usize,
}

/// There is no seat.
#[derive(Debug)]
pub struct NoSeat {
    /// What to say.
    pub reply: Reply,
    /// The label of the refusal.
    pub reason: &'static str,
}

/// An order and whose it is. Sent without the lock: one that nobody takes is
/// dropped, and what it holds asks for the lock.
type Sent = (oneshot::Sender<Order>, Order);

impl Desk {
    /// Nobody yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        let desk = Self::default();
        desk.state.lock().waiting = Waiting::new(limits);
        Arc::new(desk)
    }

    /// A seat for somebody whose proof holds.
    ///
    /// # Errors
    /// When there is none.
    pub fn enter(
        self: &Arc<Self>,
        source: Source,
        place: Place,
        role: Role,
    ) -> Result<Seat, NoSeat> {
        let (give, order) = oneshot::channel();
        let mut state = self.state.lock();
        if let Some(reply) = state.closed {
            let reason = reply.code.as_str();
            return Err(NoSeat { reply, reason });
        }
        let entered = state.waiting.enter(source, place, role)?;
        let id = entered.id;
        state.orders.insert(id, give);
        let mut sent = Vec::new();
        if let Some(displaced) = entered.displaced
            && let Some(seat) = state.orders.remove(&displaced)
        {
            sent.push((seat, Order::End(full())));
        }
        self.meet(&mut state, &mut sent);
        drop(state);
        send(sent);
        let desk = self.clone();
        Ok(Seat { desk, id, order })
    }

    /// From now on there are no seats, and who has one is told `reply`.
    pub fn close(&self, reply: Reply) {
        let mut state = self.state.lock();
        state.closed = Some(reply);
        let orders = std::mem::take(&mut state.orders);
        for id in orders.keys() {
            state.waiting.leave(*id);
        }
        drop(state);
        send(
            orders
                .into_values()
                .map(|seat| (seat, Order::End(reply)))
                .collect(),
        );
    }

    /// Who is here now.
    pub fn count(&self) -> Count {
        let waiting = &self.state.lock().waiting;
        Count {
            waiting: waiting.len(),
            held_back: waiting.held_back(),
            pairs: waiting.pairs(),
        }
    }

    /// Orders for all who meet by a change.
    fn meet(self: &Arc<Self>, state: &mut State, sent: &mut Vec<Sent>) {
        while let Some(matched) = state.waiting.next_pair() {
            let Matched {
                bridge,
                broker,
                sources,
            } = matched;
            let (give, take) = oneshot::channel();
            let desk = self.clone();
            let lead = Order::Lead(take, PairPlace { desk, sources });
            for (id, order) in [(bridge, Order::Give(give)), (broker, lead)] {
                if let Some(seat) = state.orders.remove(&id) {
                    sent.push((seat, order));
                }
            }
        }
    }

    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut sent = Vec::new();
        let mut state = self.state.lock();
        change(&mut state);
        self.meet(&mut state, &mut sent);
        drop(state);
        send(sent);
    }
}

fn send(all: Vec<Sent>) {
    for (seat, order) in all {
        let _ = seat.send(order);
    }
}

fn full() -> Reply {
    Reply {
        code: ReplyCode::RateLimit,
        retry_after_s: FULL_RETRY_S,
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.desk.change(|state| {
            state.waiting.leave(self.id);
            state.orders.remove(&self.id);
        });
    }
}

impl Drop for PairPlace {
    fn drop(&mut self) {
        self.desk
            .change(|state| state.waiting.pair_ended(self.sources));
    }
}

impl From<Full> for NoSeat {
    fn from(_: Full) -> Self {
        let (reply, reason) = (full(), "full");
        NoSeat { reply, reason }
    }
}

//! The tickets of one session that were issued and not used.

use alloc::collections::VecDeque;

use super::{ChannelAnswer, Preface};
use crate::control::Ticket;
use crate::id::Epoch;
use crate::limits::TICKET_LIFE_MS;

/// Tickets that one session may have outstanding.
pub const TICKETS_OUTSTANDING_MAX: usize = 1_024;

/// Tickets in the order in which they end, each for a purpose `P`.
pub struct OpenTickets<P> {
    epoch: Epoch,
    tickets: VecDeque<Open<P>>,
}

struct Open<P> {
    ticket: Ticket,
    preface: Preface,
    due_ms: u64,
    purpose: P,
}

impl<P> OpenTickets<P> {
    /// None yet, for the session of `epoch`.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            tickets: VecDeque::new(),
        }
    }

    /// Tickets outstanding.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Whether none is outstanding.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Remembers a ticket for [`TICKET_LIFE_MS`].
    ///
    /// # Errors
    /// Gives the purpose back when [`TICKETS_OUTSTANDING_MAX`] are outstanding.
    pub fn issue(
        &mut self,
        now_ms: u64,
        form: super::Form,
        ticket: Ticket,
        purpose: P,
    ) -> Result<(), P> {
        if self.tickets.len() >= TICKETS_OUTSTANDING_MAX {
            return Err(purpose);
        }
        let preface = Preface {
            form,
            ticket: ticket.id,
            epoch: self.epoch,
        };
        self.tickets.push_back(Open {
            ticket,
            preface,
            due_ms: now_ms.saturating_add(TICKET_LIFE_MS),
            purpose,
        });
        Ok(())
    }

    /// Takes the ticket that `preface` shows: it works once. `proves` compares
    /// the preface's HMAC, in constant time, with the one of a key.
    ///
    /// A forged preface does not use the ticket up: who guesses ids would
    /// otherwise spoil it.
    ///
    /// # Errors
    /// The answer that refuses the channel.
    pub fn redeem(
        &mut self,
        now_ms: u64,
        preface: &Preface,
        proves: impl FnOnce(&[u8; 32]) -> bool,
    ) -> Result<P, ChannelAnswer> {
        if preface.epoch != self.epoch {
            return Err(ChannelAnswer::StaleEpoch);
        }
        let at = self.find(&preface.ticket).ok_or(ChannelAnswer::BadTicket)?;
        let open = &self.tickets[at];
        if open.due_ms <= now_ms || open.preface != *preface || !proves(&open.ticket.key) {
            return Err(ChannelAnswer::BadTicket);
        }
        let open = self.tickets.remove(at);
        open.map(|open| open.purpose)
            .ok_or(ChannelAnswer::BadTicket)
    }

    /// The agent could not use a ticket, or nobody waits for it any more.
    pub fn cancel(&mut self, id: &[u8; 16]) -> Option<P> {
        let at = self.find(id)?;
        self.tickets.remove(at).map(|open| open.purpose)
    }

    /// Takes the next ticket that was not used in time.
    pub fn expire(&mut self, now_ms: u64) -> Option<P> {
        let due = self
            .tickets
            .front()
            .is_some_and(|open| open.due_ms <= now_ms);
        due.then(|| self.tickets.pop_front())?
            .map(|open| open.purpose)
    }

    /// When the next one ends, ms.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.tickets.front().map(|open| open.due_ms)
    }

    fn find(&self, id: &[u8; 16]) -> Option<usize> {
        self.tickets.iter().position(|open| open.ticket.id == *id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Form;
    use super::*;

    const EPOCH: Epoch = Epoch(9);

    fn ticket(id: u8) -> Ticket {
        Ticket {
            id: [id; 16],
            key: [id ^ 0xFF; 32],
        }
    }

    fn shown(id: u8) -> Preface {
        Preface {
            form: Form::Tls,
            ticket: [id; 16],
            epoch: EPOCH,
        }
    }

    fn with(ids: &[u8]) -> OpenTickets<u8> {
        let mut open = OpenTickets::new(EPOCH);
        for id in ids {
            open.issue(0, Form::Tls, ticket(*id), *id).unwrap();
        }
        open
    }

    #[test]
    fn a_ticket_works_once_and_only_with_its_key() {
        let mut open = with(&[1, 2]);
        let knows = |key: &[u8; 32]| *key == [1 ^ 0xFF; 32];
        assert_eq!(
            open.redeem(1, &shown(1), |_| false),
            Err(ChannelAnswer::BadTicket)
        );
        assert_eq!(open.redeem(1, &shown(1), knows), Ok(1));
        assert_eq!(
            open.redeem(1, &shown(1), knows),
            Err(ChannelAnswer::BadTicket)
        );
        assert_eq!(open.len(), 1);
    }

    #[test]
    fn form_epoch_and_life_are_checked() {
        let mut open = with(&[1]);
        let plain = Preface {
            form: Form::Plain,
            ..shown(1)
        };
        let stale = Preface {
            epoch: Epoch(8),
            ..shown(1)
        };
        let refused = |answer| Err(answer);
        assert_eq!(
            open.redeem(1, &plain, |_| true),
            refused(ChannelAnswer::BadTicket)
        );
        assert_eq!(
            open.redeem(1, &stale, |_| true),
            refused(ChannelAnswer::StaleEpoch)
        );
        assert_eq!(
            open.redeem(TICKET_LIFE_MS, &shown(1), |_| true),
            refused(ChannelAnswer::BadTicket)
        );
        assert_eq!(open.expire(TICKET_LIFE_MS - 1), None);
        assert_eq!(open.next_due_ms(), Some(TICKET_LIFE_MS));
        assert_eq!(open.expire(TICKET_LIFE_MS), Some(1));
        assert!(open.is_empty());
    }

    #[test]
    fn one_more_than_the_limit_is_refused() {
        let mut open = with(&[]);
        for _ in 0..TICKETS_OUTSTANDING_MAX {
            open.issue(0, Form::Tls, ticket(3), 3).unwrap();
        }
        assert_eq!(open.issue(0, Form::Tls, ticket(4), 4), Err(4));
        assert_eq!(open.cancel(&[3; 16]), Some(3));
        assert_eq!(open.issue(0, Form::Tls, ticket(4), 4), Ok(()));
        assert_eq!(open.cancel(&[9; 16]), None);
    }
}

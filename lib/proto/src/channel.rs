//! Data channels: one TCP connection for each relayed connection (P14).
//!
//! The hub issues a one-time ticket, the agent dials the public listener and
//! shows it in a [`Preface`]. Who may come in with it is decided by
//! [`OpenTickets`], how many channels wait in advance by [`Demand`].

mod demand;
mod preface;
mod tickets;

use core::fmt;

use crate::control::Ticket;

pub use demand::{CHANNELS_PARKED_MAX, CHANNELS_PARKED_MIN, Demand};
pub use preface::{ChannelAnswer, Preface, PrefaceError};
pub use tickets::{OpenTickets, TICKETS_OUTSTANDING_MAX};

/// The application protocol of form 1.
pub const ALPN: &[u8] = b"culvert-data/1";
/// First bytes of a preface and of its answer.
pub const MAGIC: [u8; 4] = *b"CVDC";
/// Bytes of a preface.
pub const PREFACE_BYTES: usize = 64;
/// Bytes of a preface that its HMAC covers.
pub const SIGNED_BYTES: usize = 32;
/// Bytes of the hub's answer.
pub const ANSWER_BYTES: usize = 8;

/// What a data channel runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Form {
    /// TLS between agent and hub: for services whose payload is not sealed.
    Tls = 1,
    /// No TLS of its own: the payload is TLS end to end, or both sides trust
    /// the network.
    Plain = 2,
}

impl Form {
    /// Both.
    pub const ALL: [Form; 2] = [Form::Tls, Form::Plain];

    /// The word in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Form::Tls => "tls",
            Form::Plain => "plain",
        }
    }

    /// From its code on the wire.
    pub fn from_u8(code: u8) -> Option<Self> {
        Form::ALL.into_iter().find(|form| *form as u8 == code)
    }
}

/// The right to answer one open on a data channel, sent along with the open.
/// Its `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelOffer {
    /// What the channel has to run in.
    pub form: Form,
    /// Good for this open alone.
    pub ticket: Ticket,
}

impl fmt::Debug for ChannelOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = self.form.as_str();
        f.debug_struct("ChannelOffer")
            .field("form", &form)
            .finish_non_exhaustive()
    }
}

//! Ends of streams as `io::Error`s that keep their close reason.

use std::error::Error as StdError;
use std::io;

use culvert_mux::StreamError;
use culvert_proto::close::CloseReason;

use super::End;

/// No stream was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no stream opened, {reason}: {detail}")]
pub struct OpenError {
    /// Why, as the one who asked is told.
    pub reason: CloseReason,
    /// What was seen.
    pub detail: String,
}

impl OpenError {
    pub(super) fn new(reason: CloseReason, detail: &(impl ToString + ?Sized)) -> OpenError {
        OpenError {
            reason,
            detail: detail.to_string(),
        }
    }
}

/// The close reason that an error of a [`super::Stream`] carries.
#[must_use]
pub fn close_reason(error: &io::Error) -> Option<CloseReason> {
    close_reason_in(error.get_ref()?)
}

/// The close reason anywhere in the chain of causes, for errors that hyper wrapped.
#[must_use]
pub fn close_reason_in(error: &(dyn StdError + 'static)) -> Option<CloseReason> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(reason) = error.downcast_ref::<CloseReason>() {
            return Some(*reason);
        }
        // `source` of an io::Error skips the very error it wraps.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// A stream error for the handle's owner.
pub(super) fn to_io(reason: CloseReason) -> io::Error {
    let kind = match reason {
        CloseReason::CarrierLost | CloseReason::CarrierDead | CloseReason::WriteStalled => {
            io::ErrorKind::ConnectionAborted
        }
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, reason)
}

/// What a mux error means to the owner of a stream on this end.
pub(super) fn reason_of(error: StreamError, end: End) -> CloseReason {
    match (error, end) {
        (StreamError::Reset, End::Hub) => CloseReason::AgentReset,
        // The hub resets a stream when its client went away.
        (StreamError::Reset, End::Agent) => CloseReason::ClientReset,
        (StreamError::GoneAway(_), _) => CloseReason::Protocol,
        (StreamError::CarrierLost, _) => CloseReason::CarrierLost,
        (StreamError::Finished | StreamError::Unknown(_), _) => CloseReason::Finished,
    }
}

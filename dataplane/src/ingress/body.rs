//! Bodies that this process sends to clients.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use culvert_proto::close::CloseReason;

use super::relayed::Relayed;
use crate::console::Answer;

/// The body of every answer: ours, or one relayed from an agent.
pub enum Body {
    /// Nothing, or all of it at once.
    Whole(Bytes),
    /// Streamed from an agent.
    Relayed(Box<Relayed>),
    /// Streamed from control.
    Control(Box<Answer>),
}

/// Why a body broke off. hyper then cuts the connection inside the framing.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut: {0}")]
pub struct BodyCut(pub CloseReason);

impl Body {
    /// A body without bytes.
    pub fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyCut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyCut>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Relayed(relayed) => relayed.poll_frame(cx),
            Self::Control(answer) => answer.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Relayed(relayed) => relayed.is_done(),
            Self::Control(answer) => answer.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relayed(relayed) => relayed.size_hint(),
            Self::Control(answer) => answer.size_hint(),
        }
    }
}

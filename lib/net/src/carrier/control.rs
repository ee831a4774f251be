//! The control stream of culvert/1: carries what the session says, and tells what it heard.

use std::collections::VecDeque;

use bytes::Bytes;
use culvert_mux::{Mux, Read, StreamId, Write};
use culvert_proto::close::CloseReason;
use culvert_proto::control::{AgentFacts, AgentStats, ControlMessage, Drain, Grant};
use culvert_proto::open::{StreamHeader, StreamKind};
use culvert_proto::session::{self, Output, Session};
use culvert_proto::token::Digest;

use super::core::Core;
use super::shared::Wakes;
use super::{CONTROL_QUEUE_BYTES_MAX, EVENTS_MAX};

/// The hub opens it right after the 101.
pub(super) const STREAM: StreamId = StreamId(1);

/// What the other end told.
#[derive(Debug)]
pub enum SessionEvent {
    /// Hub: the agent said what it is; it was granted its targets.
    Established(AgentFacts),
    /// Agent: this may be reached from now on.
    Granted(Grant),
    /// Agent: connect elsewhere first, then leave.
    Drain(Drain),
    /// Agent: store this token, then call [`super::Carrier::rotated`].
    Rotate(session::RotateOutput),
    /// Hub: the agent stored the token of this digest.
    Rotated(Digest),
    /// Hub: what the agent measured.
    Stats(AgentStats),
    /// Data channels and certificates, as they came.
    Message(ControlMessage),
    /// The peer sent GoAway 0: no new streams, live ones go on.
    PeerDraining,
}

/// Session and control stream of one carrier.
pub(super) struct Control {
    pub(super) session: Session,
    state: State,
    out: VecDeque<Bytes>,
    out_bytes: usize,
}

enum State {
    /// Hub: not opened yet. Agent: not accepted yet.
    New,
    /// Agent: these bytes came with the header.
    Accepted(Bytes),
    Open,
}

impl Control {
    pub(super) fn new(role: session::Role, config: session::Config) -> Control {
        Control {
            session: Session::new(role, config, 0),
            state: State::New,
            out: VecDeque::new(),
            out_bytes: 0,
        }
    }

    /// Agent: the hub opened the control stream.
    pub(super) fn accepted(&mut self, rest: Bytes) {
        self.state = State::Accepted(rest);
    }

    /// Takes the last words of a session that is over; all else it has to say is dropped.
    pub(super) fn say_all(&mut self) {
        while let Some(output) = self.session.poll() {
            if let Output::Send(message) = output {
                self.say(&message);
            }
        }
    }

    fn say(&mut self, message: &ControlMessage) {
        match message.encode() {
            Ok(bytes) => {
                self.out_bytes += bytes.len();
                self.out.push_back(bytes);
            }
            Err(error) => tracing::error!(message = message.name(), %error, "not sent"),
        }
    }

    /// Hands queued messages to the mux, as far as it takes them.
    pub(super) fn flush(&mut self, mux: &mut Mux) {
        if !matches!(self.state, State::Open) {
            return;
        }
        while let Some(bytes) = self.out.pop_front() {
            self.out_bytes -= bytes.len();
            // An error means that the stream is gone, and an event says so.
            if let Ok(Write::Blocked(rest)) = mux.write(STREAM, bytes) {
                self.out_bytes += rest.len();
                self.out.push_front(rest);
                return;
            }
        }
    }
}

impl Core {
    /// Moves the control stream forward: opens it, reads it, does what the session says.
    /// `Err` = the carrier must end.
    pub(super) fn turn_control(
        &mut self,
        now_ms: u64,
        wakes: &mut Wakes,
    ) -> Result<(), (CloseReason, String)> {
        if self.control.is_none() {
            return Ok(());
        }
        self.open_control(now_ms)?;
        self.hear(now_ms, wakes)?;
        if let Some(control) = &mut self.control {
            control.flush(&mut self.mux);
        }
        Ok(())
    }

    /// Hub: opens the control stream. Agent: reads on from its header.
    pub(super) fn open_control(&mut self, now_ms: u64) -> Result<(), (CloseReason, String)> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        match std::mem::replace(&mut control.state, State::Open) {
            State::New if self.end == super::End::Agent => control.state = State::New,
            State::New => {
                if let Err(end) = open_stream(&mut self.mux, now_ms) {
                    control.state = State::New;
                    return Err(end);
                }
            }
            State::Accepted(rest) => control.session.on_data(now_ms, rest),
            State::Open => {}
        }
        Ok(())
    }

    /// Reads as long as there is room for what it leads to; otherwise credit stops the peer.
    fn hear(&mut self, now_ms: u64, wakes: &mut Wakes) -> Result<(), (CloseReason, String)> {
        loop {
            self.obey(wakes)?;
            let Some(control) = &mut self.control else {
                return Ok(());
            };
            let full =
                self.events.len() >= EVENTS_MAX || control.out_bytes >= CONTROL_QUEUE_BYTES_MAX;
            if full || !matches!(control.state, State::Open) || control.session.is_closed() {
                return Ok(());
            }
            match self.mux.read(STREAM, usize::from(u16::MAX)) {
                Ok(Read::Data(data)) => control.session.on_data(now_ms, data),
                Ok(Read::Pending) => return Ok(()),
                Ok(Read::Eof) => {
                    let problem = "the peer finished the control stream without BYE".to_owned();
                    return Err((CloseReason::Protocol, problem));
                }
                Err(error) => return Err((CloseReason::Protocol, error.to_string())),
            }
        }
    }

    /// Does everything the session has to say.
    fn obey(&mut self, wakes: &mut Wakes) -> Result<(), (CloseReason, String)> {
        while let Some(control) = &mut self.control
            && let Some(output) = control.session.poll()
        {
            let event = match output {
                Output::Send(message) => {
                    // The session itself may ask the agent to move.
                    self.draining |= matches!(message, ControlMessage::Drain(_));
                    control.say(&message);
                    continue;
                }
                Output::Rtt { ms } => {
                    self.mux.set_rtt_ms(ms);
                    self.set_rtt_ms(ms);
                    continue;
                }
                Output::Bye(bye) => {
                    let text = format!("the peer said BYE: {}", bye.text);
                    return Err((bye.reason.close_reason(), text));
                }
                Output::Dead { silent_ms } => {
                    let text = format!("no byte received for {silent_ms} ms");
                    return Err((CloseReason::CarrierDead, text));
                }
                Output::Violation(violation) => {
                    return Err((violation.close_reason(), violation.to_string()));
                }
                Output::Established(facts) => {
                    self.set_peer_streams_max(facts.streams_max.unwrap_or(u32::MAX));
                    SessionEvent::Established(facts)
                }
                Output::Granted(grant) => SessionEvent::Granted(grant),
                Output::Drain(drain) => {
                    self.set_draining();
                    SessionEvent::Drain(drain)
                }
                Output::Rotate(rotate) => SessionEvent::Rotate(rotate),
                Output::Rotated(digest) => SessionEvent::Rotated(digest),
                Output::Stats(stats) => SessionEvent::Stats(stats),
                Output::Other(message) => SessionEvent::Message(message),
            };
            self.events.push_back(event);
            wakes.told = true;
        }
        Ok(())
    }
}

fn open_stream(mux: &mut Mux, now_ms: u64) -> Result<(), (CloseReason, String)> {
    let internal = |text: String| (CloseReason::Internal, text);
    let header = StreamHeader::new(StreamKind::Control).encode();
    let header = header.map_err(|e| internal(e.to_string()))?;
    match mux.open(now_ms) {
        Ok(STREAM) => {}
        Ok(id) => return Err(internal(format!("the control stream would be {id}, not 1"))),
        // Even the first stream counts against the budget.
        Err(error) => return Err((CloseReason::Overload, error.to_string())),
    }
    mux.write(STREAM, header)
        .map(|_| ())
        .map_err(|e| internal(e.to_string()))
}

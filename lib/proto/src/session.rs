//! The state machine of the control stream (P7), for both ends.
//!
//! Order of calls: feed what arrived ([`Session::on_data`], and [`Session::on_bytes_received`] for
//! any byte on the carrier), drain [`Session::poll`], sleep no longer than
//! [`Session::next_timeout_ms`], then [`Session::handle_timeout`]. Life is judged by received bytes
//! alone, so a blocked writer can neither hide a death nor cause one.

mod moving;
mod output;
mod rates;
mod receive;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::close::CloseReason;
use crate::control::{
    AgentFacts, AgentStats, Bye, ByeReason, ChannelFail, ControlDecoder, ControlMessage, Drain,
    Grant, Rotate, Tickets,
};
use crate::hello::{Caps, HelloAnswer};
use crate::id::Epoch;
use crate::limits::{BEAT_DEAD_MS, BEAT_INTERVAL_MS, UPGRADE_TIMEOUT_MS};
use crate::token::Digest;
use rates::Rates;

pub use moving::Lifetime;
pub use output::{Output, RotateOutput, VerbError, Violation};

/// Outputs that may wait to be polled; more is a defect of the peer or of the driver.
pub const OUTPUTS_MAX: usize = 256;
/// Control messages a peer may send in a second.
pub const MESSAGES_PER_SECOND_MAX: u32 = 256;
/// Rotations that may wait for their answer.
pub const ROTATIONS_MAX: u32 = 4;

/// Which end this is, with what it says first.
#[derive(Clone, Debug)]
pub enum Role {
    /// The hub waits for HELLO and answers with this grant.
    Hub(Grant),
    /// The agent begins with HELLO.
    Agent(AgentFacts),
}

/// Times and capabilities of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// A BEAT leaves this often, ms.
    pub beat_ms: u64,
    /// Dead this long after the last byte received, ms.
    pub dead_ms: u64,
    /// HELLO or GRANT must have come by then, ms.
    pub hello_timeout_ms: u64,
    /// What both ends can do.
    pub caps: Caps,
    /// Hub: how long the carrier is used.
    pub lifetime: Lifetime,
}

/// One session's control stream.
pub struct Session {
    role: Role,
    config: Config,
    phase: Phase,
    decoder: ControlDecoder,
    outputs: VecDeque<Output>,
    /// Answer to the latest BEAT. One slot: a flood of BEATs costs one ECHO.
    echo: Option<u64>,
    started_ms: u64,
    received_ms: u64,
    next_beat_ms: u64,
    nonce: u64,
    beat_sent: Option<(u64, u64)>,
    rates: Rates,
    rotations: u32,
    /// Hub: streams opened.
    opens: u64,
    /// Hub: DRAIN was sent.
    told_to_move: bool,
    /// Agent: the epoch of the first GRANT, which later ones must repeat.
    epoch: Option<Epoch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// HELLO or GRANT is awaited.
    Opening,
    Open,
    Closed(CloseReason),
}

impl Default for Config {
    fn default() -> Self {
        Config {
            beat_ms: BEAT_INTERVAL_MS,
            dead_ms: BEAT_DEAD_MS,
            hello_timeout_ms: UPGRADE_TIMEOUT_MS,
            caps: Caps::default(),
            lifetime: Lifetime::default(),
        }
    }
}

impl From<&HelloAnswer> for Config {
    fn from(answer: &HelloAnswer) -> Self {
        let HelloAnswer {
            caps,
            beat_ms,
            dead_ms,
            ..
        } = *answer;
        Config {
            beat_ms,
            dead_ms,
            caps,
            ..Config::default()
        }
    }
}

// === impl Session ===

impl Session {
    /// Begins a session; the agent's HELLO is queued at once.
    pub fn new(role: Role, config: Config, now_ms: u64) -> Session {
        let hello = match &role {
            Role::Hub(_) => None,
            Role::Agent(facts) => Some(Output::Send(ControlMessage::Hello(facts.clone()))),
        };
        Session {
            role,
            config,
            phase: Phase::Opening,
            decoder: ControlDecoder::new(),
            outputs: hello.into_iter().collect(),
            echo: None,
            started_ms: now_ms,
            received_ms: now_ms,
            next_beat_ms: now_ms.saturating_add(config.beat_ms),
            nonce: 0,
            beat_sent: None,
            rates: Rates::default(),
            rotations: 0,
            opens: 0,
            told_to_move: false,
            epoch: None,
        }
    }

    /// Any byte came in on the carrier, on whatever stream.
    pub fn on_bytes_received(&mut self, now_ms: u64) {
        self.received_ms = self.received_ms.max(now_ms);
    }

    /// Bytes of the control stream came in. All of `data` is taken.
    pub fn on_data(&mut self, now_ms: u64, mut data: Bytes) {
        self.on_bytes_received(now_ms);
        while !self.is_closed() {
            match self.decoder.push(&mut data) {
                Ok(Some(message)) => self.on_message(now_ms, message),
                Ok(None) => return,
                Err(error) => self.violate(error.into()),
            }
        }
    }

    /// One message came in. For drivers that decode by themselves.
    pub fn on_message(&mut self, now_ms: u64, message: ControlMessage) {
        self.on_bytes_received(now_ms);
        if self.is_closed() {
            return;
        }
        if let Err(violation) = self.receive(now_ms, message) {
            self.violate(violation);
        }
    }

    /// The next thing to do; `None` = wait. Ask until it is `None` after every other call.
    pub fn poll(&mut self) -> Option<Output> {
        let first = self.outputs.pop_front();
        if self.outputs.is_empty() {
            // Most sessions of a hub wait: they keep no room.
            self.outputs = VecDeque::new();
        }
        first.or_else(|| {
            self.echo
                .take()
                .map(|nonce| Output::Send(ControlMessage::Echo { nonce }))
        })
    }

    /// When [`Session::handle_timeout`] has something to do, ms; `None` once the session is over.
    pub fn next_timeout_ms(&self) -> Option<u64> {
        let next = self.dead_at_ms().min(self.next_beat_ms);
        match self.phase {
            Phase::Opening => Some(next.min(self.late_at_ms())),
            Phase::Open => Some(self.moves_at_ms().map_or(next, |at| next.min(at))),
            Phase::Closed(_) => None,
        }
    }

    /// Does what is due: death, a hello that never came, a BEAT, the end of the carrier's time.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        if self.is_closed() {
            return;
        }
        if now_ms >= self.dead_at_ms() {
            let silent_ms = now_ms - self.received_ms;
            self.close(CloseReason::CarrierDead, Output::Dead { silent_ms });
        } else if self.phase == Phase::Opening && now_ms >= self.late_at_ms() {
            let name = if matches!(self.role, Role::Hub(_)) {
                "HELLO"
            } else {
                "GRANT"
            };
            let after_ms = self.config.hello_timeout_ms;
            self.violate(Violation::Late { name, after_ms });
        } else {
            if now_ms >= self.next_beat_ms {
                self.beat(now_ms);
            }
            if self.moves_at_ms().is_some_and(|at| now_ms >= at) {
                self.ask_to_move();
            }
        }
    }

    /// Hub: tells the agent to move.
    pub fn drain(&mut self, drain: Drain) -> Result<(), VerbError> {
        self.may(matches!(self.role, Role::Hub(_)), Caps::DRAIN)?;
        self.told_to_move = true;
        self.send(ControlMessage::Drain(drain));
        Ok(())
    }

    /// Hub: hands the agent a new token.
    pub fn rotate(&mut self, rotate: Rotate) -> Result<(), VerbError> {
        let ready = self.phase == Phase::Open && self.rotations < ROTATIONS_MAX;
        self.may(ready && matches!(self.role, Role::Hub(_)), Caps::ROTATE)?;
        self.rotations += 1;
        self.send(ControlMessage::Rotate(rotate));
        Ok(())
    }

    /// Agent: the token of the last ROTATE is stored durably.
    pub fn rotated(&mut self, digest: Digest) -> Result<(), VerbError> {
        let asked = self.rotations > 0 && matches!(self.role, Role::Agent(_));
        self.may(asked, Caps::ROTATE)?;
        self.rotations -= 1;
        self.send(ControlMessage::Rotated { digest });
        Ok(())
    }

    /// Agent: what it measured.
    pub fn stats(&mut self, stats: AgentStats) -> Result<(), VerbError> {
        let ready = self.phase == Phase::Open && matches!(self.role, Role::Agent(_));
        self.may(ready, Caps::STATUS)?;
        self.send(ControlMessage::Stats(stats));
        Ok(())
    }

    /// Hub: rights to open data channels.
    pub fn tickets(&mut self, tickets: Tickets) -> Result<(), VerbError> {
        let ready = self.phase == Phase::Open && matches!(self.role, Role::Hub(_));
        self.may(ready, Caps::CHANNEL)?;
        self.send(ControlMessage::Tickets(tickets));
        Ok(())
    }

    /// Agent: sign this request for a certificate (PKCS#10).
    pub fn renew(&mut self, csr: Vec<u8>) -> Result<(), VerbError> {
        let ready = self.phase == Phase::Open && matches!(self.role, Role::Agent(_));
        self.may(ready, Caps::RENEW)?;
        self.send(ControlMessage::Renew { csr });
        Ok(())
    }

    /// Hub: a certificate, or none, and the CAs that are trusted now.
    pub fn cert(&mut self, chain: String, ca_bundle: String) -> Result<(), VerbError> {
        let ready = self.phase == Phase::Open && matches!(self.role, Role::Hub(_));
        self.may(ready, Caps::RENEW)?;
        self.send(ControlMessage::Cert { chain, ca_bundle });
        Ok(())
    }

    /// Agent: a data channel could not be opened.
    pub fn channel_fail(&mut self, fail: ChannelFail) -> Result<(), VerbError> {
        let ready = self.phase == Phase::Open && matches!(self.role, Role::Agent(_));
        self.may(ready, Caps::CHANNEL)?;
        self.send(ControlMessage::ChannelFail(fail));
        Ok(())
    }

    /// Hub: a new grant for the same epoch.
    pub fn grant(&mut self, targets: Vec<Arc<str>>) -> Result<(), VerbError> {
        let open = self.phase == Phase::Open;
        self.may(true, Caps::default())?;
        let Role::Hub(grant) = &mut self.role else {
            return Err(VerbError::OutOfPlace);
        };
        grant.targets = targets;
        // Before HELLO the new grant simply is the one that will be sent.
        if open {
            let grant = grant.clone();
            self.send(ControlMessage::Grant(grant));
        }
        Ok(())
    }

    /// Ends the session: BYE is queued as the last message.
    pub fn bye(&mut self, reason: CloseReason, text: &str) {
        if !self.is_closed() {
            let bye = Bye {
                reason: ByeReason::for_close(reason),
                text: String::from(text),
            };
            self.close(reason, Output::Send(ControlMessage::Bye(bye)));
        }
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    /// Why the session is over.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match self.phase {
            Phase::Closed(reason) => Some(reason),
            Phase::Opening | Phase::Open => None,
        }
    }

    /// Whether HELLO and GRANT are through.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    fn dead_at_ms(&self) -> u64 {
        self.received_ms.saturating_add(self.config.dead_ms)
    }

    fn late_at_ms(&self) -> u64 {
        self.started_ms.saturating_add(self.config.hello_timeout_ms)
    }

    fn beat(&mut self, now_ms: u64) {
        self.nonce = self.nonce.wrapping_add(1);
        self.beat_sent = Some((self.nonce, now_ms));
        self.next_beat_ms = now_ms.saturating_add(self.config.beat_ms);
        self.send(ControlMessage::Beat { nonce: self.nonce });
    }

    fn may(&self, in_place: bool, caps: Caps) -> Result<(), VerbError> {
        if self.is_closed() {
            Err(VerbError::Closed)
        } else if !self.config.caps.has(caps) {
            Err(VerbError::NotNegotiated)
        } else if in_place {
            Ok(())
        } else {
            Err(VerbError::OutOfPlace)
        }
    }

    fn send(&mut self, message: ControlMessage) {
        self.push(Output::Send(message));
    }

    fn push(&mut self, output: Output) {
        if self.outputs.len() < OUTPUTS_MAX {
            self.outputs.push_back(output);
        } else {
            self.violate(Violation::Backlog);
        }
    }

    fn violate(&mut self, violation: Violation) {
        if self.is_closed() {
            return;
        }
        let reason = violation.close_reason();
        self.bye(reason, &alloc::format!("{violation}"));
        self.outputs.push_back(Output::Violation(violation));
    }

    /// Queues the last output; nothing but the queue is left afterwards.
    fn close(&mut self, reason: CloseReason, last: Output) {
        self.phase = Phase::Closed(reason);
        self.echo = None;
        self.outputs.push_back(last);
    }
}

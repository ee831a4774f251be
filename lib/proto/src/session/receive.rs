//! What each message does, by role and phase.

use super::{Output, Phase, Role, RotateOutput, Session, Violation};
use crate::control::ControlMessage;
use crate::hello::Caps;

impl Session {
    pub(super) fn receive(
        &mut self,
        now_ms: u64,
        message: ControlMessage,
    ) -> Result<(), Violation> {
        self.rates
            .count(now_ms, matches!(message, ControlMessage::Beat { .. }))?;
        match message {
            ControlMessage::Beat { nonce } => self.echo = Some(nonce),
            ControlMessage::Echo { nonce } => self.on_echo(now_ms, nonce),
            ControlMessage::Bye(bye) => {
                self.close(bye.reason.close_reason(), Output::Bye(bye));
            }
            message => match self.role {
                Role::Hub(_) => self.receive_from_agent(message)?,
                Role::Agent(_) => self.receive_from_hub(message)?,
            },
        }
        Ok(())
    }

    fn on_echo(&mut self, now_ms: u64, nonce: u64) {
        // Only the latest BEAT is measured; a late ECHO of an older one was life, nothing more.
        if let Some((sent, at_ms)) = self.beat_sent
            && sent == nonce
        {
            self.beat_sent = None;
            self.push(Output::Rtt {
                ms: now_ms.saturating_sub(at_ms),
            });
        }
    }

    fn receive_from_agent(&mut self, message: ControlMessage) -> Result<(), Violation> {
        let name = message.name();
        match (&self.phase, message) {
            (Phase::Opening, ControlMessage::Hello(facts)) => {
                self.phase = Phase::Open;
                if let Role::Hub(grant) = &self.role {
                    let grant = ControlMessage::Grant(grant.clone());
                    self.send(grant);
                }
                self.push(Output::Established(facts));
            }
            (Phase::Open, ControlMessage::Rotated { digest }) if self.rotations > 0 => {
                self.rotations -= 1;
                self.push(Output::Rotated(digest));
            }
            (Phase::Open, ControlMessage::Stats(stats)) => {
                self.negotiated(Caps::STATUS, name)?;
                self.push(Output::Stats(stats));
            }
            (Phase::Open, message @ ControlMessage::ChannelFail(_)) => {
                self.negotiated(Caps::CHANNEL, name)?;
                self.push(Output::Other(message));
            }
            (Phase::Open, message @ ControlMessage::Renew { .. }) => {
                self.negotiated(Caps::RENEW, name)?;
                self.push(Output::Other(message));
            }
            _ => return Err(Violation::OutOfPlace { name }),
        }
        Ok(())
    }

    fn receive_from_hub(&mut self, message: ControlMessage) -> Result<(), Violation> {
        let name = message.name();
        match (&self.phase, message) {
            (Phase::Opening | Phase::Open, ControlMessage::Grant(grant)) => {
                if self.epoch.is_some_and(|epoch| epoch != grant.epoch) {
                    return Err(Violation::OutOfPlace { name });
                }
                self.epoch = Some(grant.epoch);
                self.phase = Phase::Open;
                self.push(Output::Granted(grant));
            }
            (_, ControlMessage::Drain(drain)) => {
                self.negotiated(Caps::DRAIN, name)?;
                self.push(Output::Drain(drain));
            }
            (Phase::Open, ControlMessage::Rotate(rotate)) => {
                self.negotiated(Caps::ROTATE, name)?;
                if self.rotations >= super::ROTATIONS_MAX {
                    return Err(Violation::OutOfPlace { name });
                }
                self.rotations += 1;
                self.push(Output::Rotate(RotateOutput(rotate)));
            }
            (Phase::Open, message @ ControlMessage::Tickets(_)) => {
                self.negotiated(Caps::CHANNEL, name)?;
                self.push(Output::Other(message));
            }
            (Phase::Open, message @ ControlMessage::Cert { .. }) => {
                self.negotiated(Caps::RENEW, name)?;
                self.push(Output::Other(message));
            }
            _ => return Err(Violation::OutOfPlace { name }),
        }
        Ok(())
    }

    fn negotiated(&self, caps: Caps, name: &'static str) -> Result<(), Violation> {
        if self.config.caps.has(caps) {
            Ok(())
        } else {
            Err(Violation::NotNegotiated { name })
        }
    }
}

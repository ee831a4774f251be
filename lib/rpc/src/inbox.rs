//! Judges what comes down: signature first, then hub, then order. Pure but for
//! the trust file.

use bytes::Bytes;
use culvert_net::crypto::{VERIFYING_KEY_BYTES, VerifyingKey};
use culvert_proto::id::Generation;
use culvert_proto::update::{Rotation, SIGNATURE_BYTES, SignedFrame, Snapshot, Update};

use crate::client::{Event, Held};
use crate::generated::state_message::Kind;
use crate::generated::{StateMessage, Up};
use crate::trust::{Trust, TrustError, hex};

/// Why a message ends the link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("control's message is malformed: {0}")]
    Malformed(String),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the signature of control's {kind} by key {key} does not hold")]
    Signature { kind: &'static str, key: String },
    #[error("state of hub {seen}, this data plane holds the state of hub {held}")]
    OtherHub { seen: String, held: String },
    #[error(
        "generation {seen} is older than generation {held} held here: was control's store \
         restored from a copy?"
    )]
    Older { seen: u64, held: u64 },
}

/// What became of a message.
pub(crate) enum Taken {
    Event(Box<Event>),
    /// An update is missing: ask for a snapshot.
    Missed,
    Nothing,
}

impl Taken {
    fn event(event: Event) -> Self {
        Self::Event(Box::new(event))
    }
}

pub(crate) struct Inbox {
    trust: Trust,
    held: Option<Held>,
    need_snapshot: bool,
}

impl Inbox {
    pub(crate) fn new(trust: Trust, held: Option<Held>) -> Self {
        Self {
            trust,
            held,
            need_snapshot: false,
        }
    }

    /// From now on only a snapshot helps.
    pub(crate) fn ask(&mut self) {
        self.need_snapshot = true;
    }

    /// The message up that says what is held.
    pub(crate) fn up(&self, report: Bytes) -> Up {
        let (hub_id, generation) = match &self.held {
            Some(held) => (held.hub_id.clone(), held.generation.0),
            None => (String::new(), 0),
        };
        Up {
            generation,
            hub_id,
            need_snapshot: self.need_snapshot,
            report,
        }
    }

    pub(crate) fn take(&mut self, message: StateMessage) -> Result<Taken, Refused> {
        match message.kind() {
            Kind::Unspecified => Err(Refused::Malformed("its kind is unknown".to_owned())),
            Kind::Beat => Ok(Taken::Nothing),
            Kind::Snapshot => self.snapshot(message),
            Kind::Update => self.update(message),
            Kind::Rotation => self.rotation(&message),
        }
    }

    fn snapshot(&mut self, message: StateMessage) -> Result<Taken, Refused> {
        let key = self.believed(&message, "snapshot")?;
        let snapshot = Snapshot::decode(&message.body)
            .map_err(|why| Refused::Malformed(format!("snapshot: {why}")))?;
        let seen = snapshot.generation;
        let hub_id = snapshot.hub_id.to_string();
        if let Some(held) = &self.held {
            if held.hub_id != hub_id {
                return Err(Refused::OtherHub {
                    seen: hub_id,
                    held: held.hub_id.clone(),
                });
            }
            if seen < held.generation {
                return Err(Refused::Older {
                    seen: seen.0,
                    held: held.generation.0,
                });
            }
        }
        self.held = Some(Held {
            hub_id,
            generation: seen,
        });
        self.need_snapshot = false;
        Ok(Taken::event(Event::Snapshot {
            snapshot,
            signed: signed(message, key)?,
        }))
    }

    fn update(&mut self, message: StateMessage) -> Result<Taken, Refused> {
        let key = self.believed(&message, "update")?;
        let update = Update::decode(&message.body)
            .map_err(|why| Refused::Malformed(format!("update: {why}")))?;
        if self.need_snapshot {
            return Ok(Taken::Nothing);
        }
        let Some(held) = &mut self.held else {
            self.need_snapshot = true;
            return Ok(Taken::Missed);
        };
        let seen = update.generation.0;
        if seen <= held.generation.0 {
            return Err(Refused::Older {
                seen,
                held: held.generation.0,
            });
        }
        if Some(seen) != held.generation.0.checked_add(1) {
            self.need_snapshot = true;
            return Ok(Taken::Missed);
        }
        let signed = signed(message, key)?;
        held.generation = Generation(seen);
        Ok(Taken::event(Event::Update { update, signed }))
    }

    fn rotation(&self, message: &StateMessage) -> Result<Taken, Refused> {
        self.believed(message, "rotation")?;
        let rotation = Rotation::decode(&message.body)
            .map_err(|why| Refused::Malformed(format!("rotation: {why}")))?;
        Ok(Taken::event(Event::Rotation(rotation)))
    }

    /// The key, when it is trusted and its signature of the body holds. A key
    /// is learned only from a message whose signature holds under it.
    fn believed(
        &self,
        message: &StateMessage,
        kind: &'static str,
    ) -> Result<VerifyingKey, Refused> {
        let key: [u8; VERIFYING_KEY_BYTES] = message.public_key[..]
            .try_into()
            .map_err(|_| Refused::Malformed("the public key is not 32 bytes".to_owned()))?;
        let key = VerifyingKey::from_bytes(key);
        if !key.verify(&message.body, &message.signature) {
            return Err(Refused::Signature {
                kind,
                key: hex(&key.id()),
            });
        }
        Ok(self.trust.accept(key)?)
    }
}

fn signed(message: StateMessage, key: VerifyingKey) -> Result<SignedFrame, Refused> {
    let signature: Result<[u8; SIGNATURE_BYTES], _> = message.signature[..].try_into();
    Ok(SignedFrame {
        key_id: key.id(),
        signature: signature
            .map_err(|_| Refused::Malformed("a signature is not 64 bytes".to_owned()))?,
        body: message.body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Feed;
    use culvert_net::crypto::SigningKey;
    use culvert_proto::update::State;

    fn feed(hub: &str, generation: u64) -> Feed {
        let generation = Generation(generation);
        let state = State {
            generation,
            hub_id: hub.into(),
            ..State::default()
        };
        Feed::new(SigningKey::generate().unwrap(), state)
    }

    fn step(feed: &Feed) {
        let generation = Generation(feed.generation().0 + 1);
        feed.publish(&Update {
            generation,
            ..Update::default()
        })
        .unwrap();
    }

    /// What `feed` sends to one that holds `generation`.
    fn message(feed: &Feed, generation: u64) -> StateMessage {
        feed.next(&mut feed.position("hub", Generation(generation)))
            .unwrap()
    }

    fn inbox(feed: &Feed, held: u64) -> Inbox {
        let held = Held {
            hub_id: "hub".to_owned(),
            generation: Generation(held),
        };
        Inbox::new(Trust::Key(feed.verifying_key()), Some(held))
    }

    fn refused(inbox: &mut Inbox, message: StateMessage) -> String {
        inbox.take(message).err().expect("refused").to_string()
    }

    #[test]
    fn a_changed_byte_is_refused_wherever_it_stands() {
        let feed = feed("hub", 1);
        step(&feed);
        for held in [0, 1] {
            let whole = message(&feed, held);
            for place in 0..whole.body.len() {
                let mut body = whole.body.to_vec();
                body[place] ^= 1;
                let message = StateMessage {
                    body: body.into(),
                    ..whole.clone()
                };
                let said = refused(&mut inbox(&feed, held.max(1)), message);
                assert!(said.contains("signature"), "{said}");
            }
        }
    }

    #[test]
    fn a_signature_of_another_key_is_refused() {
        let (ours, theirs) = (feed("hub", 1), feed("hub", 5));
        let said = refused(&mut inbox(&ours, 1), message(&theirs, 0));
        assert!(said.contains("trusts"), "{said}");
    }

    #[test]
    fn an_update_never_passes_for_a_snapshot() {
        let feed = feed("hub", 1);
        step(&feed);
        let kind = Kind::Snapshot.into();
        let said = refused(
            &mut inbox(&feed, 1),
            StateMessage {
                kind,
                ..message(&feed, 1)
            },
        );
        assert!(said.contains("malformed"), "{said}");
    }

    #[test]
    fn a_lower_generation_and_another_hub_are_refused() {
        let older = feed("hub", 3);
        let said = refused(&mut inbox(&older, 4), message(&older, 0));
        assert!(
            said.contains("generation 3 is older than generation 4"),
            "{said}"
        );
        let other = feed("other", 9);
        let said = refused(&mut inbox(&other, 4), message(&other, 0));
        assert!(said.contains("hub other"), "{said}");
        step(&older);
        let replayed = message(&older, 3);
        assert!(refused(&mut inbox(&older, 4), replayed).contains("older"));
    }

    #[test]
    fn a_missed_update_leads_to_a_snapshot_and_nothing_between() {
        let feed = feed("hub", 1);
        (0..4).for_each(|_| step(&feed));
        let mut inbox = inbox(&feed, 1);
        assert!(matches!(inbox.take(message(&feed, 2)), Ok(Taken::Missed)));
        assert!(inbox.up(Bytes::new()).need_snapshot);
        assert!(matches!(inbox.take(message(&feed, 3)), Ok(Taken::Nothing)));
        let taken = inbox.take(message(&feed, 0));
        let Ok(Taken::Event(taken)) = taken else {
            panic!("no event");
        };
        assert!(matches!(*taken, Event::Snapshot { .. }));
        let up = inbox.up(Bytes::new());
        assert_eq!((up.need_snapshot, up.generation), (false, 5));
    }
}

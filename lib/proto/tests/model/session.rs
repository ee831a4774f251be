//! Two ends of a session over a virtual link that delays, splits, stalls and cuts.

use std::collections::VecDeque;

use bytes::Bytes;
use culvert_proto::close::CloseReason;
use culvert_proto::control::*;
use culvert_proto::hello::Caps;
use culvert_proto::id::Epoch;
use culvert_proto::session::*;
use culvert_proto::token::{Digest, TokenText};
use proptest::prelude::*;

const DEAD_MS: u64 = 15_000;

#[derive(Clone, Debug)]
enum Action {
    Nothing,
    Drain,
    Rotate,
    Stats,
    Regrant,
    HubBye,
    AgentBye,
    /// Bytes of some stream arrive: life, without a control message.
    Traffic {
        at_hub: bool,
    },
    /// One direction loses everything from now on.
    Cut {
        to_hub: bool,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let side = any::<bool>();
    prop_oneof![
        6 => Just(Action::Nothing),
        3 => Just(Action::Drain),
        4 => Just(Action::Rotate),
        3 => Just(Action::Stats),
        2 => Just(Action::Regrant),
        1 => Just(Action::HubBye),
        1 => Just(Action::AgentBye),
        4 => side.prop_map(|at_hub| Action::Traffic { at_hub }),
        2 => side.prop_map(|to_hub| Action::Cut { to_hub }),
    ]
}

/// One direction: pieces in flight with their time of arrival.
#[derive(Default)]
struct Link {
    flying: VecDeque<(u64, Bytes)>,
    cut: bool,
}

struct End {
    session: Session,
    /// Model: when a byte last arrived, and what was seen.
    last_received_ms: u64,
    seen: Vec<Seen>,
    ended: Option<(u64, CloseReason)>,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Established,
    Granted(usize),
    Drain(u32),
    Rotate(u64),
    Rotated(u8),
    Stats(u32),
    Bye(ByeReason),
    Dead,
}

struct World {
    now_ms: u64,
    hub: End,
    agent: End,
    to_hub: Link,
    to_agent: Link,
    delay_ms: u64,
    piece: usize,
    /// Model: what the other end must see, in this order.
    sent_to_agent: Vec<Seen>,
    sent_to_hub: Vec<Seen>,
    /// Targets in the grant in force.
    granted: usize,
    ever_cut: bool,
    counter: u8,
}

fn end(role: Role, caps: Caps) -> End {
    let config = Config {
        caps,
        ..Config::default()
    };
    End {
        session: Session::new(role, config, 0),
        last_received_ms: 0,
        seen: Vec::new(),
        ended: None,
    }
}

impl World {
    fn new(delay_ms: u64, piece: usize) -> Self {
        let caps = Caps::DRAIN.with(Caps::ROTATE).with(Caps::STATUS);
        let grant = Grant {
            epoch: Epoch(5),
            targets: vec!["web".into()],
        };
        World {
            now_ms: 0,
            hub: end(Role::Hub(grant), caps),
            agent: end(Role::Agent(AgentFacts::default()), caps),
            to_hub: Link::default(),
            to_agent: Link::default(),
            delay_ms,
            piece,
            sent_to_agent: Vec::new(),
            sent_to_hub: vec![Seen::Established],
            granted: 1,
            ever_cut: false,
            counter: 0,
        }
    }

    /// Runs every arrival and timer up to `until_ms`, in order of time.
    fn advance(&mut self, until_ms: u64) {
        loop {
            self.pump();
            let arrivals = [&self.to_hub, &self.to_agent].map(|l| l.flying.front().map(|f| f.0));
            let timers = [&self.hub, &self.agent].map(|end| end.session.next_timeout_ms());
            let next = arrivals.into_iter().chain(timers).flatten().min();
            let Some(next) = next.filter(|next| *next <= until_ms) else {
                break;
            };
            self.now_ms = self.now_ms.max(next);
            deliver(&mut self.to_hub, &mut self.hub, self.now_ms);
            deliver(&mut self.to_agent, &mut self.agent, self.now_ms);
            for end in [&mut self.hub, &mut self.agent] {
                if end
                    .session
                    .next_timeout_ms()
                    .is_some_and(|at| at <= self.now_ms)
                {
                    end.session.handle_timeout(self.now_ms);
                    let again = end.session.next_timeout_ms();
                    assert!(
                        again.is_none_or(|at| at > self.now_ms),
                        "a timer that spins"
                    );
                }
            }
        }
        self.now_ms = until_ms;
    }

    fn pump(&mut self) {
        for at_hub in [true, false] {
            let (end, link) = match at_hub {
                true => (&mut self.hub, &mut self.to_agent),
                false => (&mut self.agent, &mut self.to_hub),
            };
            while let Some(output) = end.session.poll() {
                assert!(end.ended.is_none(), "{output:?} after the end");
                let arrival = self.now_ms + self.delay_ms;
                if matches!(output, Output::Established(_)) {
                    self.sent_to_agent.push(Seen::Granted(self.granted));
                }
                if let Some(rotated) = end.observe(output, self.now_ms, arrival, self.piece, link) {
                    self.sent_to_hub.push(rotated);
                }
            }
            if let Some(reason) = end.session.close_reason() {
                end.ended.get_or_insert((self.now_ms, reason));
            }
        }
    }

    fn act(&mut self, action: &Action) {
        self.counter = self.counter.wrapping_add(1);
        let mark = u32::from(self.counter);
        match action {
            Action::Nothing => {}
            Action::Drain => {
                let drain = Drain {
                    reconnect_within_ms: mark,
                    ..Drain::default()
                };
                if self.hub.session.drain(drain).is_ok() {
                    self.sent_to_agent.push(Seen::Drain(mark));
                }
            }
            Action::Rotate => {
                let token = TokenText::new("a-shared-secret-of-a-file").unwrap();
                let rotate = Rotate {
                    not_before_unix_s: mark.into(),
                    token,
                };
                if self.hub.session.rotate(rotate).is_ok() {
                    self.sent_to_agent.push(Seen::Rotate(mark.into()));
                }
            }
            Action::Stats => {
                let stats = AgentStats {
                    streams: Some(mark),
                    ..AgentStats::default()
                };
                if self.agent.session.stats(stats).is_ok() {
                    self.sent_to_hub.push(Seen::Stats(mark));
                }
            }
            Action::Regrant => {
                let targets = vec!["web".into(); usize::from(self.counter % 7)];
                let open = self.hub.session.is_open();
                if self.hub.session.grant(targets).is_ok() {
                    self.granted = usize::from(self.counter % 7);
                    if open {
                        self.sent_to_agent.push(Seen::Granted(self.granted));
                    }
                }
            }
            Action::HubBye => self.hub.session.bye(CloseReason::Revoked, "revoked"),
            Action::AgentBye => self.agent.session.bye(CloseReason::Shutdown, "stop"),
            Action::Traffic { at_hub } => {
                let end = if *at_hub {
                    &mut self.hub
                } else {
                    &mut self.agent
                };
                if end.ended.is_none() {
                    end.session.on_bytes_received(self.now_ms);
                    end.last_received_ms = self.now_ms;
                }
            }
            Action::Cut { to_hub } => {
                self.ever_cut = true;
                let link = if *to_hub {
                    &mut self.to_hub
                } else {
                    &mut self.to_agent
                };
                link.cut = true;
                link.flying.clear();
            }
        }
        self.pump();
    }

    fn check(&self) {
        for (end, sent) in [
            (&self.hub, &self.sent_to_hub),
            (&self.agent, &self.sent_to_agent),
        ] {
            let silent_ms = self.now_ms - end.last_received_ms;
            match end.ended {
                Some((at_ms, CloseReason::CarrierDead)) => {
                    assert_eq!(
                        at_ms,
                        end.last_received_ms + DEAD_MS,
                        "dead at the limit, not else"
                    );
                }
                Some(_) => {}
                None => assert!(silent_ms < DEAD_MS, "{silent_ms} ms of silence and alive"),
            }
            let seen: Vec<&Seen> = end
                .seen
                .iter()
                .filter(|s| !matches!(s, Seen::Bye(_) | Seen::Dead))
                .collect();
            let expected: Vec<&Seen> = sent.iter().take(seen.len()).collect();
            assert_eq!(seen, expected, "in order, once, nothing invented");
        }
        if !self.ever_cut {
            for end in [&self.hub, &self.agent] {
                assert!(!end.seen.contains(&Seen::Dead), "a false death");
                let orderly = [CloseReason::Revoked, CloseReason::Shutdown];
                assert!(
                    end.ended
                        .is_none_or(|(_, reason)| orderly.contains(&reason))
                );
            }
        }
    }
}

impl End {
    /// Notes an output; what is sent flies in pieces. Returns what the hub must see later.
    fn observe(
        &mut self,
        output: Output,
        now_ms: u64,
        arrival_ms: u64,
        piece: usize,
        link: &mut Link,
    ) -> Option<Seen> {
        match output {
            Output::Send(message) => {
                let bytes = message.encode().unwrap();
                if !link.cut {
                    let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice);
                    link.flying.extend(pieces.map(|piece| (arrival_ms, piece)));
                }
            }
            Output::Established(_) => self.seen.push(Seen::Established),
            Output::Granted(grant) => self.seen.push(Seen::Granted(grant.targets.len())),
            Output::Drain(drain) => self.seen.push(Seen::Drain(drain.reconnect_within_ms)),
            Output::Rotate(RotateOutput(rotate)) => {
                self.seen.push(Seen::Rotate(rotate.not_before_unix_s));
                let mark = u8::try_from(rotate.not_before_unix_s).unwrap();
                match self.session.rotated(Digest([mark; 32])) {
                    Ok(()) => return Some(Seen::Rotated(mark)),
                    // BYE came behind ROTATE, before anybody looked.
                    Err(why) => assert!(self.session.is_closed(), "{why}"),
                }
            }
            Output::Rotated(digest) => self.seen.push(Seen::Rotated(digest.0[0])),
            Output::Stats(stats) => self.seen.push(Seen::Stats(stats.streams.unwrap())),
            Output::Rtt { ms } => assert!(ms <= 2 * DEAD_MS),
            Output::Bye(bye) => self.seen.push(Seen::Bye(bye.reason)),
            Output::Dead { silent_ms } => {
                assert_eq!(silent_ms, now_ms - self.last_received_ms);
                self.seen.push(Seen::Dead);
            }
            Output::Other(message) => panic!("{message:?} was never sent"),
            // A cut may swallow HELLO or GRANT; `check` knows whether there was one.
            Output::Violation(Violation::Late { .. }) => {
                assert_eq!(now_ms, 10_000);
                self.seen.push(Seen::Dead);
            }
            Output::Violation(violation) => panic!("two honest ends: {violation}"),
        }
        None
    }
}

fn deliver(link: &mut Link, end: &mut End, now_ms: u64) {
    while link.flying.front().is_some_and(|(at, _)| *at <= now_ms) {
        let (_, bytes) = link.flying.pop_front().unwrap();
        if end.ended.is_none() && !end.session.is_closed() {
            end.session.on_data(now_ms, bytes);
            end.last_received_ms = now_ms;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(600)))]

    #[test]
    fn two_ends_agree_in_every_schedule(
        delay_ms in 0u64..3_000,
        piece in 1usize..40,
        steps in proptest::collection::vec((0u64..9_000, action()), 0..40),
    ) {
        let mut world = World::new(delay_ms, piece);
        for (wait_ms, action) in &steps {
            world.advance(world.now_ms + wait_ms);
            world.act(action);
            world.check();
        }
        let until = world.now_ms + 40_000;
        world.advance(until);
        world.check();
        // Whatever was cut, both ends have noticed by now; whatever was not, has arrived.
        if world.ever_cut {
            for (end, cut) in [(&world.hub, world.to_hub.cut), (&world.agent, world.to_agent.cut)] {
                prop_assert!(!cut || end.ended.is_some());
            }
        } else if world.hub.ended.is_none() {
            prop_assert_eq!(&world.hub.seen, &world.sent_to_hub);
            prop_assert_eq!(&world.agent.seen, &world.sent_to_agent);
        }
    }

    /// A hostile peer: any messages in any order cost a reason, never a panic or a growing queue.
    #[test]
    fn hostile_peers_cost_a_reason(
        at_hub: bool,
        bytes in proptest::collection::vec((0u8..15, proptest::collection::vec(any::<u8>(), 0..60)), 0..80),
        gap_ms in 0u64..100,
    ) {
        let grant = Grant { epoch: Epoch(5), targets: Vec::new() };
        let role = if at_hub { Role::Hub(grant) } else { Role::Agent(AgentFacts::default()) };
        let mut session = Session::new(role, Config::default(), 0);
        for (step, (kind, body)) in bytes.iter().enumerate() {
            let mut wire = vec![*kind, 0];
            wire.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
            wire.extend_from_slice(body);
            session.on_data(gap_ms * step as u64, Bytes::from(wire));
        }
        let mut outputs = 0;
        while session.poll().is_some() {
            outputs += 1;
        }
        prop_assert!(outputs <= OUTPUTS_MAX + 3);
        prop_assert_eq!(session.is_closed(), session.close_reason().is_some());
        prop_assert!(!session.is_closed() || session.next_timeout_ms().is_none());
    }
}

fn hub() -> Session {
    let grant = Grant {
        epoch: Epoch(5),
        targets: Vec::new(),
    };
    let config = Config {
        caps: Caps::DRAIN.with(Caps::ROTATE),
        ..Config::default()
    };
    Session::new(Role::Hub(grant), config, 0)
}

fn outputs(session: &mut Session) -> Vec<String> {
    std::iter::from_fn(|| session.poll())
        .map(|output| format!("{output:?}"))
        .collect()
}

#[test]
fn silence_is_death_at_fifteen_seconds_sharp() {
    let mut session = hub();
    session.on_message(0, ControlMessage::Hello(AgentFacts::default()));
    outputs(&mut session);
    session.on_bytes_received(4_000);
    session.handle_timeout(18_999);
    assert!(!session.is_closed());
    session.handle_timeout(19_000);
    assert_eq!(session.close_reason(), Some(CloseReason::CarrierDead));
    assert!(outputs(&mut session).contains(&"Dead { silent_ms: 15000 }".into()));
    assert_eq!(session.next_timeout_ms(), None);
}

#[test]
fn a_peer_that_only_breathes_never_opens() {
    let mut session = hub();
    for at_ms in (0..10_000).step_by(500) {
        session.on_bytes_received(at_ms);
        session.handle_timeout(at_ms);
        assert!(!session.is_closed(), "{at_ms}");
    }
    session.handle_timeout(10_000);
    assert_eq!(session.close_reason(), Some(CloseReason::HelloTimeout));
}

#[test]
fn a_busy_peer_still_hears_our_beats() {
    let mut session = hub();
    session.on_message(0, ControlMessage::Hello(AgentFacts::default()));
    outputs(&mut session);
    let mut beats = Vec::new();
    for at_ms in (0..20_000).step_by(100) {
        session.on_bytes_received(at_ms);
        session.handle_timeout(at_ms);
        if outputs(&mut session)
            .iter()
            .any(|output| output.contains("BEAT"))
        {
            beats.push(at_ms);
        }
    }
    assert_eq!(beats, [5_000, 10_000, 15_000]);
}

#[test]
fn floods_are_cut_by_rate() {
    let mut session = hub();
    session.on_message(0, ControlMessage::Hello(AgentFacts::default()));
    for nonce in 0..20 {
        session.on_message(1, ControlMessage::Beat { nonce });
    }
    let answers = outputs(&mut session);
    let echoes = answers
        .iter()
        .filter(|answer| answer.contains("ECHO"))
        .count();
    assert_eq!(echoes, 1, "one slot, the latest wins: {answers:?}");
    session.on_message(1, ControlMessage::Beat { nonce: 20 });
    assert_eq!(session.close_reason(), Some(CloseReason::RateViolation));
    let last = outputs(&mut session);
    assert_eq!(last.len(), 2, "BYE, then the violation: {last:?}");
}

#[test]
fn messages_out_of_place_are_violations() {
    let mut early = hub();
    early.on_message(0, ControlMessage::Stats(AgentStats::default()));
    assert_eq!(early.close_reason(), Some(CloseReason::Protocol));
    let mut twice = hub();
    twice.on_message(0, ControlMessage::Hello(AgentFacts::default()));
    twice.on_message(0, ControlMessage::Hello(AgentFacts::default()));
    assert_eq!(twice.close_reason(), Some(CloseReason::Protocol));
    let mut unasked = hub();
    unasked.on_message(0, ControlMessage::Hello(AgentFacts::default()));
    unasked.on_message(
        0,
        ControlMessage::Rotated {
            digest: Digest([0; 32]),
        },
    );
    assert_eq!(unasked.close_reason(), Some(CloseReason::Protocol));
    let mut wrong_way = hub();
    wrong_way.on_message(0, ControlMessage::Drain(Drain::default()));
    assert_eq!(wrong_way.close_reason(), Some(CloseReason::Protocol));
    let mut agent = Session::new(Role::Agent(AgentFacts::default()), Config::default(), 0);
    let grant = |epoch| {
        ControlMessage::Grant(Grant {
            epoch: Epoch(epoch),
            targets: Vec::new(),
        })
    };
    agent.on_message(0, grant(5));
    agent.on_message(0, grant(6));
    assert_eq!(
        agent.close_reason(),
        Some(CloseReason::Protocol),
        "an epoch never changes"
    );
    let mut plain = Session::new(Role::Agent(AgentFacts::default()), Config::default(), 0);
    plain.on_message(0, grant(5));
    plain.on_message(0, ControlMessage::Drain(Drain::default()));
    assert!(plain.is_closed(), "DRAIN was not negotiated");
}

#[test]
fn verbs_know_their_place() {
    let mut session = hub();
    let token = || TokenText::new("a-shared-secret-of-a-file").unwrap();
    let rotate = || Rotate {
        not_before_unix_s: 0,
        token: token(),
    };
    assert_eq!(
        session.rotate(rotate()),
        Err(VerbError::OutOfPlace),
        "before HELLO"
    );
    session.on_message(0, ControlMessage::Hello(AgentFacts::default()));
    for _ in 0..ROTATIONS_MAX {
        assert_eq!(session.rotate(rotate()), Ok(()));
    }
    assert_eq!(session.rotate(rotate()), Err(VerbError::OutOfPlace));
    assert_eq!(
        session.stats(AgentStats::default()),
        Err(VerbError::NotNegotiated)
    );
    session.bye(CloseReason::Replaced, "");
    session.bye(CloseReason::Shutdown, "");
    assert_eq!(
        session.close_reason(),
        Some(CloseReason::Replaced),
        "the first reason stays"
    );
    assert_eq!(session.drain(Drain::default()), Err(VerbError::Closed));
    assert!(format!("{:?}", session.poll()).contains("GRANT"));
}

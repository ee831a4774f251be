//! A carrier that has served its time, in virtual time.

use culvert_proto::control::{AgentFacts, ControlMessage, Drain, Grant};
use culvert_proto::hello::Caps;
use culvert_proto::id::Epoch;
use culvert_proto::limits::{CARRIER_LIFE_MAX_MS, CARRIER_OPENS_MAX};
use culvert_proto::session::{Config, Lifetime, Output, Role, Session};

const START_MS: u64 = 1_000;

fn hub(caps: Caps, lifetime: Lifetime) -> Session {
    let config = Config {
        caps,
        lifetime,
        ..Config::default()
    };
    let grant = Grant {
        epoch: Epoch(5),
        targets: Vec::new(),
    };
    let mut hub = Session::new(Role::Hub(grant), config, START_MS);
    hub.on_message(START_MS, ControlMessage::Hello(AgentFacts::default()));
    hub
}

fn drains(session: &mut Session) -> Vec<Drain> {
    let outputs = std::iter::from_fn(|| session.poll());
    let drain = |output| match output {
        Output::Send(ControlMessage::Drain(drain)) => Some(drain),
        _ => None,
    };
    outputs.filter_map(drain).collect()
}

/// Lets time pass with bytes arriving all along; tells when DRAIN was sent, each time.
fn live(session: &mut Session, until_ms: u64) -> Vec<(u64, Drain)> {
    let mut sent = Vec::new();
    while let Some(at) = session.next_timeout_ms().filter(|at| *at <= until_ms) {
        session.on_bytes_received(at);
        session.handle_timeout(at);
        assert!(
            session.next_timeout_ms().is_some_and(|next| next > at),
            "spins at {at}"
        );
        sent.extend(drains(session).into_iter().map(|drain| (at, drain)));
    }
    sent
}

#[test]
fn after_seven_days_the_agent_is_told_to_move_once() {
    let mut hub = hub(Caps::DRAIN, Lifetime::default());
    let sent = live(&mut hub, START_MS + 2 * CARRIER_LIFE_MAX_MS);
    let [(at, drain)] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert_eq!(*at, START_MS + 7 * 24 * 3_600_000);
    assert!(drain.addresses.is_empty(), "back to where it came from");
    assert!(drain.deadline_ms > drain.reconnect_within_ms);
    assert!(
        hub.is_open(),
        "the old session goes on until the agent leaves it"
    );
}

#[test]
fn at_the_limit_of_opens_the_agent_is_told_to_move_once() {
    assert_eq!(CARRIER_OPENS_MAX, 1 << 30);
    let lifetime = Lifetime {
        opens: 1_000,
        ..Lifetime::default()
    };
    let mut hub = hub(Caps::DRAIN, lifetime);
    let mut told_at = Vec::new();
    for n in 1..=3_000 {
        hub.on_opened();
        told_at.extend(drains(&mut hub).iter().map(|_| n));
    }
    assert_eq!(told_at, [1_000]);
    let later = live(&mut hub, START_MS + 2 * CARRIER_LIFE_MAX_MS);
    assert_eq!(later, [], "age adds nothing");
}

#[test]
fn who_cannot_move_or_moves_already_is_not_told() {
    let lifetime = Lifetime {
        life_ms: 60_000,
        opens: 1,
    };
    let mut cannot = hub(Caps::ROTATE, lifetime);
    cannot.on_opened();
    assert_eq!(live(&mut cannot, 600_000), []);

    let mut told = hub(Caps::DRAIN, lifetime);
    told.drain(Drain::default()).unwrap();
    assert_eq!(drains(&mut told), [Drain::default()]);
    told.on_opened();
    assert_eq!(live(&mut told, 600_000), []);

    let config = Config {
        caps: Caps::DRAIN,
        lifetime,
        ..Config::default()
    };
    let mut agent = Session::new(Role::Agent(AgentFacts::default()), config, START_MS);
    let grant = Grant {
        epoch: Epoch(5),
        targets: Vec::new(),
    };
    agent.on_message(START_MS, ControlMessage::Grant(grant));
    agent.on_opened();
    assert_eq!(live(&mut agent, 600_000), []);
}

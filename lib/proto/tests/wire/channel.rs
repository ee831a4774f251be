//! The verbs of a session for data channels: who may, and what comes out at the other end.

use culvert_proto::channel::Form;
use culvert_proto::control::*;
use culvert_proto::hello::Caps;
use culvert_proto::id::Epoch;
use culvert_proto::open::DialCode;
use culvert_proto::session::*;

/// Moves messages until neither end has any.
fn exchange(hub: &mut Session, agent: &mut Session) -> Vec<Output> {
    let mut told = Vec::new();
    loop {
        let mut moved = false;
        while let Some(output) = hub.poll() {
            moved = true;
            match output {
                Output::Send(message) => agent.on_message(0, message),
                other => told.push(other),
            }
        }
        while let Some(output) = agent.poll() {
            moved = true;
            match output {
                Output::Send(message) => hub.on_message(0, message),
                other => told.push(other),
            }
        }
        if !moved {
            return told;
        }
    }
}

fn ends(caps: Caps) -> (Session, Session) {
    let config = Config {
        caps,
        ..Config::default()
    };
    let grant = Grant {
        epoch: Epoch(3),
        targets: vec!["pg".into()],
    };
    let hub = Session::new(Role::Hub(grant), config, 0);
    let agent = Session::new(Role::Agent(AgentFacts::default()), config, 0);
    (hub, agent)
}

fn tickets() -> Tickets {
    Tickets {
        ttl_s: 30,
        form: Form::Plain,
        tickets: vec![Ticket {
            id: [1; 16],
            key: [2; 32],
        }],
    }
}

fn fail() -> ChannelFail {
    ChannelFail {
        id: [1; 16],
        code: DialCode::Timeout,
        reason: "no answer".into(),
    }
}

#[test]
fn tickets_go_out_and_failures_come_back() {
    let (mut hub, mut agent) = ends(Caps::CHANNEL);
    assert_eq!(hub.tickets(tickets()), Err(VerbError::OutOfPlace));
    exchange(&mut hub, &mut agent);
    hub.tickets(tickets()).unwrap();
    let told = exchange(&mut hub, &mut agent);
    let got = told.iter().find_map(|output| match output {
        Output::Other(ControlMessage::Tickets(tickets)) => Some(tickets),
        _ => None,
    });
    let got = got.expect("the agent hears of them");
    assert_eq!((got.form, got.tickets[0].id), (Form::Plain, [1; 16]));
    agent.channel_fail(fail()).unwrap();
    let told = exchange(&mut hub, &mut agent);
    let heard = told.iter().any(
        |output| matches!(output, Output::Other(ControlMessage::ChannelFail(heard)) if *heard == fail()),
    );
    assert!(heard, "{told:?}");
    assert_eq!(agent.tickets(tickets()), Err(VerbError::OutOfPlace));
    assert_eq!(hub.channel_fail(fail()), Err(VerbError::OutOfPlace));
}

#[test]
fn nobody_uses_what_was_not_negotiated() {
    let (mut hub, mut agent) = ends(Caps::default());
    exchange(&mut hub, &mut agent);
    assert_eq!(hub.tickets(tickets()), Err(VerbError::NotNegotiated));
    assert_eq!(agent.channel_fail(fail()), Err(VerbError::NotNegotiated));
}

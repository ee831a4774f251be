#![no_main]

use bytes::Bytes;
use culvert_proto::control::{AgentFacts, Grant};
use culvert_proto::hello::Caps;
use culvert_proto::id::Epoch;
use culvert_proto::session::{Config, Role, Session};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, wire)) = data.split_first() else {
        return;
    };
    let grant = Grant {
        epoch: Epoch(1),
        targets: Vec::new(),
    };
    let role = match choice & 1 {
        0 => Role::Hub(grant),
        _ => Role::Agent(AgentFacts::default()),
    };
    let caps = Caps::parse("channel,status,drain,rotate,renew");
    let mut session = Session::new(
        role,
        Config {
            caps,
            ..Config::default()
        },
        0,
    );
    for (step, piece) in wire.chunks(usize::from(choice >> 1) + 1).enumerate() {
        let now_ms = step as u64 * 100;
        session.on_data(now_ms, Bytes::copy_from_slice(piece));
        session.handle_timeout(now_ms);
        while session.poll().is_some() {}
        assert_eq!(session.is_closed(), session.next_timeout_ms().is_none());
    }
});

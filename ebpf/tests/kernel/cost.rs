//! What a run of each program costs. Not asserted: run it on a quiet machine, with
//! `cargo nextest run -p culvert-ebpf --run-ignored only --no-capture`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use culvert_abi::{Leg, Role, maps};

use crate::residence::Relay;
use crate::rig::{self, Observer, Tier};

const MESSAGES: u32 = 20_000;
const BULK: usize = 1 << 30;
const CHUNK: usize = 256 << 10;
const PROGRAMS: [&str; 3] = [maps::SOCK_OPS, maps::INGRESS, maps::EGRESS];

/// Messages of 64 bytes there and back.
fn messages(near: &mut TcpStream, far: &mut TcpStream) {
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut message = [0; 64];
            for _ in 0..MESSAGES {
                far.read_exact(&mut message).unwrap();
                far.write_all(&message).unwrap();
            }
        });
        let mut message = [0; 64];
        for _ in 0..MESSAGES {
            near.write_all(&message).unwrap();
            near.read_exact(&mut message).unwrap();
        }
    });
}

fn bulk(near: &mut TcpStream, far: &mut TcpStream) {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut chunk = vec![0; CHUNK];
            for _ in 0..BULK / CHUNK {
                far.read_exact(&mut chunk).unwrap();
            }
        });
        let chunk = vec![0; CHUNK];
        for _ in 0..BULK / CHUNK {
            near.write_all(&chunk).unwrap();
        }
    });
}

/// Runs and nanoseconds of each program so far.
fn runs(observer: &Observer) -> [(u64, u128); 3] {
    PROGRAMS.map(|name| {
        let info = observer.info(name);
        (info.run_count(), info.run_time().as_nanos())
    })
}

fn measure(what: &str, observer: &Observer, near: &mut TcpStream, far: &mut TcpStream) {
    for (load, traffic) in [
        ("messages", messages as fn(&mut TcpStream, &mut TcpStream)),
        ("bulk", bulk),
    ] {
        let before = runs(observer);
        traffic(near, far);
        let after = runs(observer);
        let mut all = 0;
        for ((name, before), after) in PROGRAMS.into_iter().zip(before).zip(after) {
            let (count, ns) = (after.0 - before.0, after.1 - before.1);
            all += ns;
            let mean = ns.checked_div(u128::from(count)).unwrap_or_default();
            println!("{what:>8} {load:8}  {name:10} {count:>8} runs  {mean:>4} ns each");
        }
        println!("{what:>8} {load:8}  {:.1} ms altogether", all as f64 / 1e6);
    }
}

#[test]
#[ignore = "a measurement: wants a quiet machine"]
fn what_a_run_costs() {
    rig::alone("what_a_run_costs", |place| {
        // Counts while this descriptor is open.
        let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
        let mut observer = Observer::start(place, Tier::Skb);
        let plain = TcpListener::bind(rig::loopbacks()[0]).unwrap();
        let mut near = TcpStream::connect(plain.local_addr().unwrap()).unwrap();
        let (mut far, _) = plain.accept().unwrap();
        measure("untagged", &observer, &mut near, &mut far);

        let listener = rig::tagged_listener(&mut observer, rig::loopbacks()[0], Leg::Client);
        let ident = rig::ident(1, Leg::Upstream, Role::Service);
        let to = listener.local_addr().unwrap();
        let mut near = rig::tagged_connect(&mut observer, to, ident).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        observer.tag(&far, rig::ident(1, Leg::Client, Role::Client));
        measure("tagged", &observer, &mut near, &mut far);

        // The relay's sockets are joined, those of its ends are not tagged.
        let mut relay = Relay::new(&mut observer, rig::loopbacks()[0], [0; 4]);
        relay.join(&mut observer, 1, [0; 4]);
        let _copying = relay.run();
        measure("relay", &observer, &mut relay.client, &mut relay.service);
    });
}

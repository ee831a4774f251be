//! Residence through a relay that copies: what is injected is what is measured.
//!
//! The machine may be busy, so times are bracketed: a sample is never shorter than the relay
//! held the message, nor longer than it took from one end to the other.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use culvert_abi::{Ident, Kind, Leg, NO_SLOT, Own, Pair, Role, bucket, lane, ticks};

use crate::rig::{self, CLUSTER, Loss, Observer, Tier};

const MESSAGE: usize = 200;
/// Bytes on client, relay's client side, relay's service side and service before the join.
const PREAMBLES: [usize; 4] = [37, 1_201, 5, 640];
const SLOT: u32 = 3;
/// Two threads have to wake.
const WAKE_UP: Duration = Duration::from_micros(200);

/// Two ends of a relay, and its two sockets.
pub struct Relay {
    pub client: TcpStream,
    pub service: TcpStream,
    pub inside: [TcpStream; 2],
}

impl Relay {
    pub fn new(observer: &mut Observer, at: SocketAddr, preambles: [usize; 4]) -> Self {
        let entry = rig::tagged_listener(observer, at, Leg::Client);
        let exit = TcpListener::bind(at).unwrap();
        let mut client = TcpStream::connect(entry.local_addr().unwrap()).unwrap();
        let (mut near, _) = entry.accept().unwrap();
        let ident = rig::ident(9, Leg::Upstream, Role::Service);
        let to = exit.local_addr().unwrap();
        let mut far = rig::tagged_connect(observer, to, ident).unwrap();
        let (mut service, _) = exit.accept().unwrap();
        let [from_client, to_client, to_service, from_service] = preambles;
        pass(&mut client, &mut near, from_client);
        pass(&mut near, &mut client, to_client);
        pass(&mut far, &mut service, to_service);
        pass(&mut service, &mut far, from_service);
        for end in [&client, &near, &far, &service] {
            end.set_nodelay(true).unwrap();
        }
        Self {
            client,
            service,
            inside: [near, far],
        }
    }

    /// Joins the two sockets in [`SLOT`], with the offsets of these preambles.
    pub fn join(&self, observer: &mut Observer, generation: u32, preambles: [usize; 4]) {
        let [from_client, to_client, to_service, from_service] = preambles.map(|n| n as u64);
        observer.join(
            [&self.inside[0], &self.inside[1]],
            [
                rig::ident(9, Leg::Client, Role::Client),
                rig::ident(9, Leg::Upstream, Role::Service),
            ],
            SLOT,
            generation,
            [(from_client, to_service), (from_service, to_client)],
        );
    }

    /// Copies from now on.
    pub fn run(&self) -> Copying {
        let [near, far] = &self.inside;
        let holds = [0, 1].map(|_| Arc::new(AtomicU64::new(0)));
        let held = [0, 1].map(|_| Arc::new(Mutex::new(Vec::new())));
        let sides = [(near, far), (far, near)];
        let threads = [0, 1].map(|role: usize| {
            let (from, to) = sides[role];
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let (hold, held) = (Arc::clone(&holds[role]), Arc::clone(&held[role]));
            std::thread::spawn(move || copy(from, to, &hold, &held))
        });
        Copying {
            holds,
            held,
            threads,
        }
    }

    /// One message each way; the time from end to end.
    pub fn message(&mut self) -> [Duration; 2] {
        [
            pass(&mut self.client, &mut self.service, MESSAGE),
            pass(&mut self.service, &mut self.client, MESSAGE),
        ]
    }
}

/// The relay's two threads: how long each holds a message, and how long it did.
pub struct Copying {
    holds: [Arc<AtomicU64>; 2],
    held: [Arc<Mutex<Vec<Duration>>>; 2],
    threads: [JoinHandle<()>; 2],
}

impl Copying {
    fn hold(&self, times: [Duration; 2]) {
        for (hold, time) in self.holds.iter().zip(times) {
            hold.store(u64::try_from(time.as_nanos()).unwrap(), Ordering::Relaxed);
        }
    }

    /// What was held since the last call.
    fn held(&self) -> [Vec<Duration>; 2] {
        [0, 1].map(|role| std::mem::take(&mut *self.held[role].lock().unwrap()))
    }

    pub fn end(self) {
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, hold: &AtomicU64, held: &Mutex<Vec<Duration>>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer).unwrap();
        let came = Instant::now();
        if n == 0 {
            to.shutdown(Shutdown::Write).unwrap();
            return;
        }
        std::thread::sleep(Duration::from_nanos(hold.load(Ordering::Relaxed)));
        held.lock().unwrap().push(came.elapsed());
        to.write_all(&buffer[..n]).unwrap();
    }
}

/// So many bytes from one socket to another; how long it took.
fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) -> Duration {
    let start = Instant::now();
    from.write_all(&vec![7; bytes]).unwrap();
    to.read_exact(&mut vec![0; bytes]).unwrap();
    start.elapsed()
}

/// Samples with nothing queued before them, and their sum, for each direction.
fn empty(observer: &Observer) -> [(u64, Duration); 2] {
    [Kind::ToServiceEmpty, Kind::ToClientEmpty].map(|kind| {
        let (samples, ns) = observer.histogram(CLUSTER, kind as u32);
        (samples, Duration::from_nanos(ns))
    })
}

fn behind(observer: &Observer) -> [u64; 2] {
    [Kind::ToServiceBehind, Kind::ToClientBehind]
        .map(|kind| observer.histogram(CLUSTER, kind as u32).0)
}

/// Every message of a round has its sample, between its bounds; the mean of each direction.
fn round(
    observer: &Observer,
    relay: &mut Relay,
    copying: &Copying,
    messages: u32,
) -> [Duration; 2] {
    let before = empty(observer);
    copying.held();
    let mut taken = [Duration::ZERO; 2];
    for _ in 0..messages {
        let times = relay.message();
        taken = [taken[0] + times[0], taken[1] + times[1]];
    }
    let (after, held) = (empty(observer), copying.held());
    let rounding = Duration::from_nanos(ticks::TICK_NS * u64::from(messages));
    [0, 1].map(|role| {
        let samples = after[role].0 - before[role].0;
        let inside = after[role].1 - before[role].1;
        let held: Duration = held[role].iter().sum();
        assert_eq!(samples, u64::from(messages), "a sample for each message");
        assert!(
            inside + rounding >= held,
            "role {role}: {inside:?}, held {held:?}"
        );
        assert!(
            inside <= taken[role] + rounding,
            "role {role}: {inside:?}, took {taken:?}"
        );
        inside / messages
    })
}

fn ms(times: [u64; 2]) -> [Duration; 2] {
    times.map(Duration::from_millis)
}

#[test]
fn injected_time_is_what_is_measured() {
    rig::alone("injected_time_is_what_is_measured", |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        for (generation, at) in (1..).zip(rig::loopbacks()) {
            let mut relay = Relay::new(&mut observer, at, PREAMBLES);
            relay.join(&mut observer, generation, PREAMBLES);
            let copying = relay.run();
            for holds in [[0, 20], [1, 5], [5, 1], [20, 0]].map(ms) {
                copying.hold(holds);
                // Bounds hold in every round; within 15 % as soon as the machine is quiet in one.
                let means = rig::until("a quiet round", || {
                    let means = round(&observer, &mut relay, &copying, 8);
                    let mut each = means.into_iter().zip(holds);
                    let near = each.all(|(mean, hold)| mean <= hold * 115 / 100 + WAKE_UP);
                    near.then_some(means)
                });
                for (mean, hold) in means.into_iter().zip(holds) {
                    println!("{at}: injected {hold:?}, measured {mean:?}");
                    assert!(mean >= hold, "{mean:?} for {hold:?}");
                }
            }
            relay.client.shutdown(Shutdown::Write).unwrap();
            relay.service.shutdown(Shutdown::Write).unwrap();
            copying.end();
        }
        assert_eq!(behind(&observer), [0, 0]);
        assert_eq!(observer.own(Own::OffsetSkipped), 0);
        assert_eq!([0, 1].map(|role| observer.pair(SLOT, role).skipped), [0, 0]);
    });
}

#[test]
fn the_recent_lanes_and_the_socket_tell_the_same_residence() {
    let test = "the_recent_lanes_and_the_socket_tell_the_same_residence";
    rig::alone(test, |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        let mut relay = Relay::new(&mut observer, rig::loopbacks()[0], PREAMBLES);
        relay.join(&mut observer, 1, PREAMBLES);
        let copying = relay.run();
        copying.hold(ms([6, 0]));
        let mut taken: Vec<Duration> = (0..31).map(|_| relay.message()[0]).collect();
        let [mut held, _] = copying.held();
        held.sort();
        taken.sort();
        let lanes = observer.lanes(SLOT, 0);
        assert_eq!(lane::samples(&lanes), 31);
        let bound = |time: Duration| {
            let lane = lane::of_ns(u64::try_from(time.as_nanos()).unwrap());
            (4_096_u64 << lane).div_ceil(1_000)
        };
        let median = lane::quantile_us(&lanes, 500).unwrap();
        assert!(
            (bound(held[15])..=bound(taken[15])).contains(&median),
            "{median} us"
        );
        // Bytes leave for the service on the socket that leads there.
        let stat = observer.stat(&relay.inside[1]).unwrap();
        assert_eq!(stat.res_n, 31);
        let time = |ticks: u32| Duration::from_nanos(u64::from(ticks) * ticks::TICK_NS);
        let tick = Duration::from_nanos(ticks::TICK_NS);
        assert!(time(stat.res_max) + tick >= held[30], "{stat:?}");
        assert!(time(stat.res_max) <= taken[30] + tick, "{stat:?}");
        assert!(
            (held[0]..=taken[30]).contains(&time(stat.res_ewma)),
            "{stat:?}"
        );
    });
}

#[test]
fn wrong_offsets_are_seen_and_counted() {
    rig::alone("wrong_offsets_are_seen_and_counted", |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        let mut relay = Relay::new(&mut observer, rig::loopbacks()[0], PREAMBLES);
        let mut wrong = PREAMBLES;
        wrong[2] -= 3;
        wrong[0] += 3;
        relay.join(&mut observer, 1, wrong);
        let _copying = relay.run();
        relay.message();
        relay.message();
        let skipped = observer.pair(SLOT, 0).skipped;
        assert!(skipped > 0, "towards the service offsets are wrong");
        assert_eq!(observer.own(Own::OffsetSkipped), u64::from(skipped));
        assert_eq!(
            observer.pair(SLOT, 1).skipped,
            0,
            "the other direction is right"
        );
    });
}

#[test]
fn a_slot_that_was_taken_again_ignores_its_old_sockets() {
    rig::alone(
        "a_slot_that_was_taken_again_ignores_its_old_sockets",
        |place| {
            let mut observer = Observer::start(place, Tier::Skb);
            let mut old = Relay::new(&mut observer, rig::loopbacks()[0], PREAMBLES);
            old.join(&mut observer, 1, PREAMBLES);
            let _old_copying = old.run();
            old.message();
            assert_eq!(empty(&observer).map(|side| side.0), [1, 1]);
            for role in [0, 1] {
                observer.set_pair(SLOT, role, &Pair::default());
            }
            old.message();
            assert_eq!(empty(&observer).map(|side| side.0), [1, 1], "nobody's slot");
            let foreign = observer.own(Own::Generation);
            assert_eq!(foreign, 4, "in and out, both ways");

            let mut new = Relay::new(&mut observer, rig::loopbacks()[1], [0, 0, 9, 9]);
            new.join(&mut observer, 2, [0, 0, 9, 9]);
            let copying = new.run();
            copying.hold(ms([2, 2]));
            old.message();
            new.message();
            old.message();
            let after = empty(&observer);
            assert_eq!(after.map(|side| side.0), [2, 2]);
            assert_eq!(observer.own(Own::Generation), foreign + 8);
            assert_eq!([0, 1].map(|role| observer.pair(SLOT, role).skipped), [0, 0]);
        },
    );
}

#[test]
fn what_came_before_the_join_is_no_sample_and_disturbs_none() {
    rig::alone(
        "what_came_before_the_join_is_no_sample_and_disturbs_none",
        |place| {
            let mut observer = Observer::start(place, Tier::Skb);
            let mut relay = Relay::new(&mut observer, rig::loopbacks()[0], PREAMBLES);
            // The first message waits in the kernel when the two are joined.
            relay.client.write_all(&[1; MESSAGE]).unwrap();
            let waiting = (PREAMBLES[0] + MESSAGE) as u64;
            rig::until("the message", || {
                let stat = observer.stat(&relay.inside[0])?;
                (stat.rx_end == waiting).then_some(())
            });
            relay.join(&mut observer, 1, PREAMBLES);
            let copying = relay.run();
            relay.service.read_exact(&mut [0; MESSAGE]).unwrap();
            assert_eq!(empty(&observer)[0].0, 0);
            copying.held();
            round(&observer, &mut relay, &copying, 4);
            assert_eq!([0, 1].map(|role| observer.pair(SLOT, role).skipped), [0, 0]);
        },
    );
}

#[test]
fn a_direction_that_ended_leaves_the_other_its_samples() {
    rig::alone(
        "a_direction_that_ended_leaves_the_other_its_samples",
        |place| {
            let mut observer = Observer::start(place, Tier::Skb);
            let mut relay = Relay::new(&mut observer, rig::loopbacks()[0], PREAMBLES);
            relay.join(&mut observer, 1, PREAMBLES);
            let copying = relay.run();
            relay.message();
            relay.client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(
                relay.service.read(&mut [0]).unwrap(),
                0,
                "the end came through"
            );
            copying.hold(ms([0, 3]));
            copying.held();
            let before = empty(&observer)[1];
            let mut taken = Duration::ZERO;
            for _ in 0..5 {
                taken += pass(&mut relay.service, &mut relay.client, MESSAGE);
            }
            let after = empty(&observer)[1];
            let held: Duration = copying.held()[1].iter().sum();
            assert_eq!(after.0 - before.0, 5);
            let inside = after.1 - before.1;
            assert!(
                (held..=taken).contains(&(inside + Duration::from_nanos(320))),
                "{inside:?}"
            );
            relay.service.shutdown(Shutdown::Write).unwrap();
            copying.end();
            assert_eq!([0, 1].map(|role| observer.pair(SLOT, role).skipped), [0, 0]);
        },
    );
}

#[test]
fn bulk_is_behind_and_a_socket_may_stay_out_of_it() {
    rig::alone("bulk_is_behind_and_a_socket_may_stay_out_of_it", |place| {
        let mut observer = Observer::start(place, Tier::Skb);
        for (generation, flags) in [(1, 0), (2, Ident::NO_RESIDENCE)] {
            let mut relay = Relay::new(&mut observer, rig::loopbacks()[0], PREAMBLES);
            relay.join(&mut observer, generation, PREAMBLES);
            for (at, socket) in relay.inside.iter().enumerate() {
                let ident = observer.ident(socket).unwrap();
                assert_eq!(usize::from(ident.role), at);
                assert_ne!(ident.pair_slot, NO_SLOT);
                observer.tag(socket, Ident { flags, ..ident });
            }
            let copying = relay.run();
            copying.hold(ms([1, 0]));
            let before = behind(&observer);
            let bytes = 4 << 20;
            let mut client = relay.client.try_clone().unwrap();
            let sending = std::thread::spawn(move || client.write_all(&vec![1; bytes]).unwrap());
            relay.service.read_exact(&mut vec![0; bytes]).unwrap();
            sending.join().unwrap();
            let after = behind(&observer);
            assert_eq!(after[0] > before[0], flags == 0, "{before:?}, {after:?}");
            assert_eq!(after[1], before[1], "nothing went to the client");
            assert_eq!(observer.pair(SLOT, 0).skipped, 0);
            let stat = observer.stat(&relay.inside[1]).unwrap();
            assert_eq!(stat.tx_end, (PREAMBLES[2] + bytes) as u64);
        }
    });
}

#[test]
fn a_lost_packet_is_not_the_relays_time() {
    rig::alone("a_lost_packet_is_not_the_relays_time", |place| {
        rig::run(
            "ip",
            &["link", "set", "lo", "mtu", "1500", "gso_max_segs", "1"],
        );
        let mut observer = Observer::start(place, Tier::Skb);
        let mut relay = Relay::new(&mut observer, rig::loopbacks()[0], PREAMBLES);
        relay.join(&mut observer, 1, PREAMBLES);
        let copying = relay.run();
        copying.hold(ms([1, 1]));
        let mut loss = Loss::new();
        // Each message is two packets each way; ends wait 200 ms for a lost one.
        loss.lose(20, MESSAGE as u64);
        let mut slow = 0;
        rig::until("five lost messages", || {
            let times = relay.message();
            slow += times.iter().filter(|time| time.as_millis() >= 150).count();
            (slow >= 5).then_some(())
        });
        for kind in [Kind::ToServiceEmpty, Kind::ToClientEmpty] {
            let row = observer.row(CLUSTER, kind as u32);
            let first = (0..bucket::BUCKETS)
                .find(|at| bucket::upper_s(*at) >= 0.15)
                .unwrap();
            assert_eq!(row[first..].iter().sum::<u64>(), 0, "{} lost", loss.lost());
        }
        assert_eq!([0, 1].map(|role| observer.pair(SLOT, role).skipped), [0, 0]);
    });
}

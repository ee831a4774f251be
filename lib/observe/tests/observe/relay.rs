//! Residence: how long bytes stay in a relay, measured from outside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use culvert_observe::{Histogram, Kind, Observer, Offsets, Own, SlotId};

use crate::rig::{Inside, Rows, alone, in_a_child, is_root, observer, role, until};

const EXCHANGES: u32 = 25;

fn histogram(observer: &Observer, cluster: &str, kind: Kind) -> Histogram {
    let reading = observer.read();
    let own = reading.clusters().find(|it| it.name == cluster).unwrap();
    own.histogram(kind).unwrap_or(Histogram::EMPTY)
}

/// What was measured in one direction, and what the relay knows of it.
#[derive(Default)]
struct Passed {
    at_least: Duration,
    at_most: Duration,
}

impl Passed {
    fn add(&mut self, inside: Inside) {
        self.at_least += inside.at_least;
        self.at_most += inside.at_most;
    }

    /// Whatever else this machine does meanwhile: the sum lies between the relay's own bounds, but
    /// for the ticks of 64 ns.
    fn check(&self, measured: &Histogram, what: &str) {
        let count = measured.count();
        assert_eq!(count, u64::from(EXCHANGES), "{what}: one for each exchange");
        let sum = Duration::from_nanos(measured.sum_ns);
        let ticks = Duration::from_nanos(64) * EXCHANGES;
        let (at_least, at_most) = (self.at_least, self.at_most);
        let [mean, low, high] = [sum, at_least, at_most].map(|it| it / EXCHANGES);
        println!("{what}: {count} samples, mean {mean:?}, between {low:?} and {high:?}");
        assert!(at_least <= sum + ticks && sum <= at_most + ticks, "{what}");
    }
}

#[test]
#[ignore = "run by the test below"]
fn delayed() {
    alone(delayed_alone);
}

fn delayed_alone() {
    let host: IpAddr = match role().as_str() {
        "v6" => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    };
    let observer = observer();
    let mut rows = Rows::new(&observer, host);
    for (there, back) in [(0, 0), (1, 5), (5, 0), (0, 20), (20, 1)] {
        let name = format!("{there} and {back} ms");
        let cluster = observer.cluster(&name);
        let (there, back) = (Duration::from_millis(there), Duration::from_millis(back));
        let mut row = rows.row(cluster);
        // Bytes that are no part of the relay, and unequal on every side.
        row.pass_to_service(&[1; 100], Duration::ZERO);
        row.pass_to_client(&[2; 30], Duration::ZERO);
        let sent = std::io::Write::write(&mut row.near, &[3; 7]).unwrap();
        std::io::Read::read_exact(&mut row.client, &mut [0; 7]).unwrap();
        let near = Offsets {
            consumed: 100,
            written: 30 + sent as u64,
        };
        let far = Offsets {
            consumed: 30,
            written: 100,
        };
        let slot = rows.join(&row, cluster, [near, far]).unwrap();
        let [mut up, mut down] = <[Passed; 2]>::default();
        for _ in 0..EXCHANGES {
            up.add(row.pass_to_service(b"a question", there));
            down.add(row.pass_to_client(b"and the answer", back));
        }
        up.check(&histogram(&observer, &name, Kind::ToServiceEmpty), &name);
        down.check(&histogram(&observer, &name, Kind::ToClientEmpty), &name);
        for kind in [Kind::ToServiceBehind, Kind::ToClientBehind] {
            assert_eq!(
                histogram(&observer, &name, kind).count(),
                0,
                "nothing was queued"
            );
        }
        let both = observer.residence(slot.id()).unwrap();
        for (read, delay) in both.into_iter().zip([there, back]) {
            assert_eq!(read.samples, u64::from(EXCHANGES));
            // Bounds of lanes are powers of two: 20 ms end in the lane up to 33.6.
            let p50 = Duration::from_micros(read.p50_us.unwrap());
            assert!(p50 >= delay, "{p50:?} of {delay:?}");
            assert!(read.p99_us >= read.p50_us);
        }
        let id: SlotId = slot.id();
        drop(slot);
        assert_eq!(observer.residence(id), None, "the pair is over");
    }
    let reading = observer.read();
    assert_eq!(reading.own(Own::OffsetSkipped), 0, "offsets agreed");
    assert_eq!(reading.own(Own::NoBase), 0);
    assert_eq!(observer.tag_failures(), []);
}

#[test]
fn a_delay_in_the_relay_is_measured_in_its_direction_alone() {
    if is_root("a_delay_in_the_relay_is_measured_in_its_direction_alone") {
        for role in ["v4", "v6"] {
            in_a_child("relay::delayed", role);
        }
    }
}

#[test]
#[ignore = "run by the test below"]
fn pairs_after_each_other() {
    alone(pairs_after_each_other_alone);
}

fn pairs_after_each_other_alone() {
    let observer = observer();
    let mut rows = Rows::v4(&observer);
    let cluster = observer.cluster("again");
    let mut row = rows.row(cluster);
    // The self-test had a slot, too.
    until(|| (observer.read().slots().free == 1_024).then_some(()));
    let first = rows.join(&row, cluster, Default::default()).unwrap();
    row.pass_to_service(b"one", Duration::ZERO);
    let old = first.id();
    drop(first);
    // The same sockets, no pair: no sample, and the bytes pass.
    row.pass_to_service(b"two", Duration::ZERO);
    let count = || histogram(&observer, "again", Kind::ToServiceEmpty).count();
    assert_eq!(count(), 1);
    until(|| (observer.read().slots().free == 1_024).then_some(()));
    let mut next = rows.row(cluster);
    let slot = rows.join(&next, cluster, Default::default()).unwrap();
    assert_eq!(slot.id().slot, old.slot, "the slot has rested");
    assert_ne!(slot.id().generation, old.generation);
    // Sockets of the earlier pair are ignored.
    row.pass_to_service(b"three", Duration::ZERO);
    assert_eq!(count(), 1);
    assert_eq!(
        observer.residence(slot.id()).unwrap()[0].samples,
        0,
        "a clean slot"
    );
    next.pass_to_service(b"one", Duration::ZERO);
    assert_eq!(count(), 2);
    assert!(observer.read().own(Own::Generation) > 0, "and counted");
}

#[test]
fn a_slot_that_is_taken_again_knows_nothing_of_its_earlier_pair() {
    if is_root("a_slot_that_is_taken_again_knows_nothing_of_its_earlier_pair") {
        in_a_child("relay::pairs_after_each_other", "");
    }
}

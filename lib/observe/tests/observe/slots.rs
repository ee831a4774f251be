//! Slots: as many as were asked for, and all of them again and again.

use std::collections::HashSet;
use std::time::Duration;

use culvert_observe::{Settings, Unsampled};

use crate::rig::{GRANTED, Rows, alone, in_a_child, is_root, limit, small, started, until};

#[test]
#[ignore = "run by the test below"]
fn few() {
    alone(few_alone);
}

fn few_alone() {
    limit(GRANTED);
    let observer = started(&Settings {
        pairs_max: 4,
        ..small()
    });
    let mut rows = Rows::v4(&observer);
    let cluster = observer.cluster("many");
    until(|| (observer.read().slots().free == 4).then_some(()));
    let mut row = rows.row(cluster);
    let held: Vec<_> = (0..4)
        .map(|_| rows.join(&row, cluster, Default::default()).unwrap())
        .collect();
    assert!(rows.join(&row, cluster, Default::default()).is_none());
    assert_eq!(observer.read().unsampled()[0], (Unsampled::NoSlot, 1));
    row.pass_to_service(b"all the same", Duration::ZERO);
    let counts = observer.read().slots();
    assert_eq!((counts.used, counts.resting, counts.free), (4, 0, 0));
    drop(held);
    let counts = observer.read().slots();
    assert_eq!((counts.used, counts.resting, counts.free), (0, 4, 0));
    until(|| rows.join(&row, cluster, Default::default()));
}

#[test]
fn when_all_slots_are_taken_bytes_pass_unmeasured_and_counted() {
    if is_root("when_all_slots_are_taken_bytes_pass_unmeasured_and_counted") {
        in_a_child("slots::few", "");
    }
}

#[test]
#[ignore = "run by the test below"]
fn every_one() {
    alone(every_one_alone);
}

fn every_one_alone() {
    limit(GRANTED);
    let observer = started(&Settings::default());
    assert_eq!(
        observer.report().maps_bytes >> 20,
        22,
        "{}",
        observer.report()
    );
    let mut rows = Rows::v4(&observer);
    let cluster = observer.cluster("all");
    let row = rows.row(cluster);
    until(|| (observer.read().slots().free == 65_536).then_some(()));
    let mut generations = HashSet::new();
    for round in 0..3 {
        let held: Vec<_> =
            std::iter::from_fn(|| rows.join(&row, cluster, Default::default())).collect();
        let slots: HashSet<_> = held.iter().map(|slot| slot.id().slot).collect();
        assert_eq!((held.len(), slots.len()), (65_536, 65_536), "round {round}");
        generations.extend(held.iter().map(|slot| slot.id().generation));
        drop(held);
        until(|| (observer.read().slots().free == 65_536).then_some(()));
    }
    assert_eq!(generations.len(), 3 * 65_536, "no generation twice");
    assert_eq!(observer.tag_failures(), []);
}

#[test]
fn each_of_65536_slots_is_used_again() {
    if is_root("each_of_65536_slots_is_used_again") {
        in_a_child("slots::every_one", "");
    }
}

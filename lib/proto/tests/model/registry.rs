//! The registry against a plain list: every interleaving of admit, attach, detach (twice, stale,
//! half-open), revoke, remove, drain and time (security rule 3.3, D-05, A-42).

use std::collections::BTreeMap;

use culvert_proto::id::{ClusterId, Epoch, InstanceId, SessionKey};
use culvert_proto::limits::{HOLD_DOWN_MS, SESSIONS_PER_CLUSTER_MAX, SWAP_WINDOW_MS, SWAPS_MAX};
use culvert_proto::registry::*;
use proptest::prelude::*;

const SESSIONS_MAX: usize = 6;
const POLICIES: [Policy; 3] = [Policy::Spread, Policy::Replace, Policy::Refuse];

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    /// The table's floor is read now; attaching comes later or never.
    Admit {
        cluster: usize,
        instance: Option<u8>,
    },
    Attach {
        which: usize,
    },
    /// Any session that ever was: current, replaced, revoked, already detached.
    Detach {
        which: usize,
    },
    Revoke {
        cluster: usize,
    },
    Remove {
        cluster: usize,
    },
    Standing {
        which: usize,
        standing: Standing,
    },
    LeaveAll,
    Pick {
        cluster: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let cluster = 0usize..3;
    let which = any::<usize>;
    prop_oneof![
        3 => (0u64..25_000).prop_map(Step::Wait),
        8 => (cluster.clone(), proptest::option::of(0u8..3))
            .prop_map(|(cluster, instance)| Step::Admit { cluster, instance }),
        8 => which().prop_map(|which| Step::Attach { which }),
        4 => which().prop_map(|which| Step::Detach { which }),
        1 => cluster.clone().prop_map(|cluster| Step::Revoke { cluster }),
        1 => cluster.clone().prop_map(|cluster| Step::Remove { cluster }),
        2 => (which(), prop_oneof![Just(Standing::Leaving), Just(Standing::Closed)])
            .prop_map(|(which, standing)| Step::Standing { which, standing }),
        1 => Just(Step::LeaveAll),
        3 => cluster.prop_map(|cluster| Step::Pick { cluster }),
    ]
}

#[derive(Clone, Debug)]
struct Live {
    key: SessionKey,
    floor: u64,
    standing: Standing,
    handle: u64,
}

#[derive(Default)]
struct History {
    swaps: Vec<u64>,
    held_until: u64,
}

struct World {
    registry: Registry<u64>,
    now_ms: u64,
    /// The table's floors.
    floors: [u64; 3],
    /// The registry's floors: zero again once a cluster was removed.
    known_floors: [u64; 3],
    admitted: Vec<(Admission, usize, u64)>,
    live: Vec<Live>,
    ever: Vec<SessionKey>,
    left: BTreeMap<u64, usize>,
    histories: [History; 3],
    last_epoch: u64,
    handles: u64,
}

fn id(cluster: usize) -> ClusterId {
    ["spread", "replace", "refuse"][cluster].parse().unwrap()
}

fn index(key: &SessionKey) -> usize {
    (0..3).find(|cluster| id(*cluster) == key.cluster).unwrap()
}

impl World {
    fn new() -> Self {
        World {
            registry: Registry::with_limit(1_000, SESSIONS_MAX),
            now_ms: 0,
            floors: [0; 3],
            known_floors: [0; 3],
            admitted: Vec::new(),
            live: Vec::new(),
            ever: Vec::new(),
            left: BTreeMap::new(),
            histories: Default::default(),
            last_epoch: 1_000,
            handles: 0,
        }
    }

    /// What must happen to `key` now, from the words of the contract: `Ok((evicted, swap))`.
    fn expected(&mut self, key: &SessionKey, floor: u64) -> Result<(Vec<u64>, bool), Refused> {
        let cluster = index(key);
        let policy = POLICIES[cluster];
        if floor < self.known_floors[cluster] {
            return Err(Refused::Revoked);
        }
        let here: Vec<Live> = self
            .live
            .iter()
            .filter(|live| live.key.cluster == key.cluster)
            .cloned()
            .collect();
        let anonymous = key.instance == InstanceId::NONE;
        let same = |live: &&Live| live.key.instance == key.instance;
        let other_serves = here
            .iter()
            .any(|live| live.standing == Standing::Serving && (anonymous || !same(&live)));
        if policy == Policy::Refuse && other_serves {
            return Err(Refused::Duplicate);
        }
        let going: Vec<&Live> = here
            .iter()
            .filter(|live| policy == Policy::Replace || same(live))
            .collect();
        if going.iter().any(|live| live.key.epoch >= key.epoch) {
            return Err(Refused::Stale);
        }
        if here.len() - going.len() >= SESSIONS_PER_CLUSTER_MAX
            || self.live.len() - going.len() >= SESSIONS_MAX
        {
            return Err(Refused::Full);
        }
        let swap = going
            .iter()
            .any(|live| live.standing == Standing::Serving && (anonymous || !same(live)));
        let history = &mut self.histories[cluster];
        if swap {
            if self.now_ms < history.held_until {
                let remaining_ms = history.held_until - self.now_ms;
                return Err(Refused::HoldDown { remaining_ms });
            }
            let recent = history
                .swaps
                .iter()
                .filter(|at| self.now_ms - **at < SWAP_WINDOW_MS);
            if recent.count() >= SWAPS_MAX {
                history.swaps.clear();
                history.held_until = self.now_ms + HOLD_DOWN_MS;
                return Err(Refused::HoldDown {
                    remaining_ms: HOLD_DOWN_MS,
                });
            }
        }
        Ok((going.iter().map(|live| live.handle).collect(), swap))
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Wait(ms) => self.now_ms += ms,
            Step::Admit { cluster, instance } => self.admit(cluster, instance),
            Step::Attach { which } => self.attach(which),
            Step::Detach { which } => self.detach(which),
            Step::Revoke { cluster } => {
                self.floors[cluster] += 1;
                self.known_floors[cluster] = self.floors[cluster];
                let floor = Epoch(self.floors[cluster]);
                let dead = self.registry.revoke(&id(cluster), floor);
                let must_die = self.gone(|live| index(&live.key) == cluster);
                assert_eq!(sorted(dead), must_die, "a revoked session survives");
            }
            Step::Remove { cluster } => {
                let dead = self.registry.remove(&id(cluster));
                let must_die = self.gone(|live| index(&live.key) == cluster);
                assert_eq!(sorted(dead), must_die);
                self.known_floors[cluster] = 0;
                self.histories[cluster] = History::default();
            }
            Step::Standing { which, standing } => {
                let Some(key) = pick_one(&self.ever, which) else {
                    return;
                };
                let live = self.live.iter_mut().find(|live| live.key == key);
                assert_eq!(self.registry.set_standing(&key, standing), live.is_some());
                if let Some(live) = live {
                    live.standing = standing;
                }
            }
            Step::LeaveAll => {
                self.registry.leave_all();
                for live in &mut self.live {
                    if live.standing == Standing::Serving {
                        live.standing = Standing::Leaving;
                    }
                }
            }
            Step::Pick { cluster } => self.pick(cluster),
        }
    }

    fn admit(&mut self, cluster: usize, instance: Option<u8>) {
        let floor = self.floors[cluster];
        let instance = instance.map(|instance| InstanceId([instance + 1; 16]));
        let candidate = Candidate {
            cluster: id(cluster),
            instance,
            policy: POLICIES[cluster],
            floor: Epoch(floor),
        };
        let epoch = Epoch((self.last_epoch + 1).max(floor));
        let instance = instance.unwrap_or(InstanceId::NONE);
        let key = SessionKey {
            cluster: id(cluster),
            instance,
            epoch,
        };
        let expected = self.expected(&key, floor).map(|_| key);
        let actual = self.registry.admit(candidate, self.now_ms);
        assert_eq!(
            actual.as_ref().map(|a| a.key().clone()).map_err(|e| *e),
            expected
        );
        if let Ok(admission) = actual {
            self.last_epoch = admission.key().epoch.0;
            self.admitted.push((admission, cluster, floor));
        }
    }

    fn attach(&mut self, which: usize) {
        if self.admitted.is_empty() {
            return;
        }
        let place = which % self.admitted.len();
        let (admission, cluster, floor) = self.admitted.remove(place);
        let key = admission.key().clone();
        let expected = self.expected(&key, floor);
        self.handles += 1;
        let handle = self.handles;
        match (
            self.registry.attach(admission, self.now_ms, handle),
            expected,
        ) {
            (Ok(attached), Ok((evicted, swap))) => {
                assert_eq!(attached.key, key);
                let mut evicted = evicted;
                evicted.sort_unstable();
                assert_eq!(sorted(attached.evicted), evicted);
                self.gone(|live| evicted.contains(&live.handle));
                if swap {
                    self.histories[cluster].swaps.push(self.now_ms);
                }
                self.ever.push(key.clone());
                self.live.push(Live {
                    key,
                    floor,
                    standing: Standing::Serving,
                    handle,
                });
            }
            (Err(actual), Err(expected)) => assert_eq!(actual, expected),
            (actual, expected) => panic!("{key}: {actual:?}, the model says {expected:?}"),
        }
    }

    fn detach(&mut self, which: usize) {
        let Some(key) = pick_one(&self.ever, which) else {
            return;
        };
        let detached = self.registry.detach(&key);
        let gone = self.gone(|live| live.key == key);
        assert_eq!(detached.into_iter().collect::<Vec<_>>(), gone, "{key}");
        assert_eq!(self.registry.detach(&key), None, "twice");
    }

    fn pick(&mut self, cluster: usize) {
        let load = |handle: &u64| handle % 3;
        let best = |standing| {
            let here = self.live.iter().filter(|live| index(&live.key) == cluster);
            here.filter(|live| live.standing == standing)
                .map(|live| load(&live.handle))
                .min()
        };
        let expected = best(Standing::Serving).or_else(|| best(Standing::Leaving));
        let picked = self.registry.pick(&id(cluster), load);
        assert_eq!(picked.map(load), expected);
        let serving = best(Standing::Serving).is_some();
        assert!(
            picked.is_none_or(|handle| self.live.iter().any(|live| live.handle == *handle
                && live.standing
                    == if serving {
                        Standing::Serving
                    } else {
                        Standing::Leaving
                    }))
        );
    }

    /// Removes what matches from the model; every handle leaves exactly once.
    fn gone(&mut self, matches: impl Fn(&Live) -> bool) -> Vec<u64> {
        let (gone, live) = self.live.drain(..).partition(|live| matches(live));
        self.live = live;
        let mut handles: Vec<u64> = gone.into_iter().map(|live: Live| live.handle).collect();
        for handle in &handles {
            let times = self.left.entry(*handle).or_default();
            *times += 1;
            assert_eq!(*times, 1, "handle {handle} left twice");
        }
        handles.sort_unstable();
        handles
    }

    fn check(&self) {
        assert_eq!(self.registry.len(), self.live.len());
        let mut actual: Vec<_> = self
            .registry
            .iter()
            .map(|(key, standing, handle)| (key.clone(), standing, *handle))
            .collect();
        let mut model: Vec<_> = self
            .live
            .iter()
            .map(|live| (live.key.clone(), live.standing, live.handle))
            .collect();
        actual.sort_by_key(|entry| entry.2);
        model.sort_by_key(|entry| entry.2);
        assert_eq!(actual, model);
        for key in &self.ever {
            let current = self.live.iter().any(|live| live.key == *key);
            assert_eq!(
                self.registry.is_current(key),
                current,
                "a stale epoch serves"
            );
        }
        for live in &self.live {
            assert!(live.floor >= self.known_floors[index(&live.key)]);
            let twins = self.live.iter().filter(|other| {
                other.key.cluster == live.key.cluster && other.key.instance == live.key.instance
            });
            assert_eq!(twins.count(), 1, "one session for each agent process");
        }
        let replacing = self.live.iter().filter(|live| index(&live.key) == 1);
        assert!(replacing.count() <= 1);
        let refusing = |live: &&Live| index(&live.key) == 2 && live.standing == Standing::Serving;
        assert!(self.live.iter().filter(refusing).count() <= 1);
    }
}

fn sorted(mut handles: Vec<(SessionKey, u64)>) -> Vec<u64> {
    handles.sort_by_key(|(_, handle)| *handle);
    handles.into_iter().map(|(_, handle)| handle).collect()
}

fn pick_one(keys: &[SessionKey], which: usize) -> Option<SessionKey> {
    (!keys.is_empty()).then(|| keys[which % keys.len()].clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(2_000)))]

    #[test]
    fn follows_the_model(steps in proptest::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
            world.check();
        }
    }
}

fn join(
    registry: &mut Registry<u32>,
    instance: Option<u8>,
    policy: Policy,
    now_ms: u64,
    handle: u32,
) -> Result<Attached<u32>, Refused> {
    let instance = instance.map(|instance| InstanceId([instance; 16]));
    let candidate = Candidate {
        cluster: id(0),
        instance,
        policy,
        floor: Epoch(0),
    };
    let admission = registry.admit(candidate, now_ms)?;
    registry.attach(admission, now_ms, handle)
}

/// D-05: the old session's late end cannot unregister the new one.
#[test]
fn a_late_detach_changes_nothing() {
    let mut registry = Registry::new(0);
    let old = join(&mut registry, Some(1), Policy::Spread, 0, 1).unwrap();
    let new = join(&mut registry, Some(1), Policy::Spread, 0, 2).unwrap();
    assert_eq!(new.evicted, [(old.key.clone(), 1)]);
    assert_eq!(registry.detach(&old.key), None);
    assert_eq!(registry.pick(&id(0), |_| 0), Some(&2));
    assert_eq!(registry.counts().renewals, 1);
}

/// more than three swaps in a minute are held down for 30 s, and the one that serves stays.
#[test]
fn flapping_agents_are_held_down() {
    let mut registry = Registry::new(0);
    for at in 0..4u32 {
        join(
            &mut registry,
            Some(u8::try_from(at).unwrap() + 1),
            Policy::Replace,
            0,
            at,
        )
        .unwrap();
    }
    let held = join(&mut registry, Some(9), Policy::Replace, 1_000, 9).unwrap_err();
    assert_eq!(
        held,
        Refused::HoldDown {
            remaining_ms: 30_000
        }
    );
    let held = join(&mut registry, Some(9), Policy::Replace, 30_999, 9).unwrap_err();
    assert_eq!(held, Refused::HoldDown { remaining_ms: 1 });
    assert_eq!(registry.pick(&id(0), |_| 0), Some(&3));
    // The same process may always come back.
    let again = join(&mut registry, Some(4), Policy::Replace, 2_000, 5).unwrap();
    assert_eq!(again.evicted.len(), 1);
    // Without anybody to displace there is nothing to hold down.
    registry.detach(&again.key);
    join(&mut registry, Some(9), Policy::Replace, 3_000, 6).unwrap();
    assert_eq!(registry.counts().hold_downs, 1);
    assert_eq!(registry.counts().swaps, 3);
    join(&mut registry, Some(8), Policy::Replace, 31_000, 7).unwrap();
}

#[test]
fn equal_loads_take_turns() {
    let mut registry = Registry::new(0);
    for agent in 1..=3 {
        join(
            &mut registry,
            Some(agent),
            Policy::Spread,
            0,
            u32::from(agent),
        )
        .unwrap();
    }
    let mut seen = [0; 4];
    for _ in 0..300 {
        let picked = *registry.pick(&id(0), |_| 0).unwrap();
        seen[usize::try_from(picked).unwrap()] += 1;
    }
    assert_eq!(seen, [0, 100, 100, 100]);
    assert_eq!(registry.pick(&id(0), |handle| u64::from(*handle)), Some(&1));
}

#[test]
fn presence_tells_absent_from_draining() {
    let mut registry = Registry::new(0);
    assert_eq!(registry.presence(&id(0)), Presence::Absent);
    let one = join(&mut registry, Some(1), Policy::Spread, 0, 1).unwrap();
    assert_eq!(registry.presence(&id(0)), Presence::Serving(1));
    registry.leave_all();
    assert_eq!(registry.presence(&id(0)), Presence::Draining);
    assert_eq!(
        registry.pick(&id(0), |_| 0),
        Some(&1),
        "better a leaving one than none"
    );
    registry.set_standing(&one.key, Standing::Closed);
    assert_eq!(registry.pick(&id(0), |_| 0), None);
    registry.detach(&one.key);
    assert_eq!(registry.presence(&id(0)), Presence::Absent);
}

#[test]
fn epochs_rise_over_restarts_and_floors() {
    let mut registry = Registry::new(41);
    let first = join(&mut registry, Some(1), Policy::Spread, 0, 1).unwrap();
    assert_eq!(first.key.epoch, Epoch(42));
    assert_eq!(registry.revoke(&id(0), Epoch(1_000)).len(), 1);
    let early = Candidate {
        cluster: id(0),
        instance: Some(InstanceId([1; 16])),
        policy: Policy::Spread,
        floor: Epoch(999),
    };
    assert_eq!(
        registry.admit(early.clone(), 0).map(|_| ()),
        Err(Refused::Revoked)
    );
    let admission = registry
        .admit(
            Candidate {
                floor: Epoch(1_000),
                ..early
            },
            0,
        )
        .unwrap();
    assert_eq!(admission.key().epoch, Epoch(1_000));
    // A revocation between admission and attachment wins.
    registry.revoke(&id(0), Epoch(1_001));
    assert_eq!(
        registry.attach(admission, 0, 2).map(|_| ()),
        Err(Refused::Revoked)
    );
}

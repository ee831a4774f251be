//! Who waits at a relay and who meets whom, against the naive way of doing it; and
//! floods of the two tables.

use core::net::{IpAddr, Ipv6Addr};

use culvert_proto::pair::{ProofKind, RendezvousId, Role};
use culvert_proto::relay::*;
use proptest::prelude::*;

fn source(number: u64) -> Source {
    let bits = (0x2001_0db8 << 96) | u128::from(number) << 64 | 1;
    Source::of(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

fn place(kind: ProofKind, id: u8) -> Place {
    Place::new(kind, RendezvousId([id; 32]))
}

fn proven(id: u8) -> Place {
    place(ProofKind::Certificate, id)
}

fn open(id: u8) -> Place {
    place(ProofKind::Open, id)
}

/// The naive way: one list, oldest first, searched from the front.
struct Model {
    limits: Limits,
    /// The two sources of each.
    pairs: Vec<[u64; 2]>,
    here: Vec<Here>,
    met: Vec<[WaiterId; 2]>,
}

#[derive(Clone, Copy)]
struct Here {
    id: Option<WaiterId>,
    from: u64,
    at: (ProofKind, u8),
    role: Role,
    alone: bool,
}

impl Model {
    fn partner(&self, at: (ProofKind, u8), role: Role) -> Option<usize> {
        let fits = |here: &Here| here.alone && here.at == at && here.role == role.other();
        self.here.iter().position(fits)
    }

    fn count(&self, from: u64) -> usize {
        self.here.iter().filter(|here| here.from == from).count()
    }

    /// Whom a full relay sends away for somebody of `from`.
    fn victim(&self, from: u64, at: (ProofKind, u8)) -> Option<WaiterId> {
        let is_open = |here: &&Here| here.at.0 == ProofKind::Open;
        let youngest_open = self.here.iter().rev().find(is_open);
        if let Some(open) = youngest_open.filter(|_| at.0 != ProofKind::Open) {
            return open.id;
        }
        let most = self.here.iter().map(|here| self.count(here.from)).max()?;
        let greedy = self
            .here
            .iter()
            .filter(|here| self.count(here.from) == most);
        let greedy = greedy.max_by_key(|here| source(here.from))?.from;
        if most <= self.count(from) + 1 {
            return None;
        }
        self.here.iter().rev().find(|here| here.from == greedy)?.id
    }

    fn leave(&mut self, id: WaiterId) {
        self.here.retain(|here| here.id != Some(id));
        if let Some(at) = self.met.iter().position(|couple| couple.contains(&id)) {
            let couple = self.met.remove(at);
            let left = couple.into_iter().find(|other| *other != id).unwrap();
            let left = self
                .here
                .iter()
                .position(|here| here.id == Some(left))
                .unwrap();
            self.here[left].alone = true;
            self.meet(left);
        }
    }

    fn meet(&mut self, one: usize) {
        let Here { at, role, .. } = self.here[one];
        if let Some(other) = self.partner(at, role) {
            self.here[one].alone = false;
            self.here[other].alone = false;
            self.met
                .push([self.here[one].id.unwrap(), self.here[other].id.unwrap()]);
        }
    }

    fn pairs_of(&self, from: u64) -> usize {
        self.pairs.iter().filter(|it| it.contains(&from)).count()
    }

    fn sources(&self, couple: [WaiterId; 2]) -> [u64; 2] {
        let from = |id| {
            self.here
                .iter()
                .find(|here| here.id == Some(id))
                .unwrap()
                .from
        };
        couple.map(from)
    }

    /// Pairs of that source of the two which has more.
    fn has(&self, sources: [u64; 2]) -> usize {
        sources
            .map(|from| self.pairs_of(from))
            .into_iter()
            .max()
            .unwrap()
    }

    fn free(&self) -> usize {
        self.limits.pairs_max - self.pairs.len()
    }

    fn next_pair(&mut self) -> Option<[WaiterId; 2]> {
        let has = |at: &usize| self.has(self.sources(self.met[*at]));
        // Of equals the first.
        let next = (0..self.met.len()).min_by_key(has)?;
        if has(&next) >= self.free() {
            return None;
        }
        let couple = self.met.remove(next);
        self.pairs.push(self.sources(couple));
        self.here.retain(|here| !couple.contains(&here.id.unwrap()));
        Some(couple)
    }
}

fn sorted(mut couple: [WaiterId; 2]) -> [WaiterId; 2] {
    couple.sort_unstable();
    couple
}

/// All that meet now, in their order.
fn meet_all(waiting: &mut Waiting, model: &mut Model) -> Result<(), TestCaseError> {
    loop {
        let got = waiting.next_pair();
        let couple = model.next_pair();
        let ids = got.map(|it| sorted([it.bridge, it.broker]));
        prop_assert_eq!(ids, couple.map(sorted));
        let (Some(got), Some(pair)) = (got, model.pairs.last()) else {
            return Ok(());
        };
        let mut sources = pair.map(source);
        if got.sources != sources {
            sources.reverse();
        }
        prop_assert_eq!(got.sources, sources);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Enter(u64, ProofKind, u8, bool),
    Leave(usize),
    PairEnds(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let kind = proptest::sample::select(&ProofKind::ALL[..]);
    prop_oneof![
        6 => (0u64..4, kind, 0u8..2, any::<bool>())
            .prop_map(|(from, kind, id, bridge)| Step::Enter(from, kind, id, bridge)),
        2 => any::<usize>().prop_map(Step::Leave),
        2 => any::<usize>().prop_map(Step::PairEnds),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn waiting_does_what_the_naive_way_does(
        steps in proptest::collection::vec(any_step(), 0..120),
        waiters_max in 1usize..10,
        source_waiters_max in 1usize..5,
        pairs_max in 1usize..9,
    ) {
        let limits = Limits { waiters_max, source_waiters_max, pairs_max };
        let mut waiting = Waiting::new(limits);
        let mut model = Model { limits, pairs: Vec::new(), here: Vec::new(), met: Vec::new() };
        for step in steps {
            match step {
                Step::Enter(from, kind, id, bridge) => {
                    let role = if bridge { Role::Bridge } else { Role::Broker };
                    let at = (kind, id);
                    let got = waiting.enter(source(from), place(kind, id), role);
                    let joins = model.partner(at, role).is_some_and(|other| {
                        model.has([from, model.here[other].from]) < model.free()
                    });
                    let mut out = None;
                    if !joins {
                        let own = model.count(from);
                        if own >= source_waiters_max {
                            prop_assert_eq!(got, Err(Full::Source(own)));
                            continue;
                        }
                        if model.here.len() >= waiters_max {
                            out = model.victim(from, at);
                            let Some(victim) = out else {
                                prop_assert_eq!(got, Err(Full::All(waiters_max)));
                                continue;
                            };
                            model.leave(victim);
                        }
                    }
                    let entered = got.unwrap();
                    prop_assert_eq!(entered.displaced, out);
                    model.here.push(Here { id: Some(entered.id), from, at, role, alone: true });
                    model.meet(model.here.len() - 1);
                }
                Step::Leave(which) => {
                    if model.here.is_empty() {
                        continue;
                    }
                    let id = model.here[which % model.here.len()].id.unwrap();
                    model.leave(id);
                    prop_assert!(waiting.leave(id));
                    prop_assert!(!waiting.leave(id), "only once");
                }
                Step::PairEnds(which) => {
                    if model.pairs.is_empty() {
                        continue;
                    }
                    let ended = model.pairs.remove(which % model.pairs.len());
                    waiting.pair_ended(ended.map(source));
                }
            }
            meet_all(&mut waiting, &mut model)?;
            prop_assert_eq!(
                (waiting.len(), waiting.pairs(), waiting.held_back()),
                (model.here.len(), model.pairs.len(), model.met.len() * 2)
            );
            prop_assert!(waiting.len() <= waiters_max && waiting.pairs() <= pairs_max);
            let idle = model.met.iter().find(|it| model.has(model.sources(**it)) < model.free());
            prop_assert_eq!(idle, None, "a place is free for it");
            // No source has more than half of the places.
            let most = (0..4).map(|from| model.pairs_of(from)).max().unwrap();
            prop_assert!(most == 0 || most <= pairs_max - most + 1);
        }
    }
}

/// The table holds 10,000: cycling through seven times as many must not give the
/// blocked one a new start, nor a neighbour who hides behind many.
#[test]
fn seventy_thousand_sources_do_not_free_a_blocked_one() {
    let mut sources = Sources::new(100);
    let blocked = source(1 << 20);
    let mut now_ms = 0;
    while sources.admit(now_ms, blocked) == Verdict::Admit {}
    let mut strangers = 0;
    for number in 0..70_000 {
        now_ms += u64::from(number % 2_000 == 0);
        strangers += u32::from(sources.admit(now_ms, source(number)) == Verdict::Admit);
        if number % 100 == 0 {
            assert_ne!(
                sources.admit(now_ms, blocked),
                Verdict::Admit,
                "after {number}"
            );
        }
    }
    assert_ne!(sources.admit(now_ms, blocked), Verdict::Admit);
    assert!(sources.len() <= SOURCES_MAX);
    assert!(strangers >= 10_000, "{strangers}");
    assert!(
        strangers < 70_000,
        "all 70,000 of two /48s were let in at once"
    );
    // Once the table's buckets are as good as new, strangers have their own again.
    assert_eq!(
        sources.admit(now_ms + 60_000, source(1 << 21)),
        Verdict::Admit
    );
}

#[test]
fn a_full_table_shares_one_bucket_for_each_neighbourhood() {
    let mut sources = Sources::new(100);
    for number in 0..SOURCES_MAX as u64 {
        assert_eq!(sources.admit(0, source(number)), Verdict::Admit);
    }
    // Of one /48 that nobody has come from yet.
    let mut admitted = 0;
    for number in 0..1_000 {
        let from = source((7 << 16) + number);
        admitted += u32::from(sources.admit(0, from) == Verdict::Admit);
    }
    assert_eq!(admitted, 100);
    assert_eq!(
        sources.admit(0, source(8 << 16)),
        Verdict::Admit,
        "another /48"
    );
    assert_eq!(sources.len(), SOURCES_MAX);
}

#[test]
fn both_layers_full_leave_one_bucket_for_all_others() {
    let mut sources = Sources::new(100);
    for number in 0..(SOURCES_MAX + SOURCES_WIDE_MAX) as u64 {
        assert_eq!(sources.admit(0, source(number << 16)), Verdict::Admit);
    }
    let late = (0..1_000u64).map(|number| sources.admit(0, source((100_000 + number) << 16)));
    assert_eq!(late.filter(|it| *it == Verdict::Admit).count(), 100);
}

#[test]
fn the_last_place_is_given_and_one_more_is_refused() {
    let limits = Limits::default();
    let mut waiting = Waiting::new(limits);
    let mut enter = |from: u64, id: u8| waiting.enter(source(from), proven(id), Role::Bridge);
    for from in 0..128 {
        for _ in 0..32 {
            assert!(enter(from, 1).is_ok());
        }
        assert_eq!(enter(from, 1), Err(Full::Source(32)));
    }
    assert_eq!(enter(5, 2), Err(Full::Source(32)));
    assert_eq!(waiting.len(), 4_096);
    // Somebody with none of his own takes the place of one of 32.
    let entered = waiting.enter(source(500), proven(2), Role::Bridge).unwrap();
    assert!(entered.displaced.is_some());
    assert_eq!(waiting.len(), 4_096);
    // And where everybody has one, there is none to take.
    let limits = Limits {
        waiters_max: 3,
        ..limits
    };
    let mut waiting = Waiting::new(limits);
    for from in 0..3 {
        assert!(waiting.enter(source(from), proven(1), Role::Bridge).is_ok());
    }
    let late = waiting.enter(source(3), proven(1), Role::Bridge);
    assert_eq!(late, Err(Full::All(3)));
    // Whoever is joined at once needs no place.
    assert!(waiting.enter(source(3), proven(1), Role::Broker).is_ok());
    assert!(waiting.next_pair().is_some());
    assert_eq!(waiting.len(), 2);
}

#[test]
fn waiters_of_one_source_do_not_starve_the_pair_of_another() {
    let mut waiting = Waiting::new(Limits::default());
    let greedy = source(1);
    let let_in = (0..10_000u32).filter(|number| {
        let id = RendezvousId([number.to_be_bytes()[3]; 32]);
        let at = Place::new(ProofKind::Certificate, id);
        waiting.enter(greedy, at, Role::Bridge).is_ok()
    });
    assert_eq!(let_in.count(), 32);
    let bridge = waiting.enter(source(2), proven(7), Role::Bridge).unwrap();
    assert_eq!((waiting.next_pair(), bridge.displaced), (None, None));
}

/// 10,000 who know the id, from as many sources, and a pair that can prove it.
#[test]
fn squatters_in_an_open_join_never_meet_a_proof_nor_keep_it_out() {
    let mut waiting = Waiting::new(Limits::default());
    for number in 0..10_000 {
        let role = Role::Bridge;
        let _ = waiting.enter(source(number), open(1), role);
    }
    assert_eq!(waiting.len(), 4_096, "the relay is full of them");
    let bridge = waiting
        .enter(source(20_000), proven(1), Role::Bridge)
        .unwrap();
    assert_eq!(waiting.next_pair(), None);
    assert!(bridge.displaced.is_some());
    let broker = waiting
        .enter(source(20_001), proven(1), Role::Broker)
        .unwrap();
    let matched = waiting.next_pair().unwrap();
    assert_eq!((matched.bridge, matched.broker), (bridge.id, broker.id));
    // A key proves another thing than a certificate.
    let keyed = place(ProofKind::Key, 1);
    waiting.enter(source(3), keyed, Role::Broker).unwrap();
    assert_eq!(waiting.next_pair(), None);
    waiting.enter(source(4), proven(1), Role::Bridge).unwrap();
    assert_eq!(waiting.next_pair(), None);
}

#[test]
fn the_oldest_waiter_goes_first_and_like_never_meets_like() {
    let mut waiting = Waiting::new(Limits::default());
    let first = waiting.enter(source(1), proven(1), Role::Bridge).unwrap();
    let second = waiting.enter(source(2), proven(1), Role::Bridge).unwrap();
    assert_eq!(waiting.next_pair(), None);
    let bridge_of = |waiting: &mut Waiting| {
        waiting.enter(source(3), proven(1), Role::Broker).unwrap();
        waiting.next_pair().map(|it| it.bridge)
    };
    assert_eq!(bridge_of(&mut waiting), Some(first.id));
    assert_eq!(bridge_of(&mut waiting), Some(second.id));
    assert_eq!(bridge_of(&mut waiting), None);
}

/// Two sides at a place; the broker, and the pair if they may be one now.
fn pair(waiting: &mut Waiting, [bridge, broker]: [u64; 2], id: u8) -> (WaiterId, Option<Matched>) {
    let at = proven(id);
    waiting.enter(source(bridge), at, Role::Bridge).unwrap();
    let broker = waiting.enter(source(broker), at, Role::Broker).unwrap();
    (broker.id, waiting.next_pair())
}

#[test]
fn pairs_beyond_the_limit_wait_and_go_on_in_order() {
    let mut waiting = Waiting::new(Limits::default());
    let pairs: Vec<Matched> = (0..1_000)
        .map(|number| pair(&mut waiting, [number, 1_000 + number], 0).1.unwrap())
        .collect();
    let late = [1u8, 2, 3].map(|id| {
        let number = 2_000 + u64::from(id);
        let (broker, pair) = pair(&mut waiting, [number, 1_000 + number], id);
        assert_eq!(pair, None);
        broker
    });
    assert_eq!((waiting.pairs(), waiting.len()), (1_000, 6));
    // The second couple loses a side: its place in the order goes to the third.
    assert!(waiting.leave(late[1]));
    let mut next = |ended: usize| {
        waiting.pair_ended(pairs[ended].sources);
        waiting.next_pair().map(|it| it.broker)
    };
    assert_eq!(next(0), Some(late[0]));
    assert_eq!(next(1), Some(late[2]));
    assert_eq!(next(2), None);
    assert_eq!((waiting.pairs(), waiting.len()), (999, 1));
}

/// However many meet themselves as often as they can, the next one finds a place.
#[test]
fn sources_that_match_with_themselves_leave_places_for_others() {
    for greedy in [1, 3, 20, 200] {
        let mut waiting = Waiting::new(Limits::default());
        let mut trying: Vec<u64> = (0..greedy).collect();
        while !trying.is_empty() {
            trying.retain(|from| pair(&mut waiting, [*from, *from], 0).1.is_some());
        }
        let free = 1_000 - waiting.pairs() as u64;
        assert!(free >= 1_000 / (greedy + 1), "{greedy} leave {free} free");
        let (_, pair) = pair(&mut waiting, [7_000, 8_000], 1);
        assert!(pair.is_some(), "{greedy} keep out another");
    }
}

#[test]
fn a_source_beyond_its_share_waits_and_is_passed_by() {
    let limits = Limits {
        pairs_max: 10,
        ..Limits::default()
    };
    let mut waiting = Waiting::new(limits);
    let mut of_one = Vec::new();
    while let (_, Some(pair)) = pair(&mut waiting, [1, 2], 0) {
        of_one.push(pair);
    }
    // A half, and the couple that found it taken.
    assert_eq!((of_one.len(), waiting.held_back()), (5, 2));
    // Others come later and go first, down to the last place.
    for number in 3..=7 {
        assert!(pair(&mut waiting, [number, 10 + number], 0).1.is_some());
    }
    let (last, none) = pair(&mut waiting, [8, 18], 0);
    assert_eq!((none, waiting.held_back()), (None, 4));
    // A place that gets free is theirs too, and the greedy wait until more are free than they have.
    waiting.pair_ended(of_one[0].sources);
    assert_eq!(waiting.next_pair().map(|it| it.broker), Some(last));
    for ended in &of_one[1..3] {
        waiting.pair_ended(ended.sources);
        assert_eq!(waiting.next_pair(), None);
    }
    waiting.pair_ended(of_one[3].sources);
    assert_eq!(waiting.next_pair().map(|it| it.sources[0]), Some(source(1)));
}

//! What follows from a table that is taken into use.

use std::time::Duration;

use culvert_net::crypto::sha256;
use culvert_proto::id::Generation;
use culvert_proto::token::Digest;
use culvert_proto::update::{Change, ClusterState, TokenHash, Update};

use super::*;

const CLUSTERS: u64 = 10_000;
const STEPS: u64 = 50;
const STEP_MAX: Duration = Duration::from_millis(10);

fn plane(flags: &[&str]) -> Arc<Plane> {
    let clusters = r#"[{"id":"a","token":"0123456789abcdef"}]"#;
    let base = ["culvert-dataplane", "--clusters", clusters];
    let argv = base.iter().chain(flags).map(std::ffi::OsString::from);
    let config = Config::read(argv, &|_| None).unwrap();
    let (engine, _) = crate::engine::start(config.engine, config.io_engine, 1).unwrap();
    let observer = Observer::absent(culvert_observe::Reason::Disabled);
    Plane::new(config, engine, observer, 16)
}

/// Requests that pass in a burst of 100.
fn burst(plane: &Plane) -> usize {
    (0..100).filter(|_| plane.limit_rate().is_ok()).count()
}

fn settings(plane: &Plane, generation: u64, rate: u32) {
    let mut state = State::default();
    state.generation.0 = generation;
    state.settings.rate_per_second = rate;
    plane.adopt(&state, Source::Control).unwrap();
}

#[test]
fn the_lower_of_the_flags_and_controls_rate_holds() {
    let free = plane(&[]);
    assert_eq!(burst(&free), 100);
    settings(&free, 1, 10);
    assert!((10..20).contains(&burst(&free)));
    settings(&free, 2, 10);
    assert!(burst(&free) < 5, "an update hands out no new burst");
    settings(&free, 3, 0);
    assert_eq!(burst(&free), 100);

    let flagged = plane(&["--rate-limit=10"]);
    settings(&flagged, 1, 50);
    assert!((10..20).contains(&burst(&flagged)));
    settings(&flagged, 2, 4);
    assert!((4..9).contains(&burst(&flagged)));
}

/// With two tokens.
fn cluster(number: u64, rate_per_second: u32) -> Arc<ClusterState> {
    let token = |which: u64| TokenHash {
        digest: Digest(sha256(format!("{number} {which}").as_bytes())),
        id: format!("t{number}-{which}").into(),
        not_after_unix_ms: None,
    };
    Arc::new(ClusterState {
        tokens: (0..2).map(token).collect(),
        rate_per_second,
        ..ClusterState::new(format!("cluster-{number:05}").parse().unwrap())
    })
}

#[test]
#[ignore = "measures; for a release build on a quiet machine"]
fn a_step_among_ten_thousand_clusters_is_in_use_in_time() {
    let plane = plane(&[]);
    let mut state = State {
        generation: Generation(1),
        clusters: (0..CLUSTERS)
            .map(|number| cluster(number, 0))
            .map(|it| (it.id.clone(), it))
            .collect(),
        ..State::default()
    };
    let began = Instant::now();
    plane.adopt(&state, Source::Control).unwrap();
    let whole = began.elapsed();
    let mut steps: Vec<Duration> = (0..STEPS)
        .map(|step| {
            let changed = cluster(step * 190, 7);
            let id = changed.id.clone();
            let update = Update {
                generation: Generation(step + 2),
                issued_unix_ms: 1,
                changes: vec![Change::Upsert(changed)],
            };
            let body = update.encode();
            let began = Instant::now();
            state.apply(&Update::decode(&body).unwrap()).unwrap();
            plane.adopt(&state, Source::Control).unwrap();
            let took = began.elapsed();
            let table = plane.table.load();
            assert_eq!(table.get(id.as_str()).unwrap().state.rate_per_second, 7);
            assert_eq!(table.tokens.len(), 20_000);
            took
        })
        .collect();
    steps.sort_unstable();
    let (median, slowest) = (steps[steps.len() / 2], steps[steps.len() - 1]);
    println!("{CLUSTERS} clusters: first table {whole:?}; a step {median:?}, slowest {slowest:?}");
    if !cfg!(debug_assertions) {
        assert!(slowest < STEP_MAX, "{slowest:?}");
    }
}

#[test]
fn a_step_shares_what_it_leaves_alone_and_counts_go_on() {
    let plane = plane(&[]);
    let state = |generation, clusters: Vec<Arc<ClusterState>>| State {
        generation: Generation(generation),
        clusters: clusters.into_iter().map(|it| (it.id.clone(), it)).collect(),
        ..State::default()
    };
    let (kept, changed, gone) = (cluster(1, 0), cluster(2, 0), cluster(3, 0));
    let first = vec![kept.clone(), changed.clone(), gone.clone()];
    plane.adopt(&state(1, first), Source::Control).unwrap();
    let before = plane.table.load_full();
    let _held = before.get(kept.id.as_str()).unwrap().admit().ok().unwrap();

    let second = vec![kept.clone(), cluster(2, 9), cluster(4, 0)];
    plane.adopt(&state(2, second), Source::Control).unwrap();
    let now = plane.table.load_full();
    let of = |table: &Table, cluster: &ClusterState| table.get(cluster.id.as_str()).cloned();
    let (same, other) = (of(&now, &kept).unwrap(), of(&now, &changed).unwrap());
    assert!(Arc::ptr_eq(&same, &of(&before, &kept).unwrap()));
    assert_eq!(other.state.rate_per_second, 9);
    assert_eq!(other.number(), of(&before, &changed).unwrap().number());
    assert!(of(&now, &gone).is_none());
    for (cluster, known) in [(&kept, true), (&changed, true), (&gone, false)] {
        for token in &cluster.tokens {
            assert_eq!(now.tokens.find(&token.digest, 0).is_ok(), known);
        }
    }
    assert_eq!(now.tokens.len(), 6);
    plane
        .adopt(
            &state(3, vec![kept.clone(), cluster(2, 9), cluster(4, 0)]),
            Source::Control,
        )
        .unwrap();
    let thief = Arc::new(ClusterState {
        tokens: kept.tokens.clone(),
        ..ClusterState::clone(&gone)
    });
    let why = plane.adopt(&state(4, vec![kept.clone(), thief]), Source::Control);
    assert!(why.unwrap_err().contains("the same token"));
}

//! What a wrong token costs says nothing about it (decision D-14): the work of an attempt is that
//! of `authenticate` in the data plane, SHA-256 of what was shown and one look into the index.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::hint::black_box;
use std::time::Instant;

use culvert_net::crypto::{random_bytes, sha256};
use culvert_proto::token::{Digest, TokenEntry, TokenIndex, TokenText, mint};

const ATTEMPTS: usize = 64;
const ROUNDS: usize = 1_000;
/// A neighbour on the machine may spoil a measurement; a difference in the code spoils each.
const TRIES: usize = 6;

struct Fleet {
    index: TokenIndex,
    /// Id and text of each token.
    tokens: Vec<([u8; 8], TokenText)>,
}

fn fleet(count: usize) -> Fleet {
    let tokens: Vec<_> = (0..count)
        .map(|_| {
            let id = random_bytes();
            (id, mint(id, random_bytes()))
        })
        .collect();
    let entries = tokens.iter().enumerate().map(|(n, (_, token))| TokenEntry {
        digest: Digest(sha256(token.expose().as_bytes())),
        cluster: format!("cluster-{n}").parse().unwrap(),
        token_id: token.id().unwrap().into(),
        not_after_unix_ms: None,
    });
    let index = TokenIndex::build(entries).unwrap();
    Fleet { index, tokens }
}

/// Nanoseconds of one attempt for each kind of token, the median of many interleaved rounds.
fn medians(fleet: &Fleet, kinds: &[Vec<String>]) -> Vec<f64> {
    let mut took = vec![Vec::with_capacity(ROUNDS); kinds.len()];
    for round in 0..ROUNDS {
        for turn in 0..kinds.len() {
            // No kind always follows the same one.
            let kind = (turn + round) % kinds.len();
            let start = Instant::now();
            for text in &kinds[kind] {
                let digest = Digest(sha256(black_box(text).as_bytes()));
                let _ = black_box(fleet.index.find(&digest, 1));
            }
            took[kind].push(start.elapsed());
        }
    }
    let median = |mut times: Vec<std::time::Duration>| {
        times.sort();
        times[ROUNDS / 2].as_secs_f64() * 1e9 / ATTEMPTS as f64
    };
    took.into_iter().map(median).collect()
}

fn texts(make: impl Fn(usize) -> String) -> Vec<String> {
    (0..ATTEMPTS).map(make).collect()
}

#[test]
fn a_wrong_secret_an_unknown_id_and_garbage_take_the_same_time() {
    for count in [1, 10_000] {
        let fleet = fleet(count);
        let pick = |n: usize| &fleet.tokens[n * 157 % count];
        let kinds = [
            texts(|n| pick(n).1.expose().to_owned()),
            texts(|n| mint(pick(n).0, random_bytes()).expose().to_owned()),
            texts(|_| mint(random_bytes(), random_bytes()).expose().to_owned()),
            texts(|n| format!("rhc_{n:061}")),
        ];
        let mut seen = Vec::new();
        let alike = (0..TRIES).any(|_| {
            let times = medians(&fleet, &kinds);
            let (least, most) = times
                .iter()
                .fold((f64::MAX, 0f64), |(l, m), t| (l.min(*t), m.max(*t)));
            seen.push(times);
            most / least < 1.15
        });
        assert!(
            alike,
            "{count} tokens: good, wrong, unknown, garbage: {seen:?} ns"
        );
    }
}

#[test]
fn an_attempt_costs_the_same_with_one_and_with_10_000_tokens() {
    let unknown = [texts(|_| {
        mint(random_bytes(), random_bytes()).expose().to_owned()
    })];
    let (one, many) = (fleet(1), fleet(10_000));
    let mut seen = Vec::new();
    let flat = (0..TRIES).any(|_| {
        let (one, many) = (medians(&one, &unknown)[0], medians(&many, &unknown)[0]);
        seen.push((one, many));
        // A search among 10,000 is fourteen comparisons of eight bytes; reading all would be 50x.
        many / one < 2.0
    });
    assert!(flat, "1 and 10,000 tokens: {seen:?} ns");
}

//! The shared arithmetic against models in f64, u128 and plain loops.
//! `PROPTEST_CASES` sets the cases of each property; 100,000 without.

use culvert_abi::{Ident, arm, bucket, lane, offset, thin, ticks, wait};
use proptest::prelude::*;

const CASES: u32 = 100_000;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|cases| cases.parse().ok()).unwrap_or(CASES),
        ..ProptestConfig::default()
    }
}

/// Durations of every magnitude alike.
fn log_uniform() -> impl Strategy<Value = u64> {
    (0_u32..64, any::<u64>()).prop_map(|(shift, bits)| bits >> shift)
}

/// Quarter octaves above 2^-20 s.
fn quarters(ns: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "the model")]
    let seconds = ns as f64 / 1e9;
    4.0 * (seconds.log2() + 20.0)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_bucket_is_the_one_of_the_logarithm(ns in log_uniform()) {
        let exact = quarters(ns.max(1));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let at = |quarters: f64| quarters.ceil().clamp(0.0, 105.0) as u32;
        let got = bucket::of_ns(ns);
        // Another bucket only this near to a bound.
        prop_assert!(got == at(exact) || got == at(exact - 0.006) || got == at(exact + 0.006),
            "{ns} ns: bucket {got}, {exact} quarter octaves");
    }

    #[test]
    fn a_longer_duration_has_no_lower_bucket(a in log_uniform(), b in log_uniform()) {
        prop_assert!(bucket::of_ns(a.min(b)) <= bucket::of_ns(a.max(b)));
        prop_assert!(lane::of_ns(a.min(b)) <= lane::of_ns(a.max(b)));
    }

    #[test]
    fn a_stream_keeps_its_offset_over_wraps_and_repeats(
        base in any::<u32>(),
        start in 0_u64..1 << 40,
        segments in prop::collection::vec((0_u32..70_000, 0_u64..200_000), 1..8),
    ) {
        // The model knows offsets of 128 bits; the wire shows 32 of them.
        let mut position = start;
        let mut model = u128::from(start);
        for (payload, back) in segments {
            let from = model.saturating_sub(u128::from(back));
            let sequence = u32::try_from((from + u128::from(base)) % (1 << 32)).unwrap();
            let end = offset::end(sequence, payload, base);
            let expected = (from + u128::from(payload)).max(model);
            let ahead = offset::advance(position, end);
            position += u64::from(ahead);
            prop_assert_eq!(u128::from(position), expected);
            model = expected;
        }
    }

    #[test]
    fn a_hole_opens_beyond_and_fills_at_its_end(
        position in any::<u64>(), gap in 0_u32..1 << 30, payload in 1_u32..70_000,
    ) {
        #[expect(clippy::cast_possible_truncation, reason = "what the wire shows")]
        let low = position as u32;
        let start = low.wrapping_add(gap);
        prop_assert_eq!(offset::leaves_hole(position, start), gap > 0);
        prop_assert!(!offset::leaves_hole(position, low.wrapping_sub(gap)));
        let end = start.wrapping_add(payload);
        prop_assert!(!offset::is_filled(low, end));
        prop_assert!(!offset::is_filled(end.wrapping_sub(1), end));
        prop_assert!(offset::is_filled(end, end));
        prop_assert!(offset::is_filled(end.wrapping_add(gap), end));
    }

    #[test]
    fn a_fin_is_no_payload(payload in 0_u64..1 << 50, hole in 0_u64..100_000, seen: bool) {
        // Without a FIN the kernel's count is the payload, whatever came beyond a hole.
        prop_assert_eq!(offset::received(payload, payload + hole, true), payload);
        // With one it is one more; a tier that sees no packets knows no `rx_end`.
        let rx_end = if seen { payload } else { 0 };
        prop_assert_eq!(offset::received(payload + 1, rx_end, true), payload);
        prop_assert_eq!(offset::received(payload, rx_end, false), payload);
    }

    #[test]
    fn a_wait_is_told_to_half_a_microsecond_and_by_its_own_trace(
        mark in 1_u32..=wait::MARKS, came in any::<u64>(), waited_ns in 0_u64..200_000_000_000,
    ) {
        let came = came >> 1;
        let word = wait::pack(mark, ticks::of_ns(came));
        prop_assert_eq!(wait::mark(word), mark);
        prop_assert_ne!(word, 0);
        let told_ns = u64::from(wait::ticks(word, ticks::of_ns(came + waited_ns))) * ticks::TICK_NS;
        prop_assert!(told_ns.abs_diff(waited_ns) <= 8 * ticks::TICK_NS, "{} {}", told_ns, waited_ns);
    }

    #[test]
    fn flags_keep_their_neighbours_when_a_trace_comes_and_goes(flags in any::<u16>(), mark in 0_u32..=wait::MARKS) {
        let marked = Ident::for_trace(flags, mark);
        prop_assert_eq!(Ident::traced_by(marked), mark);
        prop_assert_eq!(marked & !Ident::TRACE, flags & !Ident::TRACE);
        prop_assert_eq!(Ident::for_trace(marked, 0), flags & !Ident::TRACE);
    }

    #[test]
    fn an_arm_word_keeps_its_parts(behind in 0_u64..2, ns in any::<u64>(), at in any::<u64>()) {
        let tick = ticks::of_ns(ns);
        prop_assert_eq!(u128::from(tick), u128::from(ns) / 64 % (1 << 35));
        let word = arm::pack(behind, tick, at);
        let parts = arm::unpack(word);
        prop_assert_eq!(parts.behind, behind == 1);
        prop_assert_eq!(arm::behind(word), u32::from(parts.behind));
        prop_assert_eq!(parts.tick, tick);
        prop_assert_eq!(u64::from(parts.offset), at % (1 << 28));
    }

    #[test]
    fn an_arm_word_is_passed_when_its_byte_has_left(
        at in 0_u64..1 << 50, ahead in 1_u64..1 << 27, tick in any::<u64>(),
    ) {
        let word = arm::pack(tick & 1, ticks::of_ns(tick), at);
        prop_assert!(!arm::passed(word, at), "its byte is the next one");
        prop_assert!(arm::passed(word, at + ahead));
        prop_assert!(!arm::passed(word, at.saturating_sub(ahead)));
    }

    #[test]
    fn a_time_span_survives_the_wrap(start in any::<u64>(), ns in 0_u64..2_000_000_000_000) {
        let span = ticks::since(ticks::of_ns(start.wrapping_add(ns)), ticks::of_ns(start));
        let exact = u128::from(ns) / 64;
        if start.checked_add(ns).is_some() {
            prop_assert!(u128::from(span) == exact || u128::from(span) == exact + 1);
        }
        prop_assert_eq!(u128::from(ticks::saturated(span)), u128::from(span).min(u32::MAX.into()));
    }

    #[test]
    fn a_mean_stays_between_its_values(old in any::<u32>(), new in any::<u32>(), n in any::<u16>()) {
        let mean = ticks::mean(old, n, new);
        if n == 0 {
            prop_assert_eq!(mean, new);
        }
        prop_assert!((old.min(new)..=old.max(new)).contains(&mean));
        if n > 0 {
            let exact = f64::from(old) * 7.0 / 8.0 + f64::from(new) / 8.0;
            prop_assert!((f64::from(mean) - exact).abs() <= 1.0);
        }
    }

    #[test]
    fn a_lane_holds_durations_up_to_its_bound(ns in log_uniform()) {
        let lane = lane::of_ns(ns);
        prop_assert!(lane < lane::LANES);
        prop_assert!(lane == lane::LANES - 1 || ns <= 4_096 << lane);
        prop_assert!(lane == 0 || ns > 4_096 << (lane - 1));
    }

    #[test]
    fn lanes_count_and_halve_together(
        start in prop::array::uniform16(any::<u16>()), adds in prop::collection::vec(0_u32..16, 1..40),
    ) {
        let mut model = start.map(u64::from);
        let mut words = [0_u64; 4];
        for (lane, count) in model.iter().enumerate() {
            words[lane / 4] |= count << (lane % 4 * 16);
        }
        for lane in adds {
            if model[lane as usize] == 65_535 {
                model = model.map(|count| count / 2);
            }
            model[lane as usize] += 1;
            lane::add(&mut words, lane);
        }
        for (lane, count) in (0..).zip(model) {
            prop_assert_eq!(lane::count(&words, lane), count);
        }
        prop_assert_eq!(lane::samples(&words), model.iter().sum::<u64>());
    }

    #[test]
    fn a_quantile_is_the_one_of_the_sorted_samples(
        lanes in prop::collection::vec(0_u32..16, 1..60), per_mille in 1_u64..1_001,
    ) {
        let mut words = [0; 4];
        let mut sorted = lanes.clone();
        sorted.sort_unstable();
        lanes.iter().for_each(|lane| lane::add(&mut words, *lane));
        #[expect(clippy::cast_possible_truncation, reason = "at most 60")]
        let rank = (sorted.len() as u64 * per_mille).div_ceil(1_000) as usize;
        let expected = (4_096_u64 << sorted[rank - 1]).div_ceil(1_000);
        prop_assert_eq!(lane::quantile_us(&words, per_mille), Some(expected));
    }
}

#[test]
fn bounds_are_those_of_native_schema_2() {
    for at in 0..bucket::BUCKETS - 1 {
        #[expect(clippy::cast_precision_loss, reason = "at most 104")]
        let exact = (-20.0 + at as f64 / 4.0).exp2();
        let got = bucket::upper_s(at);
        assert!((got / exact - 1.0).abs() < 1e-15, "{at}: {got} for {exact}");
    }
    assert_eq!(bucket::upper_s(104), 64.0);
    assert_eq!(bucket::upper_s(105), f64::INFINITY);
    for octave in 0..bucket::OCTAVES - 1 {
        assert_eq!(bucket::octave_upper_s(octave), bucket::upper_s(octave * 4));
    }
    assert_eq!(bucket::octave_upper_s(27), f64::INFINITY);
}

#[test]
fn the_ends_of_the_scale_have_buckets() {
    assert_eq!(bucket::of_ns(0), 0);
    assert_eq!(bucket::of_ns(953), 0);
    assert_eq!(bucket::of_ns(955), 1);
    assert_eq!(bucket::of_ns(999_999_900), 80);
    assert_eq!(bucket::of_ns(1_000_000_100), 81);
    assert_eq!(bucket::of_ns(63_999_900_000), 104);
    assert_eq!(bucket::of_ns(64_000_100_000), 105);
    assert_eq!(bucket::of_ns(u64::MAX), 105);
}

#[test]
fn an_octave_is_four_buckets_and_the_ends_are_alone() {
    let row: Vec<u64> = (0..128).map(|bucket| 1 << (bucket % 60)).collect();
    let octaves = bucket::fold_octaves(&row);
    assert_eq!(octaves[0], row[0]);
    for octave in 1..27 {
        let four = &row[octave * 4 - 3..=octave * 4];
        assert_eq!(octaves[octave], four.iter().sum::<u64>(), "octave {octave}");
    }
    assert_eq!(octaves[27], row[105]);
    assert_eq!(octaves.iter().sum::<u64>(), row[..106].iter().sum::<u64>());
}

#[test]
fn no_samples_have_no_quantile() {
    assert_eq!(lane::quantile_us(&[0; 4], 500), None);
}

#[test]
fn the_first_samples_are_all_taken_and_then_a_share() {
    let taken = |from: u32, to: u32| (from..to).filter(|nth| thin::takes(*nth)).count();
    assert_eq!(taken(0, thin::WHOLE), 256);
    assert_eq!(taken(thin::WHOLE, thin::WHOLE + 4_000), 1_000);
    // Whatever the stride: messages of one size, and segments of a power of two.
    for stride in [1, 64, 1_000, 1_448, 16_384, 65_483, 65_536] {
        let at = |nth: u64| nth * stride;
        let payload = u32::try_from(stride).unwrap();
        let share = if payload < thin::BULK_BYTES { 4 } else { 16 };
        assert!((0..64).all(|nth| thin::takes_at(thin::WHOLE - 1, at(nth), payload)));
        let taken = (0..16_000).filter(|nth| thin::takes_at(thin::WHOLE, at(*nth), payload));
        let taken = taken.count() * share;
        assert!((12_000..20_000).contains(&taken), "{stride}: {taken}");
        let acks = (0..16_000_u32).filter(|nth| thin::takes_ack(nth.wrapping_mul(payload)));
        let acks = acks.count() * 4;
        assert!(
            (12_000..20_000).contains(&acks),
            "{stride}: {acks} acknowledgements"
        );
    }
}

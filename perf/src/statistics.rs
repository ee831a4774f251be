//! Ratios in each round, their median, and a bootstrap interval with a fixed seed.

/// Resamples of a bootstrap interval.
const RESAMPLES: usize = 10_000;

/// Reproducible pseudo-random numbers (splitmix64); for schedules and resampling, not secrets.
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless source is no iterator of use"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let top = (self.next() >> 11) as f64;
        top / 9_007_199_254_740_992.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

/// The middle value; the mean of the two middle ones.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// A ratio of two variants over paired rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Median of the rounds.
    pub median: f64,
    /// Smallest and largest round.
    pub range: (f64, f64),
    /// 95 % bootstrap interval of the median.
    pub interval: (f64, f64),
    /// Rounds.
    pub rounds: usize,
    /// All rounds on the same side of 1.
    pub agree: bool,
}

impl Ratio {
    /// From paired values; `None` without any pair.
    pub fn of(pairs: &[(f64, f64)]) -> Option<Ratio> {
        let ratios: Vec<f64> = pairs
            .iter()
            .map(|(ours, theirs)| ours / theirs)
            .filter(|ratio| ratio.is_finite())
            .collect();
        if ratios.is_empty() {
            return None;
        }
        let mut random = Random::new(1);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let sample: Vec<f64> = (0..ratios.len())
                    .map(|_| ratios[random.below(ratios.len())])
                    .collect();
                median(&sample)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        Some(Ratio {
            median: median(&ratios),
            range: (
                ratios.iter().copied().fold(f64::INFINITY, f64::min),
                ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ),
            interval: (
                medians[RESAMPLES / 40],
                medians[RESAMPLES - 1 - RESAMPLES / 40],
            ),
            rounds: ratios.len(),
            agree: ratios.iter().all(|ratio| *ratio > 1.0)
                || ratios.iter().all(|ratio| *ratio < 1.0),
        })
    }

    /// `more`, `less` or `no difference shown`: only an interval without 1 in which all rounds,
    /// at least five, agree says anything.
    pub fn verdict(&self) -> &'static str {
        let shown = self.agree && self.rounds >= 5;
        match self.interval {
            (low, _) if shown && low > 1.0 => "more",
            (_, high) if shown && high < 1.0 => "less",
            _ => "no difference shown",
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} [{:.2}-{:.2}], 95 % {:.2}-{:.2}, {} rounds: {}",
            self.median,
            self.range.0,
            self.range.1,
            self.interval.0,
            self.interval.1,
            self.rounds,
            self.verdict()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_difference_is_said_only_when_all_rounds_agree() {
        let better: Vec<_> = (0..5).map(|n| (130.0 + f64::from(n), 100.0)).collect();
        assert_eq!(Ratio::of(&better).unwrap().verdict(), "more");
        let mixed = [
            (130.0, 100.0),
            (90.0, 100.0),
            (120.0, 100.0),
            (130.0, 100.0),
            (99.0, 100.0),
        ];
        assert_eq!(Ratio::of(&mixed).unwrap().verdict(), "no difference shown");
        assert_eq!(
            Ratio::of(&better[..3]).unwrap().verdict(),
            "no difference shown"
        );
        assert_eq!(Ratio::of(&[]), None);
    }

    #[test]
    fn random_numbers_repeat_and_spread() {
        let (mut one, mut two) = (Random::new(3), Random::new(3));
        let mean: f64 = (0..1000).map(|_| one.unit()).sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert_eq!(two.next(), Random::new(3).next());
    }
}

//! In which order hubs are tried (C-16).

use super::HubUrl;

/// Places of `hubs` in the order to try them: as written, but neighbours that carry a weight are
/// drawn, so that over many agents each comes first in proportion to its weight. `random` gives
/// values uniform over all of u64.
#[must_use]
pub fn attempt_order(hubs: &[HubUrl], mut random: impl FnMut() -> u64) -> Vec<usize> {
    let mut order = Vec::with_capacity(hubs.len());
    let mut drawn: Vec<(usize, u64)> = Vec::new();
    for (place, hub) in hubs.iter().enumerate() {
        match hub.weight() {
            Some(weight) => drawn.push((place, weight.into())),
            None => {
                draw(&mut drawn, &mut random, &mut order);
                order.push(place);
            }
        }
    }
    draw(&mut drawn, &mut random, &mut order);
    order
}

/// Empties `group` into `order`, the next one always by weight.
fn draw(group: &mut Vec<(usize, u64)>, random: &mut impl FnMut() -> u64, order: &mut Vec<usize>) {
    while !group.is_empty() {
        let total: u64 = group.iter().map(|(_, weight)| weight).sum();
        let scaled = (u128::from(random()) * u128::from(total)) >> 64;
        let mut left = u64::try_from(scaled).unwrap_or(0);
        let chosen = group.iter().position(|(_, weight)| {
            let is_here = left < *weight;
            left = left.saturating_sub(*weight);
            is_here
        });
        order.push(group.remove(chosen.unwrap_or(0)).0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hubs(texts: &[&str]) -> Vec<HubUrl> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// SplitMix64.
    fn seeded(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }
    }

    #[test]
    fn without_weights_the_order_is_as_written() {
        let hubs = hubs(&["wss://a", "wss://b", "wss://c"]);
        assert_eq!(attempt_order(&hubs, seeded(1)), [0, 1, 2]);
        assert!(attempt_order(&[], seeded(1)).is_empty());
    }

    #[test]
    fn weights_share_the_first_place_and_lose_nobody() {
        let hubs = hubs(&["wss://a;weight=3", "wss://b;weight=1"]);
        let mut random = seeded(7);
        let first = (0..10_000).filter(|_| {
            let order = attempt_order(&hubs, &mut random);
            assert_eq!(order.iter().sum::<usize>(), 1, "both are in {order:?}");
            order[0] == 0
        });
        let first = first.count();
        assert!((7_300..7_700).contains(&first), "{first} of 10,000 for 3:1");
    }

    #[test]
    fn a_hub_without_a_weight_keeps_its_place_between_groups() {
        let hubs = hubs(&[
            "wss://a;weight=1",
            "wss://b;weight=1",
            "wss://c",
            "wss://d;weight=5",
            "wss://e;weight=5",
        ]);
        let mut random = seeded(3);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let order = attempt_order(&hubs, &mut random);
            assert_eq!(order[2], 2);
            assert!(order[..2].iter().all(|place| *place < 2), "{order:?}");
            seen.insert(order);
        }
        assert_eq!(seen.len(), 4, "every order of either group occurs");
    }

    #[test]
    fn the_ends_of_the_random_range_stay_inside() {
        let hubs = hubs(&["wss://a;weight=1", "wss://b;weight=1000"]);
        assert_eq!(attempt_order(&hubs, || 0), [0, 1]);
        assert_eq!(attempt_order(&hubs, || u64::MAX), [1, 0]);
    }
}

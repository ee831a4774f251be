//! What an operator asks of the observer.

use std::borrow::Cow;
use std::fmt;

/// `--ebpf`: what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The highest tier that this host permits.
    #[default]
    Auto,
    /// `TCP_INFO` alone; nothing is probed and no capability is touched.
    Off,
    /// The highest tier that the settings allow, or no start.
    Require,
}

impl Mode {
    /// The words of a setting.
    pub const CHOICES: [(&str, Self); 3] = [
        ("auto", Self::Auto),
        ("off", Self::Off),
        ("require", Self::Require),
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Require => "require",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much the kernel is asked to tell. Each tier has all of the one below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Tier {
    /// What `TCP_INFO` and the process itself know.
    TcpInfo,
    /// Connect and accept times, RTTs, retransmissions, close records.
    Sockops,
    /// Stream offsets, bytes, first bytes, residence.
    #[default]
    Skb,
}

impl Tier {
    /// Every tier, lowest first.
    pub const ALL: [Self; 3] = [Self::TcpInfo, Self::Sockops, Self::Skb];
    /// The words of the setting `ebpf.tier_max`.
    pub const CHOICES: [(&str, Self); 2] = [("sockops", Self::Sockops), ("skb", Self::Skb)];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpInfo => "tcp_info",
            Self::Sockops => "sockops",
            Self::Skb => "skb",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How an observer is made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether to try, and whether to insist.
    pub mode: Mode,
    /// The highest tier to try.
    pub tier_max: Tier,
    /// Whether the trace programs are loaded, ready to be linked. Needs `CAP_PERFMON`.
    pub trace: bool,
    /// Clusters with rows of their own, the four fixed ones included; rounded up to a power of two.
    pub clusters_max: u16,
    /// Relayed pairs whose residence is measured at one time; rounded up to a power of two.
    pub pairs_max: u32,
    /// Keeps `CAP_NET_BIND_SERVICE`, for a port below 1024 that is bound later.
    pub keep_net_bind: bool,
    /// Another object than the one that was built in. Tests hand in broken ones.
    pub object: Option<Cow<'static, [u8]>>,
}

impl Settings {
    /// `clusters_max` may be this much: the index has 16 bits.
    pub const CLUSTERS_MAX: u16 = 32_768;
    /// `pairs_max` may be this much.
    pub const PAIRS_MAX: u32 = 1 << 20;

    /// Rows for clusters in the maps: a power of two, so that the verifier and
    /// the kernel's own rounding agree on the size.
    pub fn cluster_rows(&self) -> u16 {
        let rows = self.clusters_max.clamp(8, Self::CLUSTERS_MAX);
        rows.next_power_of_two()
    }

    /// Slots for pairs in the maps, a power of two; one where nobody needs any.
    pub fn pair_slots(&self) -> u32 {
        if self.tier_max < Tier::Skb {
            return 1;
        }
        self.pairs_max.clamp(1, Self::PAIRS_MAX).next_power_of_two()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            tier_max: Tier::Skb,
            trace: false,
            clusters_max: 1_024,
            pairs_max: 65_536,
            keep_net_bind: false,
            object: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_within_their_bounds() {
        let sized = |clusters_max, pairs_max| {
            let settings = Settings {
                clusters_max,
                pairs_max,
                ..Settings::default()
            };
            (settings.cluster_rows(), settings.pair_slots())
        };
        assert_eq!(sized(0, 0), (8, 1));
        assert_eq!(sized(1_024, 65_536), (1_024, 65_536));
        assert_eq!(sized(1_025, 65_537), (2_048, 131_072));
        assert_eq!(sized(u16::MAX, u32::MAX), (32_768, 1 << 20));
    }

    #[test]
    fn tiers_are_ordered_as_they_build_on_each_other() {
        assert!(Tier::ALL.is_sorted());
        for (word, tier) in Tier::CHOICES {
            assert_eq!(tier.to_string(), word);
        }
        for (word, mode) in Mode::CHOICES {
            assert_eq!(mode.to_string(), word);
        }
    }
}

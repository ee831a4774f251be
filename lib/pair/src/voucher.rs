//! Whether a pairing code may still be used, and by whom. Pure: the clock is an argument.

/// Life of a pairing code that nobody has used, s: a day.
pub const CODE_LIFE_S: u64 = 86_400;

/// The use of one pairing code.
///
/// Issued, it is good for the first bootstrap key that comes before it expires, and after that for
/// no other. For that key it is good until it expires or the broker has confirmed that it holds its
/// certificate, so a bootstrap that breaks off is done again; with `reissue` it is for ever (a broker
/// that keeps its certificate in memory only comes back with every start).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// Whether the key that used it may use it again.
    pub reissue: bool,
    /// Until when it can be used for the first time, unix s.
    pub expires_unix_s: u64,
    /// SHA-256 of the public key that used it.
    pub consumed_by: Option<[u8; 32]>,
    /// Whether that broker has said that it holds its certificate.
    pub is_confirmed: bool,
}

/// What a use was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The first one: the registration has changed and must be saved before anything is handed out.
    First,
    /// The same key once more.
    Again,
}

/// Why a code may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was used.
    #[error("the pairing code has been used; register the broker again for a new one")]
    Consumed,
    /// Another key used it.
    #[error("the pairing code belongs to another broker's key; register this broker on its own")]
    OtherKey,
    /// Its time is over.
    #[error("the pairing code expired at unix time {expires_unix_s}; register the broker again")]
    Expired {
        /// When.
        expires_unix_s: u64,
    },
    /// The registration was made by hand.
    #[error("the pair was set up by hand and has no pairing code; copy the broker's certificate")]
    None,
}

impl Voucher {
    /// A code that is handed out now.
    #[must_use]
    pub fn issue(reissue: bool, now_unix_s: u64) -> Voucher {
        Voucher {
            reissue,
            expires_unix_s: now_unix_s.saturating_add(CODE_LIFE_S),
            consumed_by: None,
            is_confirmed: false,
        }
    }

    /// Whether a bridge has a reason to wait for a broker with this code.
    #[must_use]
    pub fn is_usable(&self, now_unix_s: u64) -> bool {
        match self.consumed_by {
            Some(_) if self.reissue => true,
            Some(_) if self.is_confirmed => false,
            _ => now_unix_s < self.expires_unix_s,
        }
    }

    /// The bootstrap key with this hash uses it.
    ///
    /// # Errors
    /// When it may not: then nothing has changed.
    pub fn redeem(&mut self, spki_sha256: &[u8; 32], now_unix_s: u64) -> Result<Use, Refused> {
        match &self.consumed_by {
            Some(by) if by == spki_sha256 && self.is_usable(now_unix_s) => Ok(Use::Again),
            Some(_) if self.reissue => Err(Refused::OtherKey),
            Some(_) => Err(Refused::Consumed),
            None if now_unix_s >= self.expires_unix_s => Err(Refused::Expired {
                expires_unix_s: self.expires_unix_s,
            }),
            None => {
                self.consumed_by = Some(*spki_sha256);
                Ok(Use::First)
            }
        }
    }

    /// The broker that used it holds its certificate; says whether that is news.
    pub fn confirm(&mut self) -> bool {
        let is_news = self.consumed_by.is_some() && !self.is_confirmed;
        self.is_confirmed |= is_news;
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_code_is_good_once_and_for_a_day() {
        let mut voucher = Voucher::issue(false, 1_000);
        assert!(voucher.is_usable(1_000 + CODE_LIFE_S - 1));
        assert!(!voucher.is_usable(1_000 + CODE_LIFE_S));
        let late = voucher.redeem(&[1; 32], 1_000 + CODE_LIFE_S);
        assert!(matches!(late, Err(Refused::Expired { .. })));
        assert_eq!(voucher.redeem(&[1; 32], 1_001), Ok(Use::First));
        assert!(voucher.confirm() && !voucher.confirm());
        assert_eq!(voucher.redeem(&[1; 32], 1_002), Err(Refused::Consumed));
        assert_eq!(voucher.redeem(&[2; 32], 1_002), Err(Refused::Consumed));
        assert!(!voucher.is_usable(1_002));
    }

    #[test]
    fn until_it_is_confirmed_the_same_key_may_come_again_within_the_day_and_no_other() {
        let mut voucher = Voucher::issue(false, 1_000);
        assert!(!voucher.confirm(), "nobody used it");
        assert_eq!(voucher.redeem(&[1; 32], 1_001), Ok(Use::First));
        assert_eq!(voucher.redeem(&[1; 32], 1_002), Ok(Use::Again));
        assert_eq!(voucher.redeem(&[2; 32], 1_002), Err(Refused::Consumed));
        let end = 1_000 + CODE_LIFE_S;
        assert_eq!(voucher.redeem(&[1; 32], end - 1), Ok(Use::Again));
        assert_eq!(voucher.redeem(&[1; 32], end), Err(Refused::Consumed));
        assert!(voucher.is_usable(end - 1) && !voucher.is_usable(end));
    }

    #[test]
    fn with_reissue_the_same_key_comes_back_for_ever_and_no_other_does() {
        let mut voucher = Voucher::issue(true, 0);
        assert_eq!(voucher.redeem(&[1; 32], 1), Ok(Use::First));
        assert_eq!(voucher.redeem(&[1; 32], 10 * CODE_LIFE_S), Ok(Use::Again));
        assert_eq!(voucher.redeem(&[2; 32], 2), Err(Refused::OtherKey));
        assert!(voucher.is_usable(u64::MAX));
    }

    /// One bridge of several that share a store.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Load(usize),
        RedeemAndSave(usize, u8),
        ConfirmAndSave(usize),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..3usize).prop_map(Step::Load),
            (0..3usize, 0..3u8).prop_map(|(bridge, key)| Step::RedeemAndSave(bridge, key)),
            (0..3usize).prop_map(Step::ConfirmAndSave),
            (0..CODE_LIFE_S).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        // The store is a register with compare-and-swap; bridges hold copies of any age.
        #[test]
        fn of_any_number_of_bridges_and_keys_one_key_wins(reissue: bool, steps in steps()) {
            let (mut revision, mut kept) = (0, Voucher::issue(reissue, 0));
            let mut copies = [(revision, kept); 3];
            let (mut now, mut winners, mut confirmed) = (0, Vec::new(), None);
            for step in steps {
                match step {
                    Step::Wait(seconds) => now += seconds,
                    Step::Load(bridge) => copies[bridge] = (revision, kept),
                    Step::ConfirmAndSave(bridge) => {
                        let (seen, mut copy) = copies[bridge];
                        if copy.confirm() && seen == revision {
                            revision += 1;
                            kept = copy;
                            confirmed = Some(winners.len());
                        }
                    }
                    Step::RedeemAndSave(bridge, key) => {
                        let (seen, mut copy) = copies[bridge];
                        match copy.redeem(&[key; 32], now) {
                            Ok(Use::First) if seen == revision => {
                                revision += 1;
                                kept = copy;
                                winners.push((key, now));
                            }
                            // The swap failed: nothing was handed out.
                            Ok(Use::First) | Err(_) => {}
                            Ok(Use::Again) => winners.push((key, now)),
                        }
                    }
                }
            }
            if let Some((first, at)) = winners.first() {
                prop_assert!(*at < CODE_LIFE_S, "used after its end");
                prop_assert!(winners.iter().all(|(key, _)| key == first), "two keys won");
                prop_assert_eq!(kept.consumed_by, Some([*first; 32]));
            }
            prop_assert!(reissue || winners.iter().all(|(_, at)| *at < CODE_LIFE_S));
            // A copy from before the confirmation hands out to the same key once more.
            prop_assert!(confirmed.is_none_or(|seen| seen > 0), "confirmed before it was used");
        }
    }
}

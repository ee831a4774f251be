//! Finds the owner of a token by its digest, with equal work for unknown and wrong (D-14).

use alloc::sync::Arc;
use alloc::vec::Vec;

use subtle::ConstantTimeEq;

use super::Digest;
use crate::close::CloseReason;
use crate::id::ClusterId;

/// Whose token a digest belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenEntry {
    /// SHA-256 of the token.
    pub digest: Digest,
    /// The cluster it opens.
    pub cluster: ClusterId,
    /// Public id of the token.
    pub token_id: Arc<str>,
    /// End of its life, wall clock ms; `None` = no end.
    pub not_after_unix_ms: Option<u64>,
}

/// Every live digest of a table, ordered by its first eight bytes. SHA-256 output is uniform, so
/// two entries with equal first bytes are a curiosity, not a cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenIndex {
    prefixes: Vec<u64>,
    entries: Vec<TokenEntry>,
}

/// Why a digest opens nothing. Peers are told the same for both.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// No cluster has this token.
    #[error("the token is not known")]
    Unknown,
    /// The token's life is over.
    #[error("token {token_id} of {cluster} expired at {not_after_unix_ms} ms")]
    Expired {
        /// Its cluster.
        cluster: ClusterId,
        /// Its public id.
        token_id: Arc<str>,
        /// When it ended, wall clock ms.
        not_after_unix_ms: u64,
    },
}

/// Two clusters cannot share a token: it could not say which of them an agent belongs to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("clusters {first} and {second} have the same token; give each its own")]
pub struct IndexError {
    /// One of the two.
    pub first: ClusterId,
    /// The other.
    pub second: ClusterId,
}

impl TokenIndex {
    /// Sorts the entries. The same digest twice for one cluster is kept once, with the longer life.
    pub fn build(entries: impl IntoIterator<Item = TokenEntry>) -> Result<Self, IndexError> {
        let mut entries: Vec<TokenEntry> = entries.into_iter().collect();
        let life = |entry: &TokenEntry| entry.not_after_unix_ms.unwrap_or(u64::MAX);
        entries.sort_by(|a, b| (a.digest.0, life(b)).cmp(&(b.digest.0, life(a))));
        for pair in entries.windows(2) {
            if pair[0].digest == pair[1].digest && pair[0].cluster != pair[1].cluster {
                let (first, second) = (pair[0].cluster.clone(), pair[1].cluster.clone());
                return Err(IndexError { first, second });
            }
        }
        entries.dedup_by(|later, first| later.digest == first.digest);
        let prefixes = entries.iter().map(|entry| prefix(&entry.digest)).collect();
        Ok(TokenIndex { prefixes, entries })
    }

    /// This one with `entries` in place of all entries of the clusters that `left` names.
    pub fn with(
        &self,
        left: impl Fn(&ClusterId) -> bool,
        entries: impl IntoIterator<Item = TokenEntry>,
    ) -> Result<Self, IndexError> {
        let stays = self.entries.iter().filter(|entry| !left(&entry.cluster));
        // Two sorted runs, which the sort merges.
        Self::build(stays.cloned().chain(entries))
    }

    /// The entry of a presented token's digest. Known and unknown digests cost the same search and
    /// at least one comparison in constant time.
    pub fn find(&self, presented: &Digest, unix_ms: u64) -> Result<&TokenEntry, TokenRefusal> {
        let wanted = prefix(presented);
        let start = self.prefixes.partition_point(|prefix| *prefix < wanted);
        // A miss compares with a neighbour, so that its work does not show.
        let first = start.min(self.entries.len().saturating_sub(1));
        let mut found = None;
        for (place, entry) in self.entries.iter().enumerate().skip(first) {
            if bool::from(entry.digest.ct_eq(presented)) {
                found = Some(entry);
            }
            if self.prefixes.get(place + 1) != Some(&wanted) {
                break;
            }
        }
        let entry = found.ok_or(TokenRefusal::Unknown)?;
        match entry.not_after_unix_ms {
            Some(not_after_unix_ms) if unix_ms >= not_after_unix_ms => Err(TokenRefusal::Expired {
                cluster: entry.cluster.clone(),
                token_id: entry.token_id.clone(),
                not_after_unix_ms,
            }),
            _ => Ok(entry),
        }
    }

    /// Tokens known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no token is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn prefix(digest: &Digest) -> u64 {
    digest
        .0
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl TokenRefusal {
    /// For the operator's log; peers get [`CloseReason::for_stranger`] of it.
    pub fn close_reason(&self) -> CloseReason {
        match self {
            TokenRefusal::Unknown => CloseReason::Unauthenticated,
            TokenRefusal::Expired { .. } => CloseReason::TokenExpired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(first: u8, last: u8, cluster: &str, not_after_unix_ms: Option<u64>) -> TokenEntry {
        let mut digest = [first; 32];
        digest[31] = last;
        TokenEntry {
            digest: Digest(digest),
            cluster: cluster.parse().unwrap(),
            token_id: "id".into(),
            not_after_unix_ms,
        }
    }

    #[test]
    fn finds_each_of_several_with_one_prefix_and_nothing_else() {
        let entries = [
            entry(1, 1, "a", None),
            entry(1, 2, "b", None),
            entry(9, 0, "c", Some(50)),
        ];
        let index = TokenIndex::build(entries.clone()).unwrap();
        assert_eq!(index.len(), 3);
        for entry in &entries {
            assert_eq!(index.find(&entry.digest, 49), Ok(entry));
        }
        for absent in [
            entry(0, 0, "a", None),
            entry(1, 3, "a", None),
            entry(255, 0, "a", None),
        ] {
            assert_eq!(index.find(&absent.digest, 0), Err(TokenRefusal::Unknown));
        }
        let late = index.find(&entries[2].digest, 50).unwrap_err();
        assert_eq!(late.close_reason(), CloseReason::TokenExpired);
        assert_eq!(
            late.close_reason().for_stranger(),
            CloseReason::Unauthenticated
        );
    }

    #[test]
    fn empty_index_refuses() {
        let index = TokenIndex::default();
        assert!(index.is_empty());
        assert_eq!(index.find(&Digest([0; 32]), 0), Err(TokenRefusal::Unknown));
    }

    #[test]
    fn a_token_belongs_to_one_cluster() {
        let shared = TokenIndex::build([entry(1, 1, "a", None), entry(1, 1, "b", None)]);
        assert!(shared.is_err());
        let twice = TokenIndex::build([entry(1, 1, "a", Some(5)), entry(1, 1, "a", None)]).unwrap();
        assert_eq!(twice.len(), 1);
        assert!(
            twice.find(&entry(1, 1, "a", None).digest, 99).is_ok(),
            "the longer life counts"
        );
    }

    proptest! {
        /// Tokens of a cluster are of its own number, so that none is another's too.
        #[test]
        fn changed_clusters_leave_the_index_as_if_built_anew(
            steps in proptest::collection::vec((0u8..5, proptest::collection::vec(0u8..9, 0..6)), 1..12),
        ) {
            let name = |cluster: u8| format!("c{cluster}");
            let mut clusters = alloc::collections::BTreeMap::new();
            let mut index = TokenIndex::default();
            for (cluster, tokens) in steps {
                let entries: Vec<_> = tokens.iter().map(|token| entry(*token, cluster, &name(cluster), None)).collect();
                clusters.insert(cluster, entries.clone());
                index = index.with(|id| id.as_str() == name(cluster), entries).unwrap();
                let all = clusters.values().flatten().cloned();
                prop_assert_eq!(&index, &TokenIndex::build(all).unwrap());
            }
            let (_, taken) = clusters.pop_first().unwrap();
            for mut stolen in taken {
                stolen.cluster = "thief".parse().unwrap();
                prop_assert!(index.with(|_| false, [stolen]).is_err());
            }
        }

        #[test]
        fn agrees_with_a_plain_search(
            firsts in proptest::collection::vec((0u8..4, 0u8..4), 0..20),
            asked in (0u8..5, 0u8..5),
        ) {
            let entries: Vec<_> = firsts.iter().map(|(a, b)| entry(*a, *b, "c", None)).collect();
            let index = TokenIndex::build(entries.clone()).unwrap();
            let asked = entry(asked.0, asked.1, "c", None);
            let known = entries.iter().any(|entry| entry.digest == asked.digest);
            prop_assert_eq!(index.find(&asked.digest, 0).is_ok(), known);
        }
    }
}

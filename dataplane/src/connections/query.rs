//! What may be asked of the list of connections.

use std::time::Instant;

use culvert_observe::Observer;

use super::Candidate;
use crate::flow::lives::Flow;

/// Connections listed when the caller names no number, and at most.
const LIST_DEFAULT: usize = 20;
const LIST_MAX: usize = 1000;
/// Longest query that is looked at.
const QUERY_BYTES_MAX: usize = 1024;
/// Legs of relayed connections.
const LEGS: [&str; 2] = ["client", "data"];

/// What was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Query {
    pub cluster: Option<String>,
    pub leg: Option<String>,
    pub sort: Sort,
    pub limit: usize,
}

/// What stands first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    Age,
    Bytes,
    Rate,
    Idle,
    Residence,
    Rtt,
    Retrans,
    Unsent,
}

const SORTS: [(&str, Sort); 8] = [
    ("age", Sort::Age),
    ("bytes", Sort::Bytes),
    ("rate", Sort::Rate),
    ("idle", Sort::Idle),
    ("residence", Sort::Residence),
    ("rtt", Sort::Rtt),
    ("retrans", Sort::Retrans),
    ("unsent", Sort::Unsent),
];

impl Query {
    /// Reads the part of a URL behind `?`.
    ///
    /// # Errors
    /// What was seen, and what may be asked.
    pub fn parse(query: &str) -> Result<Self, String> {
        if query.len() > QUERY_BYTES_MAX {
            return Err(format!(
                "the query has {} bytes; {QUERY_BYTES_MAX} are read",
                query.len()
            ));
        }
        let mut asked = Self {
            cluster: None,
            leg: None,
            sort: Sort::Rate,
            limit: LIST_DEFAULT,
        };
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if seen.contains(&key) {
                return Err(format!("{key:?} stands twice; name it once"));
            }
            seen.push(key);
            asked.take(key, value)?;
        }
        Ok(asked)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "cluster" => self.cluster = Some(value.to_owned()).filter(|name| !name.is_empty()),
            "leg" if LEGS.contains(&value) => self.leg = Some(value.to_owned()),
            "leg" => return Err(format!("leg {value:?} is none of {}", LEGS.join(", "))),
            "sort" => {
                let found = SORTS.iter().find(|(word, _)| *word == value);
                let words = SORTS.map(|(word, _)| word).join(", ");
                let (_, sort) =
                    found.ok_or_else(|| format!("sort {value:?} is none of {words}"))?;
                self.sort = *sort;
            }
            "limit" => {
                let limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=LIST_MAX).contains(limit));
                self.limit = limit
                    .ok_or_else(|| format!("limit {value:?} is no number from 1 to {LIST_MAX}"))?;
            }
            _ => {
                return Err(format!("{key:?} is none of cluster, leg, sort, limit"));
            }
        }
        Ok(())
    }

    /// Whether this one is asked for.
    pub fn wants(&self, flow: &Flow) -> bool {
        let cluster = flow.cluster.state.id.as_str();
        self.cluster.as_ref().is_none_or(|wanted| wanted == cluster)
    }
}

impl Sort {
    /// Whether only the sockets can tell.
    pub fn reads_sockets(self) -> bool {
        matches!(self, Self::Rtt | Self::Retrans | Self::Unsent)
    }

    /// What a connection is sorted by; the highest first.
    pub fn key(self, observer: &Observer, candidate: &Candidate) -> u64 {
        let flow = &candidate.flow;
        let legs = || candidate.read.iter().flat_map(|read| &read.legs).flatten();
        let millis =
            |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        match self {
            Self::Age => millis(flow.began),
            Self::Idle => millis(flow.pace().moved),
            Self::Bytes => flow.shown().map_or(0, |shown| shown.bytes().iter().sum()),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "rates are far below the limits, and not negative"
            )]
            Self::Rate => flow.pace().rates.iter().sum::<f64>() as u64,
            Self::Residence => {
                let slot = flow
                    .shown()
                    .and_then(|shown| *shown.pair.as_ref()?.1.lock());
                let residence = slot.and_then(|slot| observer.residence(slot));
                let p99s = residence.into_iter().flatten().filter_map(|it| it.p99_us);
                p99s.max().unwrap_or(0)
            }
            Self::Rtt => legs()
                .map(|leg| leg.totals.rtt_us.into())
                .max()
                .unwrap_or(0),
            Self::Retrans => legs().map(|leg| u64::from(leg.totals.retransmitted)).sum(),
            Self::Unsent => legs().map(|leg| u64::from(leg.totals.bytes_unsent)).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read() {
        let asked = Query::parse("cluster=eu-1&leg=data&sort=retrans&limit=1000").unwrap();
        let cluster = Some("eu-1".to_owned());
        assert_eq!((asked.cluster, asked.limit), (cluster, 1000));
        assert_eq!(
            (asked.leg.as_deref(), asked.sort),
            (Some("data"), Sort::Retrans)
        );
        let all = Query::parse("").unwrap();
        assert_eq!((all.cluster, all.limit, all.sort), (None, 20, Sort::Rate));
        assert_eq!(Query::parse("cluster=").unwrap().cluster, None);
    }

    #[test]
    fn what_is_absurd_is_named() {
        let long = format!("cluster={}", "x".repeat(QUERY_BYTES_MAX));
        for (query, part) in [
            ("limit=0", "from 1 to 1000"),
            ("limit=1001", "from 1 to 1000"),
            ("limit=-1", "from 1 to 1000"),
            ("limit=99999999999999999999", "from 1 to 1000"),
            ("limit", "from 1 to 1000"),
            ("sort=name", "age, bytes"),
            ("leg=carrier", "client, data"),
            ("limit=1&limit=2", "stands twice"),
            ("peer=10.0.0.1", "none of cluster"),
            (long.as_str(), "are read"),
        ] {
            let why = Query::parse(query).unwrap_err();
            assert!(why.contains(part), "{query}: {why}");
        }
    }
}

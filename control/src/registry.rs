//! What becomes of a cluster: pure decisions. Time and digests are arguments;
//! the caller stores and publishes the result.

pub mod file;
pub mod personal;
pub mod routes;

use culvert_proto::id::ClusterId;
use culvert_proto::limits::{
    PERSONAL_TOKENS_PER_CLUSTER_MAX, ROUTES_PER_CLUSTER_MAX, TOKENS_PER_CLUSTER_MAX as TOKENS_MAX,
};
use culvert_proto::token::Digest;

use crate::cluster::{Cluster, Spec, Token};

/// A token that was just minted, without its text.
pub struct NewToken {
    /// The part that may be shown.
    pub id: String,
    /// SHA-256 of the text.
    pub digest: Digest,
}

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Fields that break their rule, as `(field, sentence)`.
    #[error("{} field(s) break their rule", .0.len())]
    Spec(Vec<(String, String)>),
    /// A further token would exceed the limit.
    #[error("cluster {0} has {TOKENS_MAX} live tokens already")]
    TooManyTokens(ClusterId),
    /// No live token has this id.
    #[error("cluster {0} has no token {1}")]
    NoToken(ClusterId, String),
    /// The token does not wait for delivery.
    #[error("cluster {0} has no such token waiting for delivery")]
    NotPending(ClusterId),
    /// A further route would exceed the limit.
    #[error("cluster {0} has {ROUTES_PER_CLUSTER_MAX} routes already")]
    TooManyRoutes(ClusterId),
    /// Another route listens there, or for this name.
    #[error("{wanted} collides with {held}, route {route} of cluster {cluster}")]
    RouteTaken {
        /// What the new one listens for.
        wanted: String,
        /// What the other listens for.
        held: String,
        /// Whose the other is.
        cluster: ClusterId,
        /// The other's id.
        route: String,
    },
    /// No route has this id.
    #[error("cluster {0} has no route {1}")]
    NoRoute(ClusterId, String),
    /// A further personal token would exceed the limit.
    #[error("{PERSONAL_TOKENS_PER_CLUSTER_MAX} personal tokens reach cluster {0} already")]
    TooManyPersonalTokens(ClusterId),
    /// No live personal token has this id.
    #[error("there is no personal token {0}")]
    NoPersonalToken(String),
}

/// A new cluster, without a token.
///
/// # Errors
/// [`Refused::Spec`].
pub fn create(id: ClusterId, spec: Spec, now_ms: u64) -> Result<Cluster, Refused> {
    check(&spec)?;
    Ok(Cluster {
        id,
        spec,
        epoch_floor: 0,
        tokens: Vec::new(),
        created_unix_ms: now_ms,
        updated_unix_ms: now_ms,
        last_connected_unix_ms: None,
        from_file: false,
        routes: Vec::new(),
        personal: Vec::new(),
    })
}

/// The cluster with another spec.
///
/// # Errors
/// [`Refused::Spec`].
pub fn update(cluster: &Cluster, spec: Spec, now_ms: u64) -> Result<Cluster, Refused> {
    check(&spec)?;
    Ok(Cluster {
        spec,
        updated_unix_ms: now_ms,
        ..cluster.clone()
    })
}

/// The cluster with one more token, which lives for `life_ms` or without end.
///
/// # Errors
/// [`Refused::TooManyTokens`].
pub fn add_token(
    cluster: &Cluster,
    token: NewToken,
    life_ms: Option<u64>,
    now_ms: u64,
) -> Result<Cluster, Refused> {
    let mut next = pruned(cluster, now_ms);
    if next.tokens.len() >= TOKENS_MAX {
        return Err(Refused::TooManyTokens(cluster.id.clone()));
    }
    next.tokens
        .push(token.live(now_ms, life_ms.map(|life| now_ms.saturating_add(life))));
    next.updated_unix_ms = now_ms;
    Ok(next)
}

/// The cluster with a new token; the older ones end after `overlap_ms`, at once
/// when it is 0. A token never lives longer than it would have without this.
///
/// # Errors
/// [`Refused::TooManyTokens`], when the overlaps of earlier rotations still run.
pub fn rotate(
    cluster: &Cluster,
    token: NewToken,
    overlap_ms: u64,
    now_ms: u64,
) -> Result<Cluster, Refused> {
    let mut next = pruned(cluster, now_ms);
    retire(&mut next.tokens, overlap_ms, now_ms);
    add_token(&next, token, None, now_ms)
}

/// The cluster with a new token that waits to be delivered through the tunnel.
/// The overlap of the older ones starts with [`acknowledge`].
///
/// # Errors
/// [`Refused::TooManyTokens`].
pub fn rotate_delivered(
    cluster: &Cluster,
    token: NewToken,
    overlap_ms: u64,
    now_ms: u64,
) -> Result<Cluster, Refused> {
    let sole = abandon_delivery(cluster);
    let mut next = add_token(sole.as_ref().unwrap_or(cluster), token, None, now_ms)?;
    if let Some(fresh) = next.tokens.last_mut() {
        fresh.pending_overlap_ms = Some(overlap_ms);
    }
    Ok(next)
}

/// Every agent stored the delivered token: the overlap starts now.
///
/// # Errors
/// [`Refused::NotPending`].
pub fn acknowledge(cluster: &Cluster, digest: &Digest, now_ms: u64) -> Result<Cluster, Refused> {
    let mut next = pruned(cluster, now_ms);
    let place = next.tokens.iter().position(|token| token.digest == *digest);
    let fresh = place.map(|place| next.tokens.remove(place));
    let Some((mut fresh, overlap_ms)) =
        fresh.and_then(|fresh| fresh.pending_overlap_ms.map(|overlap| (fresh, overlap)))
    else {
        return Err(Refused::NotPending(cluster.id.clone()));
    };
    retire(&mut next.tokens, overlap_ms, now_ms);
    fresh.pending_overlap_ms = None;
    next.tokens.push(fresh);
    next.updated_unix_ms = now_ms;
    Ok(next)
}

/// The cluster without a delivery; `None` when there was none. The token stays
/// live, since an agent may hold it, and so do the older ones: nobody is locked out.
#[must_use]
pub fn abandon_delivery(cluster: &Cluster) -> Option<Cluster> {
    let mut next = cluster.clone();
    let mut any = false;
    for token in &mut next.tokens {
        any |= token.pending_overlap_ms.take().is_some();
    }
    any.then_some(next)
}

/// The cluster without one of its tokens.
///
/// # Errors
/// [`Refused::NoToken`].
pub fn remove_token(cluster: &Cluster, id: &str, now_ms: u64) -> Result<Cluster, Refused> {
    let mut next = cluster.clone();
    next.tokens.retain(|token| token.id != id);
    if next.tokens.len() == cluster.tokens.len() {
        return Err(Refused::NoToken(cluster.id.clone(), id.to_owned()));
    }
    next.updated_unix_ms = now_ms;
    Ok(next)
}

/// The cluster without credentials and with a floor above every epoch it had:
/// data planes cut its sessions. `highest_epoch` is the highest one reported.
#[must_use]
pub fn revoke(cluster: &Cluster, highest_epoch: u64, now_ms: u64) -> Cluster {
    let above = cluster.epoch_floor.max(highest_epoch).saturating_add(1);
    Cluster {
        tokens: Vec::new(),
        epoch_floor: above.max(now_ms),
        updated_unix_ms: now_ms,
        ..cluster.clone()
    }
}

/// The cluster without tokens whose life is over, personal ones too; `None` when
/// there are none.
#[must_use]
pub fn expire(cluster: &Cluster, now_ms: u64) -> Option<Cluster> {
    has_expired(cluster, now_ms).then(|| {
        let mut next = pruned(cluster, now_ms);
        next.personal.retain(|personal| personal.is_live(now_ms));
        next
    })
}

/// Whether a token of it is over.
#[must_use]
pub fn has_expired(cluster: &Cluster, now_ms: u64) -> bool {
    let own = cluster.tokens.iter().any(|token| !token.is_live(now_ms));
    own || cluster
        .personal
        .iter()
        .any(|personal| !personal.is_live(now_ms))
}

fn check(spec: &Spec) -> Result<(), Refused> {
    let problems = spec.problems();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Refused::Spec(problems))
    }
}

fn pruned(cluster: &Cluster, now_ms: u64) -> Cluster {
    let mut next = cluster.clone();
    next.tokens.retain(|token| token.is_live(now_ms));
    next
}

fn retire(tokens: &mut Vec<Token>, overlap_ms: u64, now_ms: u64) {
    if overlap_ms == 0 {
        tokens.clear();
    }
    let end = now_ms.saturating_add(overlap_ms);
    for token in tokens {
        token.pending_overlap_ms = None;
        token.not_after_unix_ms = Some(token.not_after_unix_ms.map_or(end, |own| own.min(end)));
    }
}

impl Token {
    /// Whether it opens anything at `now_ms`.
    #[must_use]
    pub fn is_live(&self, now_ms: u64) -> bool {
        self.not_after_unix_ms.is_none_or(|end| now_ms < end)
    }
}

impl NewToken {
    fn live(self, now_ms: u64, not_after_unix_ms: Option<u64>) -> Token {
        Token {
            id: self.id,
            digest: self.digest,
            created_unix_ms: now_ms,
            not_after_unix_ms,
            last_used_unix_ms: None,
            pending_overlap_ms: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86_400_000;

    fn token(n: u8) -> NewToken {
        NewToken {
            id: format!("t{n}"),
            digest: Digest([n; 32]),
        }
    }

    fn cluster() -> Cluster {
        let bare = create("prod".parse().unwrap(), Spec::default(), 1_000).unwrap();
        add_token(&bare, token(0), None, 1_000).unwrap()
    }

    fn live(cluster: &Cluster, now_ms: u64) -> Vec<&str> {
        let live = cluster.tokens.iter().filter(|token| token.is_live(now_ms));
        live.map(|token| token.id.as_str()).collect()
    }

    #[test]
    fn both_tokens_live_through_the_overlap_and_one_after_it() {
        let rotated = rotate(&cluster(), token(1), DAY, 5_000).unwrap();
        assert_eq!(live(&rotated, 5_000 + DAY - 1), ["t0", "t1"]);
        assert_eq!(live(&rotated, 5_000 + DAY), ["t1"]);
        assert!(expire(&rotated, 5_000 + DAY - 1).is_none());
        assert_eq!(expire(&rotated, 5_000 + DAY).unwrap().tokens.len(), 1);
    }

    #[test]
    fn overlap_zero_ends_the_old_token_at_once() {
        let rotated = rotate(&cluster(), token(1), 0, 5_000).unwrap();
        assert_eq!(rotated.tokens.len(), 1);
        assert_eq!(live(&rotated, 5_000), ["t1"]);
    }

    #[test]
    fn a_second_rotation_never_prolongs_a_life() {
        let once = rotate(&cluster(), token(1), 1_000, 5_000).unwrap();
        let twice = rotate(&once, token(2), DAY, 5_500).unwrap();
        assert_eq!(live(&twice, 5_999), ["t0", "t1", "t2"]);
        assert_eq!(live(&twice, 6_000), ["t1", "t2"]);
    }

    #[test]
    fn the_limit_holds_and_expired_tokens_do_not_count() {
        let mut full = cluster();
        for n in 1..TOKENS_MAX {
            full = rotate(&full, token(u8::try_from(n).unwrap()), DAY, 5_000).unwrap();
        }
        assert_eq!(full.tokens.len(), TOKENS_MAX);
        let refused = rotate(&full, token(99), DAY, 5_000).err().unwrap();
        assert_eq!(refused, Refused::TooManyTokens(full.id.clone()));
        assert_eq!(rotate(&full, token(99), 0, 5_000).unwrap().tokens.len(), 1);
        assert_eq!(
            rotate(&full, token(99), DAY, 5_000 + DAY)
                .unwrap()
                .tokens
                .len(),
            2
        );
    }

    #[test]
    fn the_overlap_of_a_delivered_token_starts_with_its_acknowledgement() {
        let waiting = rotate_delivered(&cluster(), token(1), DAY, 5_000).unwrap();
        assert_eq!(live(&waiting, 5_000 + 30 * DAY), ["t0", "t1"]);
        let done = acknowledge(&waiting, &Digest([1; 32]), 9_000).unwrap();
        assert_eq!(live(&done, 9_000 + DAY - 1), ["t0", "t1"]);
        assert_eq!(live(&done, 9_000 + DAY), ["t1"]);
        assert!(acknowledge(&done, &Digest([1; 32]), 9_001).is_err());
        assert!(acknowledge(&waiting, &Digest([0; 32]), 9_001).is_err());
        let abandoned = abandon_delivery(&waiting).unwrap();
        assert_eq!(live(&abandoned, 5_000 + 30 * DAY), ["t0", "t1"]);
        assert!(acknowledge(&abandoned, &Digest([1; 32]), 9_001).is_err());
        assert!(abandon_delivery(&done).is_none());
    }

    #[test]
    fn revoke_takes_every_token_and_lifts_the_floor_above_every_epoch() {
        let revoked = revoke(&cluster(), 7_000_000, 5_000);
        assert!(revoked.tokens.is_empty());
        assert_eq!(revoked.epoch_floor, 7_000_001);
        assert_eq!(revoke(&revoked, 0, 5_000).epoch_floor, 7_000_002);
        assert_eq!(revoke(&cluster(), 0, 5_000).epoch_floor, 5_000);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Mint(Option<u64>),
        Rotate(u64),
        Deliver(u64),
        Acknowledge,
        Revoke,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            proptest::option::of(1..5_000u64).prop_map(Step::Mint),
            (0..5_000u64).prop_map(Step::Rotate),
            (0..5_000u64).prop_map(Step::Deliver),
            Just(Step::Acknowledge),
            Just(Step::Revoke),
            (0..3_000u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Any history: the limit holds, the newest token of a rotation is live,
        /// no token's life grows, and the floor only rises.
        #[test]
        fn histories_keep_the_rules(steps in proptest::collection::vec(step(), 1..60)) {
            let (mut now, mut held) = (1_000, cluster());
            for (n, step) in steps.into_iter().enumerate() {
                let fresh = NewToken {
                    id: format!("s{n}"),
                    digest: Digest([u8::try_from(n + 1).unwrap(); 32]),
                };
                let pending = held.tokens.iter().find(|t| t.pending_overlap_ms.is_some());
                let pending = pending.map(|t| t.digest);
                let is_rotation = matches!(step, Step::Rotate(_) | Step::Deliver(_));
                let next = match step {
                    Step::Mint(life) => add_token(&held, fresh, life, now),
                    Step::Rotate(overlap) => rotate(&held, fresh, overlap, now),
                    Step::Deliver(overlap) => rotate_delivered(&held, fresh, overlap, now),
                    Step::Acknowledge => match pending {
                        Some(digest) => acknowledge(&held, &digest, now),
                        None => continue,
                    },
                    Step::Revoke => Ok(revoke(&held, now + 7, now)),
                    Step::Wait(ms) => {
                        now += ms;
                        Ok(expire(&held, now).unwrap_or_else(|| held.clone()))
                    }
                };
                let Ok(next) = next else { continue };
                prop_assert!(next.tokens.len() <= TOKENS_MAX);
                prop_assert!(next.epoch_floor >= held.epoch_floor);
                if is_rotation {
                    prop_assert!(next.tokens.last().unwrap().is_live(u64::MAX - 1));
                }
                for token in &next.tokens {
                    let before = held.tokens.iter().find(|t| t.digest == token.digest);
                    if let Some(before) = before {
                        let end = |t: &Token| t.not_after_unix_ms.unwrap_or(u64::MAX);
                        prop_assert!(end(token) <= end(before));
                    }
                }
                held = next;
            }
        }
    }
}

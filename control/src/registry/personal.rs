//! What people's tokens reach: pure decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_config::clusters::text_problem;
use culvert_proto::id::ClusterId;
use culvert_proto::limits::{GRANTS_PER_TOKEN_MAX, PERSONAL_TOKENS_PER_CLUSTER_MAX as TOKENS_MAX};
use culvert_proto::update::{EVERY_SERVICE, PersonalToken, ServiceName};

use super::Refused;
use crate::cluster::{Cluster, Personal};
use crate::hub::Clusters;

/// Services by cluster.
pub type Grants = BTreeMap<ClusterId, Vec<Arc<str>>>;

/// A person's token over all clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Its id, principal, end and age; its services are those of one cluster.
    pub any: Personal,
    /// What it reaches.
    pub grants: Grants,
}

/// Reads a principal and grants of the form `CLUSTER/SERVICE`.
///
/// # Errors
/// Everything that is wrong, as field and sentence.
pub fn grants(principal: &str, written: &[String]) -> Result<Grants, Vec<(String, String)>> {
    let mut problems = Vec::new();
    let mut say = |field: String, why: String| problems.push((field, why));
    let empty = principal.is_empty().then(|| "is missing".to_owned());
    if let Some(why) = empty.or_else(|| text_problem(principal)) {
        say("principal".to_owned(), why);
    }
    if !(1..=GRANTS_PER_TOKEN_MAX).contains(&written.len()) {
        let why = format!("are {}; 1 to {GRANTS_PER_TOKEN_MAX}", written.len());
        say("grants".to_owned(), why);
    }
    let mut grants = Grants::new();
    for (place, text) in written.iter().enumerate() {
        match grant(text) {
            Ok((cluster, service)) => {
                let services = grants.entry(cluster).or_default();
                if !services.contains(&service) {
                    services.push(service);
                }
            }
            Err(why) => say(format!("grants.{place}"), why),
        }
    }
    if problems.is_empty() {
        Ok(grants)
    } else {
        Err(problems)
    }
}

fn grant(text: &str) -> Result<(ClusterId, Arc<str>), String> {
    let form = || format!("is {text:?}; wanted CLUSTER/SERVICE, or CLUSTER/* for every service");
    let (cluster, service) = text.split_once('/').ok_or_else(form)?;
    let cluster = ClusterId::new(cluster).map_err(|why| format!("{}: {why}", form()))?;
    if service != EVERY_SERVICE {
        ServiceName::new(service).map_err(|why| format!("names no {why}"))?;
    }
    Ok((cluster, service.into()))
}

/// The cluster with one more personal token.
///
/// # Errors
/// [`Refused::TooManyPersonalTokens`].
pub fn admit(cluster: &Cluster, token: PersonalToken, now_ms: u64) -> Result<Cluster, Refused> {
    let mut next = cluster.clone();
    next.personal.retain(|personal| personal.is_live(now_ms));
    if next.personal.len() >= TOKENS_MAX {
        return Err(Refused::TooManyPersonalTokens(cluster.id.clone()));
    }
    next.personal.push(Personal {
        token,
        created_unix_ms: now_ms,
    });
    next.updated_unix_ms = now_ms;
    Ok(next)
}

/// The cluster without a personal token; `None` when it has none of this id.
#[must_use]
pub fn withdraw(cluster: &Cluster, token_id: &str, now_ms: u64) -> Option<Cluster> {
    let mut next = cluster.clone();
    next.personal
        .retain(|personal| &*personal.token.id != token_id);
    next.updated_unix_ms = now_ms;
    (next.personal.len() < cluster.personal.len()).then_some(next)
}

/// Every person's token that is live, by id.
#[must_use]
pub fn people(clusters: &Clusters, now_ms: u64) -> BTreeMap<Arc<str>, Person> {
    let mut people: BTreeMap<Arc<str>, Person> = BTreeMap::new();
    for (id, cluster) in clusters {
        for personal in cluster.personal.iter().filter(|it| it.is_live(now_ms)) {
            let person = people.entry(personal.token.id.clone());
            let person = person.or_insert_with(|| Person {
                any: personal.clone(),
                grants: Grants::new(),
            });
            person
                .grants
                .insert(id.clone(), personal.token.services.clone());
        }
    }
    people
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Spec;
    use crate::registry::{create, expire};
    use culvert_proto::token::Digest;

    fn token(n: usize, not_after_unix_ms: Option<u64>) -> PersonalToken {
        PersonalToken {
            digest: Digest([7; 32]),
            id: format!("p{n}").into(),
            principal: "ana".into(),
            not_after_unix_ms,
            services: vec!["pg".into()],
        }
    }

    #[test]
    fn grants_are_read_and_all_that_is_wrong_is_named() {
        let written = |texts: &[&str]| texts.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        let read = grants("ana", &written(&["a/pg", "b/*", "a/web", "a/pg"])).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read["a"], ["pg".into(), "web".into()]);
        let wrong = grants("", &written(&["a", "A/pg", "a/PG", "*/pg", "a/pg"])).unwrap_err();
        let fields: Vec<_> = wrong.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(
            fields,
            ["principal", "grants.0", "grants.1", "grants.2", "grants.3"]
        );
        let fields = grants("a\tb", &[]).unwrap_err();
        assert_eq!(
            (fields[0].0.as_str(), fields[1].0.as_str()),
            ("principal", "grants")
        );
    }

    #[test]
    fn the_limit_holds_expired_ones_do_not_count_and_are_swept() {
        let mut full = create("a".parse().unwrap(), Spec::default(), 1).unwrap();
        for n in 0..TOKENS_MAX {
            full = admit(&full, token(n, (n == 0).then_some(100)), 1).unwrap();
        }
        let refused = admit(&full, token(999, None), 99).err();
        assert_eq!(
            refused,
            Some(Refused::TooManyPersonalTokens(full.id.clone()))
        );
        assert!(admit(&full, token(999, None), 100).is_ok());
        assert!(expire(&full, 99).is_none());
        assert_eq!(expire(&full, 100).unwrap().personal.len(), TOKENS_MAX - 1);
        assert!(withdraw(&full, "p3", 5).unwrap().personal.len() == TOKENS_MAX - 1);
        assert!(withdraw(&full, "none", 5).is_none());
        let held = Clusters::from([(full.id.clone(), Arc::new(full.clone()))]);
        assert_eq!(
            (people(&held, 99).len(), people(&held, 100).len()),
            (TOKENS_MAX, TOKENS_MAX - 1)
        );
    }
}

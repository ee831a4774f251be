//! As whom a request goes on, in the words of what stands behind the agent.

use bytes::{BufMut as _, BytesMut};

use culvert_identity::Identity;
use culvert_proto::close::CloseReason;
use culvert_proto::head::RouteKind;

use super::field;
use crate::ingress::caller::Person;
use crate::ingress::refuse::Refusal;

/// Who reads the head.
pub struct Towards<'a> {
    /// What stands behind the agent.
    pub kind: RouteKind,
    /// The agent is a Radar connector, which maps roles itself (P-18.4).
    pub is_radar: bool,
    /// The cluster.
    pub cluster: &'a str,
    /// This hub.
    pub hub_id: &'a str,
}

/// Writes who `person` is there: `Impersonate-*` towards Kubernetes, `X-Forwarded-*` elsewhere.
/// Nothing of the client's stands in the head: it was built without.
///
/// # Errors
/// When the identity cannot be said so: then nothing is sent.
pub fn write_identity(
    out: &mut BytesMut,
    person: &Person,
    towards: &Towards<'_>,
) -> Result<(), Refusal> {
    if towards.kind == RouteKind::Http {
        let prefix = format!("/c/{}", towards.cluster);
        field(out, "x-forwarded-prefix", prefix.as_bytes());
    }
    if towards.is_radar {
        return radar(out, person, towards.hub_id);
    }
    let Identity::Impersonated { user, groups, .. } = &person.identity else {
        return Ok(());
    };
    match towards.kind {
        RouteKind::Kube => {
            field(out, "impersonate-user", user.as_bytes());
            for group in groups {
                field(out, "impersonate-group", group.as_bytes());
            }
        }
        RouteKind::Http => {
            field(out, "x-forwarded-user", user.as_bytes());
            list(out, groups.iter().map(String::as_str));
        }
    }
    Ok(())
}

fn radar(out: &mut BytesMut, person: &Person, hub_id: &str) -> Result<(), Refusal> {
    let refused = |why: &str| Err(Refusal::new(CloseReason::NoIdentity, why));
    let Some(tier) = person.tier else {
        return refused("A Radar connector wants a role: grant a tier to one of their groups.");
    };
    let user = match &person.identity {
        Identity::Impersonated { user, .. } => user,
        Identity::Agent => person.who.subject(),
    };
    if user.contains(',') {
        return refused("The name holds a comma, which a list of groups cannot say.");
    }
    field(out, "x-forwarded-user", user.as_bytes());
    let role = format!("radar:{}", tier.radar_role());
    let (org, user) = (format!("radar:org:{hub_id}"), format!("radar:user:{user}"));
    list(out, [role.as_str(), &org, &user].into_iter());
    Ok(())
}

/// One line; a group with a comma would read as two, so it is left out.
fn list<'a>(out: &mut BytesMut, groups: impl Iterator<Item = &'a str>) {
    out.put_slice(b"x-forwarded-groups: ");
    for (number, group) in groups.filter(|group| !group.contains(',')).enumerate() {
        if number > 0 {
            out.put_u8(b',');
        }
        out.put_slice(group.as_bytes());
    }
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::caller::Who;
    use culvert_identity::Tier;

    fn person(user: &str, groups: &[&str], tier: Option<Tier>) -> Person {
        Person {
            who: Who::Token {
                principal: user.into(),
                id: "t1".into(),
            },
            tier,
            identity: Identity::Impersonated {
                user: user.to_owned(),
                groups: groups.iter().map(|group| (*group).to_owned()).collect(),
                tier,
            },
        }
    }

    fn said(person: &Person, kind: RouteKind, is_radar: bool) -> Option<String> {
        let towards = Towards {
            kind,
            is_radar,
            cluster: "prod",
            hub_id: "hub-a",
        };
        let mut out = BytesMut::new();
        let written = write_identity(&mut out, person, &towards);
        written.ok()?;
        Some(String::from_utf8(out.to_vec()).unwrap())
    }

    #[test]
    fn each_kind_of_target_hears_it_in_its_own_words() {
        let ana = person("ana", &["culvert-tier:write"], Some(Tier::Write));
        let kube = said(&ana, RouteKind::Kube, false).unwrap();
        let wanted = "impersonate-user: ana\r\nimpersonate-group: culvert-tier:write\r\n";
        assert_eq!(kube, wanted);
        let http = said(&ana, RouteKind::Http, false).unwrap();
        assert_eq!(
            http,
            "x-forwarded-prefix: /c/prod\r\nx-forwarded-user: ana\r\n\
             x-forwarded-groups: culvert-tier:write\r\n"
        );
        let radar = said(&ana, RouteKind::Kube, true).unwrap();
        assert_eq!(
            radar,
            "x-forwarded-user: ana\r\n\
             x-forwarded-groups: radar:member,radar:org:hub-a,radar:user:ana\r\n"
        );
        let as_agent = Person {
            identity: Identity::Agent,
            ..person("ana", &[], None)
        };
        assert_eq!(said(&as_agent, RouteKind::Kube, false).unwrap(), "");
        assert_eq!(said(&as_agent, RouteKind::Kube, true), None, "no role");
    }

    #[test]
    fn no_name_or_group_reads_as_two() {
        let sly = person("x,radar:owner", &["a", "b,admin", "c"], Some(Tier::Read));
        let http = said(&sly, RouteKind::Http, false).unwrap();
        assert!(http.ends_with("x-forwarded-groups: a,c\r\n"), "{http}");
        assert_eq!(said(&sly, RouteKind::Kube, true), None);
    }
}

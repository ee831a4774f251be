//! Who asks: a machine with its own rights, or a person as themselves.

use std::sync::Arc;

use culvert_audit::Actor;
use culvert_identity::{Identity, Session, Tier};
use culvert_proto::id::RequestId;

/// Who a request comes from, known before anything is forwarded.
pub enum Caller {
    /// Whoever reaches the internal listener.
    Machine,
    /// Somebody who signed in, or shows a personal token.
    Person(Arc<Person>),
}

/// A person whom a session or a personal token names.
pub struct Person {
    /// Who.
    pub who: Who,
    /// How much they may do in this cluster, where somebody said so.
    pub tier: Option<Tier>,
    /// As whom they act in the cluster.
    pub identity: Identity,
}

/// What shows who a person is.
#[derive(Debug, Clone)]
pub enum Who {
    /// A session cookie.
    Session(Arc<Session>),
    /// A personal token.
    Token {
        /// Whose it is.
        principal: Arc<str>,
        /// Its public id.
        id: Arc<str>,
    },
}

impl Who {
    /// The subject of the session, or the principal of the token; never empty.
    pub fn subject(&self) -> &str {
        match self {
            Self::Session(session) => &session.subject,
            Self::Token { principal, .. } => principal,
        }
    }

    /// As a policy asks for them: e-mail and groups are those that the identity provider says.
    pub fn as_asked(&self) -> culvert_identity::Person<'_> {
        let (email, groups) = match self {
            Self::Session(session) => (session.email.as_str(), session.groups.as_slice()),
            Self::Token { .. } => ("", &[][..]),
        };
        culvert_identity::Person {
            subject: self.subject(),
            email,
            groups,
        }
    }

    /// How it was shown, and who they are, for the audit log.
    pub fn for_audit(&self) -> (&'static str, Actor) {
        let transport = match self {
            Self::Session(_) => "session",
            Self::Token { .. } => "personal-token",
        };
        let person = self.as_asked();
        let actor = Actor {
            sub: person.subject.to_owned(),
            email: person.email.to_owned(),
            groups: person.groups.to_vec(),
        };
        (transport, actor)
    }
}

impl Person {
    /// Says in the log who asks.
    pub fn log(&self, request_id: RequestId) {
        let person = self.who.as_asked();
        let token = match &self.who {
            Who::Session(_) => None,
            Who::Token { id, .. } => Some(&**id),
        };
        tracing::debug!(
            %request_id, subject = person.subject, email = person.email,
            groups = person.groups.len(), tier = self.tier.map(Tier::as_str), token,
            "a person asks"
        );
    }
}

impl Caller {
    /// The person, unless it is a machine.
    pub fn person(&self) -> Option<&Person> {
        match self {
            Self::Machine => None,
            Self::Person(person) => Some(person),
        }
    }
}

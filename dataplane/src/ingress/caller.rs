//! Who asks: a machine with its own rights, or a person as themselves.

use std::sync::Arc;

use culvert_identity::{Identity, Tier};
use culvert_proto::id::RequestId;

/// Who a request comes from, known before anything is forwarded.
pub enum Caller {
    /// Whoever reaches the internal listener.
    Machine,
    /// Somebody who signed in, or shows a personal token.
    Person(Box<Person>),
}

/// A person whom a session or a personal token names.
pub struct Person {
    /// The subject of the session, or the principal of the token; never empty.
    pub subject: String,
    /// Empty where there is none.
    pub email: String,
    /// Groups, as the identity provider says.
    pub groups: Vec<String>,
    /// How much they may do in this cluster, where somebody said so.
    pub tier: Option<Tier>,
    /// What shows who they are.
    pub credential: Credential,
    /// As whom they act in the cluster.
    pub identity: Identity,
}

/// What shows who a person is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A session cookie.
    Session,
    /// A personal token, by its public id.
    Token(Arc<str>),
}

impl Person {
    /// Says in the log who asks.
    pub fn log(&self, request_id: RequestId) {
        tracing::debug!(
            %request_id, subject = self.subject, email = self.email, groups = self.groups.len(),
            tier = self.tier.map(Tier::as_str), credential = ?self.credential, "a person asks"
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

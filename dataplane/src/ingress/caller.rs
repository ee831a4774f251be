//! Who asks: a machine with its own rights, or a person as themselves.

use culvert_identity::Tier;

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
    /// How much they may do in this cluster, where its mode has tiers.
    pub tier: Option<Tier>,
    /// What shows who they are.
    pub credential: Credential,
}

/// What shows who a person is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A session cookie.
    Session,
    /// A personal token, by its public id.
    Token(std::sync::Arc<str>),
}

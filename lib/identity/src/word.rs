//! A tier as its word, in the JSON of a session.

use culvert_proto::update::Tier;
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

pub(crate) fn serialize<S: Serializer>(
    tier: &Option<Tier>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    tier.map(Tier::as_str).serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Tier>, D::Error> {
    let word = Option::<String>::deserialize(deserializer)?;
    let known = |word: String| Tier::parse(&word).ok_or(D::Error::custom("no tier"));
    word.map(known).transpose()
}

//! Agents that ask for a token, until an administrator decides (C-11, in the shape of RFC 8628).
//!
//! Pure: time and random bytes are arguments, and the hub records what comes out. The token is
//! made by the answer that delivers it; until then there is nothing to steal.

use culvert_proto::id::ClusterId;
use culvert_proto::token::Digest;

/// Requests that wait for a decision at once.
pub const PENDING_MAX: u64 = 256;
/// Those of one address, or of one /64 of IPv6.
pub const PENDING_OF_ADDRESS_MAX: u64 = 8;
/// How long a request waits, unless it is configured.
pub const LIFE_MS_DEFAULT: u64 = 15 * 60_000;
/// An approval leaves the agent at least so long to fetch its token.
pub const FETCH_MS_MIN: u64 = 60_000;
/// A request that is over is told apart from an unknown one for so long.
pub const KEPT_MS: u64 = 3_600_000;
/// Longest text that an agent says of itself, in bytes.
pub const TEXT_BYTES_MAX: usize = 128;
/// How often an agent should ask, in seconds.
pub const POLL_SECONDS: u64 = 5;

const ID_DIGITS: usize = 32;
/// Letters that make no word and are not taken for one another.
const CODE_LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// What an agent says of itself; nobody vouches for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The cluster it would like to be of; empty = none named.
    pub cluster: String,
    /// Of the agent.
    pub version: String,
    /// Name of its host.
    pub host: String,
}

/// Where a request stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody decided.
    Pending,
    /// It may fetch a token.
    Approved {
        /// Of this cluster.
        cluster: ClusterId,
        /// Who said so.
        by: String,
    },
    /// It gets none.
    Denied {
        /// Who said so.
        by: String,
    },
    /// It has fetched its token.
    Consumed {
        /// Of this cluster.
        cluster: ClusterId,
        /// Who had approved.
        by: String,
        /// The token's part that may be shown.
        token_id: String,
    },
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Names it; a caller cannot guess it.
    pub id: String,
    /// SHA-256 of the secret that the agent alone has.
    pub secret: Digest,
    /// What agent and administrator compare.
    pub code: String,
    /// What the agent says.
    pub asked: Asked,
    /// Where it asked from, as far as that is known.
    pub address: String,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Good until then, milliseconds since 1970.
    pub expires_unix_ms: u64,
    /// Where it stands.
    pub stage: Stage,
}

/// What an administrator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The agent is of this cluster.
    Approve(ClusterId),
    /// It is not to be let in.
    Deny,
}

/// What there is to answer to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ask again.
    Pending,
    /// A token of this cluster is to be made for it now.
    Approved(ClusterId),
    /// It was made and delivered.
    Consumed(ClusterId),
    /// Nobody decided in time, or the token was not fetched in time.
    Expired,
    /// An administrator refused.
    Denied,
}

/// A decision came too late, or a token was fetched already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request is {0}")]
pub struct Over(pub &'static str);

impl Asked {
    /// Checks what an agent wrote.
    ///
    /// # Errors
    /// Everything that is wrong, as field and sentence.
    pub fn new(cluster: &str, version: &str, host: &str) -> Result<Self, Vec<(String, String)>> {
        let texts = [
            ("cluster", cluster),
            ("agent_version", version),
            ("host", host),
        ];
        let problems: Vec<_> = texts
            .iter()
            .filter(|(_, text)| !is_plain(text))
            .map(|(field, _)| {
                let why = format!("wants at most {TEXT_BYTES_MAX} printable ASCII characters");
                ((*field).to_owned(), why)
            })
            .collect();
        match problems.is_empty() {
            true => Ok(Self {
                cluster: cluster.to_owned(),
                version: version.to_owned(),
                host: host.to_owned(),
            }),
            false => Err(problems),
        }
    }
}

/// ASCII alone: no text turns the direction of what stands beside it, or looks like another.
fn is_plain(text: &str) -> bool {
    text.len() <= TEXT_BYTES_MAX && text.bytes().all(|it| it == b' ' || it.is_ascii_graphic())
}

/// The code of eight random bytes: `BCDF-GHJK`.
#[must_use]
pub fn code(random: [u8; 8]) -> String {
    let mut text = String::with_capacity(9);
    for (place, byte) in random.into_iter().enumerate() {
        if place == 4 {
            text.push('-');
        }
        let letter = CODE_LETTERS[usize::from(byte) % CODE_LETTERS.len()];
        text.push(char::from(letter));
    }
    text
}

/// Whether a text can name a request.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whom an address counts as: IPv6 by its /64, which one host has whole.
#[must_use]
pub fn source(address: &str) -> String {
    match address.parse() {
        Ok(std::net::IpAddr::V6(ip)) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
        _ => address.to_owned(),
    }
}

impl ConnectRequest {
    /// What there is to answer at `now_ms`.
    #[must_use]
    pub fn standing(&self, now_ms: u64) -> Standing {
        let is_over = now_ms >= self.expires_unix_ms;
        match &self.stage {
            Stage::Consumed { cluster, .. } => Standing::Consumed(cluster.clone()),
            Stage::Denied { .. } => Standing::Denied,
            Stage::Pending | Stage::Approved { .. } if is_over => Standing::Expired,
            Stage::Pending => Standing::Pending,
            Stage::Approved { cluster, .. } => Standing::Approved(cluster.clone()),
        }
    }

    /// The request after a decision.
    ///
    /// # Errors
    /// [`Over`], when it does not wait for one. Who approved may still refuse until it is fetched.
    pub fn decide(&self, decision: Decision, by: &str, now_ms: u64) -> Result<Self, Over> {
        let by = by.to_owned();
        let mut next = self.clone();
        next.stage = match (self.standing(now_ms), decision) {
            (Standing::Pending, Decision::Approve(cluster)) => {
                let fetch_until = now_ms.saturating_add(FETCH_MS_MIN);
                next.expires_unix_ms = next.expires_unix_ms.max(fetch_until);
                Stage::Approved { cluster, by }
            }
            (Standing::Pending | Standing::Approved(_), Decision::Deny) => Stage::Denied { by },
            (standing, _) => return Err(Over(standing.as_str())),
        };
        Ok(next)
    }

    /// The request after its token was made.
    ///
    /// # Errors
    /// [`Over`], when there is none to fetch, or not any more.
    pub fn consume(&self, token_id: &str, now_ms: u64) -> Result<Self, Over> {
        let standing = self.standing(now_ms);
        let Stage::Approved { cluster, by } = &self.stage else {
            return Err(Over(standing.as_str()));
        };
        if !matches!(standing, Standing::Approved(_)) {
            return Err(Over(standing.as_str()));
        }
        let mut next = self.clone();
        next.stage = Stage::Consumed {
            cluster: cluster.clone(),
            by: by.clone(),
            token_id: token_id.to_owned(),
        };
        Ok(next)
    }
}

impl Standing {
    /// The word, for people.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved(_) => "approved",
            Self::Consumed(_) => "consumed",
            Self::Expired => "expired",
            Self::Denied => "denied",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_763_683_200_000;

    fn request() -> ConnectRequest {
        ConnectRequest {
            id: "r".to_owned(),
            secret: Digest([1; 32]),
            code: code([0; 8]),
            asked: Asked::default(),
            address: "192.0.2.1".to_owned(),
            created_unix_ms: NOW,
            expires_unix_ms: NOW + LIFE_MS_DEFAULT,
            stage: Stage::Pending,
        }
    }

    fn cluster() -> ClusterId {
        "prod".parse().unwrap()
    }

    #[test]
    fn an_approval_in_the_last_moment_leaves_time_to_fetch() {
        let late = NOW + LIFE_MS_DEFAULT - 1;
        let approved = request()
            .decide(Decision::Approve(cluster()), "root", late)
            .unwrap();
        assert_eq!(approved.expires_unix_ms, late + FETCH_MS_MIN);
        assert!(approved.consume("t", late + FETCH_MS_MIN - 1).is_ok());
        assert_eq!(
            approved.consume("t", late + FETCH_MS_MIN),
            Err(Over("expired"))
        );
        let decided = request().decide(Decision::Deny, "root", late + 1);
        assert_eq!(decided, Err(Over("expired")));
    }

    #[test]
    fn an_approval_can_be_taken_back_until_the_token_is_fetched() {
        let approve = Decision::Approve(cluster());
        let approved = request().decide(approve.clone(), "root", NOW).unwrap();
        let denied = approved.decide(Decision::Deny, "ana", NOW).unwrap();
        assert_eq!(denied.consume("t", NOW), Err(Over("denied")));
        assert_eq!(denied.decide(approve, "ana", NOW), Err(Over("denied")));
        let fetched = approved.consume("t", NOW).unwrap();
        assert_eq!(
            fetched.decide(Decision::Deny, "ana", NOW),
            Err(Over("consumed"))
        );
    }

    #[test]
    fn what_an_agent_says_is_short_and_plain() {
        assert!(Asked::new("", "", "").is_ok());
        assert!(Asked::new("prod", "0.1.0", "node 7").is_ok());
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        for wrong in ["a\nb", "\u{202e}b", "é", "\u{1b}[2J", long.as_str()] {
            let said = Asked::new(wrong, wrong, wrong).unwrap_err();
            let fields: Vec<_> = said.iter().map(|(field, _)| field.as_str()).collect();
            assert_eq!(fields, ["cluster", "agent_version", "host"], "{wrong:?}");
        }
    }

    #[test]
    fn codes_are_of_letters_that_make_no_word() {
        assert_eq!(code([0, 1, 2, 3, 4, 5, 6, 7]), "BCDF-GHJK");
        assert_eq!(code([255; 8]).len(), 9);
        for vowel in "AEIOUY01".chars() {
            assert!(!CODE_LETTERS.contains(&(vowel as u8)), "{vowel}");
        }
    }

    #[test]
    fn a_host_is_one_source_whatever_address_of_its_network_it_takes() {
        assert_eq!(source("192.0.2.1"), "192.0.2.1");
        assert_eq!(source("2001:db8:1:2:3::4"), source("2001:db8:1:2:9::1"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_eq!(source("this machine"), "this machine");
    }

    #[derive(Clone, Debug)]
    enum Happens {
        Approve,
        Deny,
        Fetch,
        Wait(u64),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            Just(Happens::Approve),
            Just(Happens::Deny),
            Just(Happens::Fetch),
            (0..LIFE_MS_DEFAULT).prop_map(Happens::Wait),
        ]
    }

    proptest! {
        /// Any history: a token is fetched once at most, only after an approval that stood, and
        /// never after a refusal or the end.
        #[test]
        fn a_token_is_fetched_once_after_an_approval_or_never(
            history in proptest::collection::vec(happens(), 1..40)
        ) {
            let (mut now, mut held, mut fetched) = (NOW, request(), 0);
            let mut stands = false;
            for next in history {
                let done = match next {
                    Happens::Approve => held.decide(Decision::Approve(cluster()), "a", now),
                    Happens::Deny => held.decide(Decision::Deny, "a", now),
                    Happens::Fetch => held.consume("t", now),
                    Happens::Wait(ms) => { now += ms; continue }
                };
                let Ok(done) = done else { continue };
                match done.stage {
                    Stage::Approved { .. } => {
                        prop_assert_eq!(held.stage, Stage::Pending);
                        stands = true;
                    }
                    Stage::Denied { .. } => stands = false,
                    Stage::Consumed { .. } => {
                        prop_assert!(stands && now < held.expires_unix_ms);
                        fetched += 1;
                    }
                    Stage::Pending => prop_assert!(false, "nothing leads back"),
                }
                held = done;
            }
            prop_assert!(fetched <= 1);
        }
    }
}

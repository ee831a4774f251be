//! One connection: from an address to the moment when the end-to-end TLS can begin.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_net::dial::Setback;
use culvert_net::introduction::{IntroduceError, Link, OuterClient, introduce};
use culvert_net::socket::set_leg_options;
use culvert_proto::pair::{ReplyCode, Role};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::CONNECT_MAX;
use super::party::Party;
use crate::metrics::PairStep;
use crate::target::Target;

/// How the other side is met.
#[derive(Clone)]
pub(super) enum Reach {
    /// A relay answers, and says when the other side is there.
    Relay { outer: Arc<OuterClient>, role: Role },
    /// The other side itself answers, and takes the connection when its first byte comes: a bridge
    /// that dials its broker.
    Called,
    /// The other side itself answers and listens at once: a broker that dials its bridge.
    Calls,
}

/// Why a connection did not meet the other side.
pub(super) struct Failed {
    pub(super) step: PairStep,
    /// What was seen and what to do.
    pub(super) text: String,
    /// How long to wait.
    pub(super) setback: Setback,
    /// Nothing is wrong: again soon.
    pub(super) again: bool,
    /// Somebody should look.
    pub(super) loud: bool,
}

impl Failed {
    fn new(step: PairStep, text: String) -> Failed {
        Failed {
            step,
            text,
            setback: Setback::Ordinary,
            again: false,
            loud: true,
        }
    }
}

impl Reach {
    /// Dials `addr` and waits until the other side is there; `waiting` hears when that begins.
    ///
    /// # Errors
    /// What was seen.
    pub(super) async fn meet(
        &self,
        place: &Target,
        addr: SocketAddr,
        party: &Party,
        waiting: impl FnOnce() + Send,
    ) -> Result<Link<TcpStream>, Failed> {
        let tcp = connect(addr).await?;
        match self {
            Reach::Relay { outer, role } => {
                let credential = party.credential().map_err(|why| {
                    let text = format!("the certificate is of no use at a relay: {why}");
                    Failed::new(PairStep::Introduce, text)
                })?;
                let introduced = introduce(tcp, outer, &place.host, *role, credential, waiting);
                Box::pin(introduced).await.map_err(|why| not_joined(&why))
            }
            Reach::Calls => Ok(Link::Plain(tcp)),
            Reach::Called => {
                waiting();
                called(&tcp).await.map_err(|why| {
                    let text = format!("the broker at {addr} ended the connection: {why}");
                    let failed = Failed::new(PairStep::Connect, text);
                    Failed {
                        loud: false,
                        ..failed
                    }
                })?;
                Ok(Link::Plain(tcp))
            }
        }
    }
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, Failed> {
    let failed = |text: String| Failed::new(PairStep::Connect, text);
    match timeout(CONNECT_MAX, TcpStream::connect(addr)).await {
        Ok(Ok(tcp)) => match set_leg_options(&tcp) {
            Ok(()) => Ok(tcp),
            Err(why) => Err(failed(format!("the connection to {addr} left: {why}"))),
        },
        Ok(Err(why)) => Err(failed(format!("no connection to {addr}: {why}"))),
        Err(_) => Err(failed(format!(
            "{addr} did not answer within {CONNECT_MAX:?}; look at the firewalls on the way"
        ))),
    }
}

fn not_joined(why: &IntroduceError) -> Failed {
    let mut failed = Failed::new(PairStep::Introduce, why.to_string());
    match why {
        IntroduceError::Refused {
            code: ReplyCode::WaitedTooLong,
            ..
        } => {
            failed.again = true;
            failed.loud = false;
        }
        IntroduceError::Refused { retry_after_s, .. } if *retry_after_s > 0 => {
            let wait = Duration::from_secs((*retry_after_s).into());
            failed.setback = Setback::RetryAfter(wait);
        }
        // It does not become right by asking.
        IntroduceError::Refused {
            code: ReplyCode::BadProof | ReplyCode::BadPreface | ReplyCode::OpenRefused,
            ..
        } => failed.setback = Setback::Refused,
        IntroduceError::Gone(_) | IntroduceError::Silent { .. } => failed.loud = false,
        _ => {}
    }
    failed
}

/// The broker begins its handshake when it has a use for the connection; until then only
/// keepalive speaks.
async fn called(tcp: &TcpStream) -> io::Result<()> {
    match tcp.peek(&mut [0]).await {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
        Err(why) => Err(why),
    }
}

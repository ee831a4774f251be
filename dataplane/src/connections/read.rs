//! A look at the sockets of connections, each by the engine thread that owns it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use culvert_net::listen::{Totals, totals};
use culvert_observe::{Observer, Stat};

use super::Candidate;

/// Engine threads have this long: a look waits for the bytes of others.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// What was seen of the two sockets of a connection; the client's first.
pub struct Read {
    pub legs: [Option<LegRead>; 2],
}

/// What the kernel knows of one socket.
pub struct LegRead {
    pub totals: Totals,
    /// What the observer's programs know of it.
    pub stat: Option<Stat>,
}

/// Looks at those that the engine relays. Who ended meanwhile, or is not the
/// engine's, is not seen.
pub async fn look(observer: &Observer, candidates: &mut [Candidate]) {
    let (tell, mut told) = mpsc::unbounded_channel();
    for (number, candidate) in candidates.iter().enumerate() {
        let pair = candidate.flow.shown().and_then(|shown| shown.pair.as_ref());
        let Some((handle, _)) = pair else {
            continue;
        };
        let (observer, tell) = (observer.clone(), tell.clone());
        handle.visit(move |sockets| {
            let legs = sockets.map(|socket| one(&observer, socket));
            let _ = tell.send((number, Read { legs }));
        });
    }
    // Ends once every look was taken or dropped.
    drop(tell);
    let collect = async {
        while let Some((number, read)) = told.recv().await {
            candidates[number].read = Some(read);
        }
    };
    let _ = timeout(LOOK_MAX, collect).await;
}

fn one(observer: &Observer, socket: BorrowedFd<'_>) -> Option<LegRead> {
    Some(LegRead {
        totals: totals(&socket).ok()?,
        stat: observer.stat(socket),
    })
}

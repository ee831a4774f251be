//! Waiters whose host is gone.

use std::time::Duration;

use culvert_net::introduction::Credential;
use culvert_proto::pair::{HELLO_BYTES, RelayHello, Role};
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rig::Rig;

/// The next word after 15 s, its user timeout of 15 s, and room for a busy host.
const FOUND_MAX: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_waiter_that_closes_leaves_at_once_and_one_that_vanishes_within_a_minute() {
    let rig = Rig::plain(&[]);
    let mut waiters = Vec::new();
    for seed in [1, 2] {
        let mut stream = rig.dial().await;
        let mut hello = [0; HELLO_BYTES];
        stream.read_exact(&mut hello).await.unwrap();
        let challenge = RelayHello::decode(&hello).unwrap().challenge;
        let credential = Credential::key([seed; 32]).unwrap();
        let preface = credential.preface(Role::Bridge, &challenge).unwrap();
        stream.write_all(&preface.encode()).await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        waiters.push(stream);
    }
    rig.until("culvert_pair_waiting", 2.0).await;
    drop(waiters.pop());
    rig.until("culvert_pair_waiting", 1.0).await;
    // From now on nothing that is sent to it reaches it, nor is it answered.
    const RETURN: u16 = 0x06;
    let drop_all = [SockFilter::new(RETURN, 0, 0, 0)];
    SockRef::from(&waiters[0]).attach_filter(&drop_all).unwrap();
    let found = tokio::time::timeout(FOUND_MAX, async {
        while rig.metric("culvert_pair_waiting").await != Some(0.0) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    found.await.expect("the vanished waiter is found");
}

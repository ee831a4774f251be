//! Audit records on their way to control.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_net::crypto;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::client::{CALL_DEADLINE, backoff, said};
use crate::generated::AuditBatch;
use crate::generated::state_client::StateClient;

/// Control has this long to take a batch.
const ACK_DEADLINE: Duration = Duration::from_secs(15);
/// Whether the link goes with a call that broke is seen within this time.
const SETTLE: Duration = Duration::from_millis(200);

/// Records that leave together.
pub struct Batch {
    /// Position behind the last one.
    pub end: u64,
    /// In order.
    pub records: Vec<Bytes>,
}

/// Records that wait for control.
pub trait Outbox: Send + Sync + 'static {
    /// A new link: what was not acknowledged leaves again.
    fn restart(&self);
    /// The next batch, once there is one and not too many travel. Cancel safe: what it
    /// gives counts as sent.
    fn next(&self) -> Pin<Box<dyn Future<Output = Batch> + Send + '_>>;
    /// Control has everything before `end` for good.
    ///
    /// # Errors
    /// When nothing was sent that ends there.
    fn acked(&self, end: u64) -> Result<(), String>;
    /// Control takes nothing now; it is asked again.
    fn refused(&self, why: &str);
}

/// Ships for as long as the link lives, whatever control says to it.
pub(crate) async fn ship(channel: Channel, outbox: Arc<dyn Outbox>) {
    let mut failures = 0;
    loop {
        let began = tokio::time::Instant::now();
        let Err(why) = call(channel.clone(), &*outbox).await;
        // With a link that is gone this ends here; the subscription says so, once.
        sleep(SETTLE).await;
        outbox.refused(&why);
        if began.elapsed() > ACK_DEADLINE {
            failures = 0;
        }
        sleep(backoff(failures, crypto::random_bytes())).await;
        failures += 1;
    }
}

async fn call(channel: Channel, outbox: &dyn Outbox) -> Result<Infallible, String> {
    outbox.restart();
    let (batches, outbound) = mpsc::channel(1);
    let mut client = StateClient::new(channel);
    let call = client.audit(tokio_stream::wrappers::ReceiverStream::new(outbound));
    let mut acks = timeout(CALL_DEADLINE, call)
        .await
        .map_err(|_| "control did not accept audit records within 5 s".to_owned())?
        .map_err(|status| said(&status))?
        .into_inner();
    let mut travel = 0_usize;
    loop {
        let next = async {
            let room = batches.reserve().await;
            let room = room.map_err(|_| "control closed the way up".to_owned())?;
            let Batch { end, records } = outbox.next().await;
            room.send(AuditBatch { end, records });
            Ok::<_, String>(())
        };
        let acked = async {
            let message = match travel {
                0 => Ok(acks.message().await),
                _ => timeout(ACK_DEADLINE, acks.message()).await,
            };
            let message = message.map_err(|_| "control took no batch within 15 s".to_owned())?;
            let ended = || "control ended the call".to_owned();
            message.map_err(|status| said(&status))?.ok_or_else(ended)
        };
        tokio::select! {
            sent = next => {
                sent?;
                travel += 1;
            }
            ack = acked => {
                outbox.acked(ack?.end)?;
                travel = travel.saturating_sub(1);
            }
        }
    }
}

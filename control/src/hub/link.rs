//! What data planes see of the hub, and what they say to it.

use bytes::Bytes;
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::update::Report;
use culvert_rpc::{Feed, LinkId, NotCertified, NotTaken};

use super::Hub;

impl culvert_rpc::Hub for Hub {
    fn feed(&self) -> &Feed {
        &self.feed
    }

    fn opened(&self, link: LinkId, peer: &str) {
        tracing::info!(peer, "data plane subscribed");
        self.metrics.subscribers.inc();
        self.fleet.lock().opened(link, peer);
    }

    fn report(&self, link: LinkId, _: Generation, report: Option<Report>) {
        let now_ms = self.now_ms();
        let mut fleet = self.fleet.lock();
        match report {
            // It has come; a report says when it is in use.
            None => {}
            Some(report) => {
                let is_news = !report.rotated.is_empty();
                fleet.report(link, report, now_ms);
                self.followed.notify_waiters();
                if is_news {
                    self.acknowledged.notify_one();
                }
            }
        }
    }

    async fn audit(&self, records: &[Bytes]) -> Result<(), NotTaken> {
        self.take_events(records).await
    }

    async fn certify(
        &self,
        cluster: Option<ClusterId>,
        csr: &[u8],
    ) -> Result<Vec<u8>, NotCertified> {
        self.sign_for(cluster, csr).await
    }

    fn closed(&self, link: LinkId) {
        self.metrics.subscribers.dec();
        self.fleet.lock().closed(link, self.now_ms());
        tracing::info!(link = link.0, "data plane left");
    }
}

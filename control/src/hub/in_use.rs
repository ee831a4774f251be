//! When a decision has arrived where it counts.

use std::time::Duration;

use super::Hub;

/// How long the answer to a change waits for data planes to use it.
const IN_USE_MAX: Duration = Duration::from_secs(1);

impl Hub {
    /// Waits until every connected data plane uses the newest state, so that a new token works when
    /// it is shown and a revoked one does not; a slow data plane delays the answer, no more.
    pub(super) async fn in_use(&self) {
        let generation = self.generation();
        let all = async {
            loop {
                let followed = self.followed.notified();
                let mut followed = std::pin::pin!(followed);
                followed.as_mut().enable();
                if !self.fleet.lock().is_behind(generation) {
                    return;
                }
                followed.await;
            }
        };
        let _ = tokio::time::timeout(IN_USE_MAX, all).await;
    }
}

//! Tells the vendor seven fields, now and then again, and takes its answer.

use std::time::Duration;

use culvert_licence::{ANSWER_BYTES_MAX, Answer, next_delay_ms, verify};
use culvert_net::crypto;
use http::{Request, header};
use tokio::time::{Instant, sleep_until};

use super::{LicenseRecord, Licensing, Server};
use crate::audit::{Actor, Cause, Entry, Outcome, Verb};
use crate::hub::Hub;

/// The time without success is put on record this often, success or not.
const RECORD: Duration = Duration::from_secs(3_600);
const DAY_MS: u64 = 86_400_000;

/// The counts of a heartbeat.
pub struct Beat {
    /// Clusters registered.
    pub clusters: u64,
    /// Rows of the audit log in 24 hours.
    pub audit_rows: u64,
    /// When control started, milliseconds since 1970.
    pub started_unix_ms: u64,
}

/// The contract's times between heartbeats; the argument says whether it is the first.
#[must_use]
pub fn schedule(is_first: bool) -> Duration {
    let random = u64::from_ne_bytes(crypto::random_bytes());
    Duration::from_millis(next_delay_ms(is_first, random))
}

impl Licensing {
    /// Counts for the next heartbeat. A store that does not answer counts as no rows.
    pub async fn beat(hub: &Hub) -> Beat {
        let since = hub.now_ms().saturating_sub(DAY_MS);
        Beat {
            clusters: hub.clusters().len() as u64,
            audit_rows: hub.audit_rows_since(since).await.unwrap_or_default(),
            started_unix_ms: hub.started_unix_ms(),
        }
    }

    /// Sends a heartbeat after each of `delays` and keeps the record. Runs until dropped.
    pub async fn run(&self, hub: &Hub, delays: impl Fn(bool) -> Duration) {
        self.keep(hub, |_, _| ()).await;
        let mut beat_at = Instant::now() + delays(true);
        loop {
            let record_at = Instant::now() + RECORD;
            match &self.server {
                Some(server) if beat_at <= record_at => {
                    sleep_until(beat_at).await;
                    self.tell(hub, server).await;
                    beat_at = Instant::now() + delays(false);
                }
                _ => {
                    sleep_until(record_at).await;
                    self.keep(hub, |_, _| ()).await;
                }
            }
        }
    }

    /// One heartbeat and what follows from its answer.
    async fn tell(&self, hub: &Hub, server: &Server) {
        let payload = self.payload(&Self::beat(hub).await, hub.now_ms()).to_json();
        let answer = ask(server, payload).await;
        self.metrics.heartbeat(answer.is_ok());
        match answer {
            Ok(answer) => {
                tracing::debug!("license server reached");
                self.take(hub, answer).await;
            }
            Err(why) => {
                tracing::warn!(%why, url = server.url, "license server not reached");
                self.state.lock().last_error = Some(why);
                self.keep(hub, |_, _| ()).await;
            }
        }
    }

    async fn take(&self, hub: &Hub, answer: Answer) {
        {
            let mut state = self.state.lock();
            state.last_error = None;
            state.latest_version = answer.latest_version;
            state.message = answer.message;
        }
        let renewed = answer
            .license
            .filter(|text| self.is_better(text, hub.now_ms()));
        if let Some(text) = renewed {
            let entry = renewal(hub.now_ms());
            let stored = self.store(hub, Some(&entry), |record, now_ms| {
                record.token = Some(text);
                record.ladder = record.ladder.succeeded(now_ms);
                record.last_success_unix_ms = Some(now_ms);
            });
            if stored.await {
                tracing::info!("renewed license stored; it is used at the next start");
                return;
            }
            hub.refused(entry).await;
        }
        self.keep(hub, |record, now_ms| {
            record.ladder = record.ladder.succeeded(now_ms);
            record.last_success_unix_ms = Some(now_ms);
        })
        .await;
    }

    /// Whether a renewed licence is believed and ends later than the stored one.
    fn is_better(&self, text: &str, now_ms: u64) -> bool {
        let now_s = now_ms / 1000;
        let renewed = match verify(text, &self.keys, now_s) {
            Ok(renewed) => renewed,
            Err(why) => {
                tracing::warn!(%why, "the license that the license server sent is not believed");
                return false;
            }
        };
        let stored = self.state.lock().record.token.clone();
        let stored = stored.and_then(|text| verify(&text, &self.keys, now_s).ok());
        stored.is_none_or(|stored| renewed.expires_unix_s > stored.expires_unix_s)
    }

    async fn keep(&self, hub: &Hub, change: impl FnOnce(&mut LicenseRecord, u64)) {
        self.store(hub, None, change).await;
    }

    /// Changes the record in memory and in the store; what the store could not take
    /// is taken with the next change.
    async fn store(
        &self,
        hub: &Hub,
        entry: Option<&Entry>,
        change: impl FnOnce(&mut LicenseRecord, u64),
    ) -> bool {
        let now_ms = hub.now_ms();
        let record = {
            let mut state = self.state.lock();
            state.record.ladder = self.ladder_at(&state, now_ms);
            change(&mut state.record, now_ms);
            state.record.clone()
        };
        self.show_metrics(now_ms);
        match hub.save_license(&record, entry).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "the license's record cannot be stored; trying again");
                false
            }
        }
    }
}

async fn ask(server: &Server, payload: String) -> Result<Answer, String> {
    let request = Request::post(&server.url)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(payload.into_bytes())
        .map_err(|why| why.to_string())?;
    let answer = server.outbound.send(request).await;
    let answer = answer.map_err(|why| why.to_string())?;
    if answer.body().len() > ANSWER_BYTES_MAX {
        return Err("the license server's answer is too long".to_owned());
    }
    Answer::read(answer.status().as_u16(), answer.body()).map_err(|why| why.to_string())
}

fn renewal(now_ms: u64) -> Entry {
    Entry {
        time_unix_ms: now_ms,
        cause: Cause {
            actor: Actor {
                sub: "license-server".to_owned(),
                email: String::new(),
                groups: Vec::new(),
            },
            request_id: String::new(),
            route: "heartbeat".to_owned(),
            transport: "https",
        },
        verb: Verb::LicenseChange,
        outcome: Outcome::Success,
        cluster: String::new(),
        name: String::new(),
        reason: String::new(),
    }
}

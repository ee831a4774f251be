//! Server-sent events of control, followed for as long as control answers.

use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use super::{ANSWER_BYTES_MAX, Api, broken, decode};
use crate::error::Result;

/// Longest event in bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// A stream that is silent for longer is dead: control beats every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);
const PAUSE: Duration = Duration::from_secs(1);

impl Api {
    /// Gives `print` the data of each event behind `last`. Comes back where it was when the
    /// stream ends; control ends each after a while.
    ///
    /// # Errors
    /// When control cannot be reached or refuses.
    pub async fn follow(
        &self,
        path: &str,
        mut last: Option<i64>,
        print: impl Fn(&Value),
    ) -> Result<()> {
        loop {
            let id = last.map(|last| ("last-event-id", last.to_string()));
            let answer = self.send(Method::GET, path, None, id).await?;
            let (head, mut body) = answer.into_parts();
            if head.status != StatusCode::OK {
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
                return decode(head.status, &body.map_err(broken)?.to_bytes()).map(drop);
            }
            let mut events = Events::default();
            while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE_MAX, body.frame()).await {
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                events.take(&data)?;
                while let Some((id, data)) = events.next() {
                    last = id.or(last);
                    print(&data);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Events as they come in pieces.
#[derive(Default)]
struct Events {
    text: String,
    half: Vec<u8>,
}

impl Events {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.half.extend_from_slice(bytes);
        // A character may be cut by the piece.
        let whole = match std::str::from_utf8(&self.half) {
            Ok(text) => text.len(),
            Err(why) => why.valid_up_to(),
        };
        let text: Vec<u8> = self.half.drain(..whole).collect();
        self.text.push_str(&String::from_utf8_lossy(&text));
        if self.text.len() > EVENT_BYTES_MAX {
            return Err(broken("an event of more than 1 MiB"));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<(Option<i64>, Value)> {
        loop {
            let end = self.text.find("\n\n")?;
            let event: String = self.text.drain(..end + 2).collect();
            let field = |name: &str| {
                let mut lines = event.lines().filter_map(|line| line.strip_prefix(name));
                lines.next().map(str::trim)
            };
            // Comments are beats.
            let data = field("data:").and_then(|data| serde_json::from_str(data).ok());
            if let Some(data) = data {
                return Some((field("id:").and_then(|id| id.parse().ok()), data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_found_in_pieces_of_any_size() {
        let text = "event: audit\nid: 7\ndata: {\"a\":\"é\"}\n\n: beat\n\nid: 8\ndata: {}\n\nid: 9";
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut seen = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                events.take(piece).expect("short");
                seen.extend(std::iter::from_fn(|| events.next()));
            }
            assert_eq!(seen, [(Some(7), json!({"a": "é"})), (Some(8), json!({}))]);
        }
    }
}

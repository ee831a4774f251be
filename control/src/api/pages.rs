//! Answers that cost the clusters something, kept for a moment for whoever sees the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

/// How long a page is kept.
const KEPT: Duration = Duration::from_secs(10);
/// Pages that are kept.
const PAGES_MAX: usize = 64;
/// Longest page that is kept, in bytes.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Pages that are made at the same time; the next one waits.
const MAKING_MAX: usize = 8;

/// Pages by who sees them.
pub struct Pages {
    kept: Mutex<HashMap<String, Page>>,
    making: Semaphore,
}

#[derive(Clone)]
struct Page {
    asked: Instant,
    made: Arc<OnceCell<(Bytes, Instant)>>,
}

impl Pages {
    /// The page of `key`: as it was made in the last 10 s, or as `make` makes it now. Who asks
    /// for the same meanwhile waits for it.
    pub(super) async fn get(&self, key: String, make: impl Future<Output = Bytes>) -> Bytes {
        let page = self.page(&key);
        let (bytes, _) = page
            .made
            .get_or_init(async || {
                // Never closed.
                let _turn = self.making.acquire().await;
                (make.await, Instant::now())
            })
            .await;
        if bytes.len() > PAGE_BYTES_MAX {
            self.kept.lock().remove(&key);
        }
        bytes.clone()
    }

    fn page(&self, key: &str) -> Page {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        let is_fresh = |page: &Page| match page.made.get() {
            Some((_, made)) => now.duration_since(*made) < KEPT,
            None => true,
        };
        if let Some(page) = kept.get(key).filter(|page| is_fresh(page)) {
            return page.clone();
        }
        kept.retain(|_, page| is_fresh(page));
        if kept.len() >= PAGES_MAX {
            let oldest = kept.iter().min_by_key(|(_, page)| page.asked);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                kept.remove(&oldest);
            }
        }
        let page = Page {
            asked: now,
            made: Arc::default(),
        };
        kept.insert(key.to_owned(), page.clone());
        page
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            making: Semaphore::new(MAKING_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn made(pages: &Pages, key: &str, text: &'static str) -> Bytes {
        pages.get(key.to_owned(), async { Bytes::from(text) }).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_is_kept_ten_seconds_for_its_own_viewers() {
        let pages = Pages::default();
        assert_eq!(made(&pages, "ann", "1").await, "1");
        assert_eq!(made(&pages, "bob", "2").await, "2");
        tokio::time::advance(KEPT - Duration::from_millis(1)).await;
        assert_eq!(made(&pages, "ann", "3").await, "1");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(made(&pages, "ann", "4").await, "4");
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_while_it_is_made_leaves_it_to_the_next() {
        let pages = Pages::default();
        let never = pages.get("ann".to_owned(), std::future::pending());
        let left = tokio::time::timeout(Duration::from_millis(5), never).await;
        assert!(left.is_err());
        assert_eq!(made(&pages, "ann", "1").await, "1");
    }

    #[tokio::test(start_paused = true)]
    async fn few_pages_are_kept_and_no_long_one() {
        let pages = Pages::default();
        for n in 0..3 * PAGES_MAX {
            made(&pages, &n.to_string(), "x").await;
        }
        assert_eq!(pages.kept.lock().len(), PAGES_MAX);
        let long = async { Bytes::from(vec![0; PAGE_BYTES_MAX + 1]) };
        pages.get("long".to_owned(), long).await;
        assert!(!pages.kept.lock().contains_key("long"));
    }
}

//! Whether a collection exists, also where this node's metadata lags behind.

use std::time::{Duration, Instant};

use flotilla_control::clock;
use flotilla_types::ShardId;
use parking_lot::Mutex;
use tokio::time::timeout_at;

use super::{Store, StoreError, deadline_ms};

/// The longest time that one question to the metadata group may take, so that callers with more time are not
/// held up by one that hangs.
const REFRESH_WITHIN: Duration = Duration::from_secs(2);

/// Questions to the metadata group, which callers share: one is asked at a time.
#[derive(Debug, Default)]
pub(super) struct Refreshes {
    /// How many were asked.
    asked: Mutex<u64>,
    /// The last one that was answered, by its number. Whoever asks holds the lock.
    answered: tokio::sync::Mutex<u64>,
}

impl Store {
    /// Whether this node's metadata has the collection. Never waits.
    #[must_use]
    pub fn knows_collection(&self, name: &str) -> bool {
        self.map().collection(name).is_some()
    }

    /// Whether the collection exists. If this node does not know it, the metadata group is asked, so that a
    /// collection that was created before the call is found.
    ///
    /// # Errors
    /// The metadata group did not answer by the deadline.
    pub async fn has_collection(&self, name: &str, deadline: Instant) -> Result<bool, StoreError> {
        if self.knows_collection(name) {
            return Ok(true);
        }
        self.refresh(deadline).await?;
        Ok(self.knows_collection(name))
    }

    /// Brings this node's metadata to at least the state of this moment. A question that was asked earlier
    /// does not answer that, but one that waits for its turn answers for all that wait with it.
    async fn refresh(&self, deadline: Instant) -> Result<(), StoreError> {
        let refreshes = &self.inner.refreshes;
        let asked_before = *refreshes.asked.lock();
        let late = StoreError::DeadlineExceeded { shard: Some(ShardId::META) };
        let Ok(mut answered) = timeout_at(deadline.into(), refreshes.answered.lock()).await else { return Err(late) };
        if *answered > asked_before {
            return Ok(());
        }
        let number = {
            let mut asked = refreshes.asked.lock();
            *asked += 1;
            *asked
        };
        let deadline_ms = deadline_ms(deadline.min(Instant::now() + REFRESH_WITHIN)).max(clock::monotonic_ms());
        let refreshed = self.inner.shards.refresh(deadline_ms).await;
        refreshed.map_err(|error| self.read_error(error, ShardId::META, deadline_ms))?;
        *answered = number;
        Ok(())
    }
}

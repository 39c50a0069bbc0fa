//! How a collection stores large values, as far as this client knows.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use flotilla_api::Collection;
use flotilla_values::Chunking;

use crate::{Client, ClientError};

/// How long it is taken as known. A collection's settings change seldom, and a cut that does not fit is refused.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Collections that are remembered at most; beyond it, none but the newest.
const COLLECTIONS_MAX: usize = 1_024;
/// No collection stores a value in objects that is not longer, bytes.
pub(super) const OBJECTS_FROM_MIN: u64 = 1_024;
/// Longer values are stored in objects unless the collection says otherwise, bytes.
const OBJECTS_FROM_DEFAULT: u64 = 4_096;

/// How to cut the values of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// Longer values than this are stored in objects, bytes.
    pub(super) objects_from: u64,
    pub(super) chunking: Chunking,
}

/// What is known of the collections, for all clones of a client. `None` for one whose values go as a whole.
#[derive(Debug, Default)]
pub(crate) struct CollectionCache(Mutex<HashMap<String, (Instant, Option<Settings>)>>);

impl CollectionCache {
    pub(super) fn get(&self, collection: &str) -> Option<Option<Settings>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(collection).filter(|(since, _)| since.elapsed() < KNOWN_FOR).map(|(_, settings)| *settings)
    }

    pub(super) fn put(&self, collection: &str, settings: Option<Settings>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= COLLECTIONS_MAX {
            known.clear();
        }
        known.insert(collection.to_owned(), (Instant::now(), settings));
    }
}

impl Client {
    /// Asks how a collection stores large values. `None` for one that does not store any, and for one that cuts them
    /// as this client does not know.
    pub(super) async fn load_settings(&self, collection: &str) -> Result<Option<Settings>, ClientError> {
        let settings = match self.collections().await {
            // The key may write records, but not list collections: the defaults, which a node refuses if they do not
            // fit.
            Err(error) if error.problem().is_some_and(|problem| problem.status == 403) => Some(Settings::DEFAULT),
            collections => {
                let found = collections?.into_iter().find(|found| found.name == collection);
                found.as_ref().and_then(Settings::of)
            }
        };
        self.collections.put(collection, settings);
        Ok(settings)
    }
}

impl Settings {
    const DEFAULT: Self = Self { objects_from: OBJECTS_FROM_DEFAULT, chunking: Chunking::AVERAGE_16_KIB };

    fn of(collection: &Collection) -> Option<Self> {
        let Collection { objects_from, chunk, .. } = collection;
        Some(Self { objects_from: (*objects_from)?.into(), chunking: chunk.as_deref()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_collections_is_bounded() {
        let cache = CollectionCache::default();
        for number in 0..=COLLECTIONS_MAX {
            cache.put(&number.to_string(), None);
        }
        assert_eq!(cache.0.lock().expect("a lock").len(), 1);
        assert_eq!(cache.get(&COLLECTIONS_MAX.to_string()), Some(None));
        assert_eq!(cache.get("0"), None);
    }
}

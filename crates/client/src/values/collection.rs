//! How a collection stores large values, as far as this client knows.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use flotilla_values::Chunking;
use reqwest::Method;
use serde::Deserialize;

use crate::{Client, ClientError, call::Call};

/// How long it is taken as known. A collection's settings change seldom, and a cut that does not fit is refused.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Collections that are remembered at most; beyond it, none but the newest.
const COLLECTIONS_MAX: usize = 1_024;
/// No collection stores a value in objects that is not longer, bytes.
pub(super) const OBJECTS_FROM_MIN: u64 = 1_024;
/// Length of a value that is stored in objects, unless the collection says otherwise, bytes.
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

/// What is read of a collection. Its text is here, not in `flotilla-api`: only what cuts values needs it.
#[derive(Deserialize)]
struct Described {
    name: String,
    objects_from: Option<u64>,
    chunk: Option<String>,
}

#[derive(Deserialize)]
struct DescribedList {
    collections: Vec<Described>,
}

impl Client {
    /// Asks how a collection stores large values. A collection that says nothing has the defaults; one that says
    /// what this client does not know gets whole values.
    pub(super) async fn load_settings(&self, collection: &str) -> Result<Option<Settings>, ClientError> {
        let described = match self.call(Call::read(Method::GET, "/v1/collections")).await {
            // The key may write records, but not list collections.
            Err(error) if error.problem().is_some_and(|problem| problem.status == 403) => None,
            answer => {
                let list: DescribedList = answer?.json()?;
                list.collections.into_iter().find(|described| described.name == collection)
            }
        };
        let (objects_from, chunk) = described.map_or((None, None), |found| (found.objects_from, found.chunk));
        let chunking = chunk.as_deref().map_or(Some(Chunking::default()), chunking);
        let objects_from = objects_from.unwrap_or(OBJECTS_FROM_DEFAULT);
        let settings = chunking.map(|chunking| Settings { objects_from, chunking });
        self.collections.put(collection, settings);
        Ok(settings)
    }
}

/// `default`, `archive`, or the lengths of chunks at least, on average and at most: `4KiB/16KiB/64KiB`.
fn chunking(text: &str) -> Option<Chunking> {
    match text {
        "default" => return Some(Chunking::default()),
        "archive" => return Some(Chunking::AVERAGE_64_KIB),
        _ => {}
    }
    let bytes = |text: &str| {
        let (number, unit) = text.split_at(text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len()));
        let unit: u32 = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            _ => return None,
        };
        number.parse::<u32>().ok()?.checked_mul(unit)
    };
    let mut lengths = text.split('/').map(bytes);
    let (min, average, max) = (lengths.next()??, lengths.next()??, lengths.next()??);
    if lengths.next().is_some() { None } else { Chunking::new(min, average, max).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_chunks_are_read_or_not_known() {
        assert_eq!(chunking("4KiB/16KiB/64KiB"), Some(Chunking::AVERAGE_16_KIB));
        assert_eq!(chunking("65536/256KiB/1MiB"), Some(Chunking::AVERAGE_256_KIB));
        assert_eq!(chunking("default"), Some(Chunking::default()));
        for unknown in ["", "4KiB/16KiB", "4KiB/16KiB/64KiB/1MiB", "4K/16K/64K", "1/2/3", "4294967295MiB/1/1"] {
            assert_eq!(chunking(unknown), None, "{unknown}");
        }
    }

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

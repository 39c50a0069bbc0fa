//! Retries of calls for a bounded time.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use flotilla_client::{Client, ClientError, PutOptions};

/// How long a call for one record is retried before the whole transfer stops.
const RETRY_FOR: Duration = Duration::from_secs(30);
/// Shortest backoff between two attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest backoff between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Retries an idempotent call until it succeeds, fails permanently, or [`RETRY_FOR`] has passed.
pub(super) async fn with_retries<T>(call: impl AsyncFn() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let started = Instant::now();
    let backoff = ExponentialBuilder::new()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .without_max_times()
        .with_jitter();
    (|| call())
        .retry(backoff)
        .sleep(tokio::time::sleep)
        .when(|error| (error.is_retryable() || error.is_outcome_unknown()) && started.elapsed() < RETRY_FOR)
        .await
}

/// Stores a value, with retries even after an attempt of unknown outcome; the record is then read first. The
/// retry is safe, because an import sets a value and two writes of the same value are as good as one.
pub(super) async fn put(
    client: &Client,
    collection: &str,
    key: &[u8],
    value: &Bytes,
    options: &PutOptions,
) -> Result<(), ClientError> {
    let outcome_unknown = Cell::new(false);
    with_retries(async || {
        if outcome_unknown.get() && has(client, collection, key, value).await? {
            return Ok(());
        }
        let put = client.put(collection, key, value.clone(), options).await;
        // Stays set: a later refusal says nothing about this attempt.
        if put.as_ref().is_err_and(ClientError::is_outcome_unknown) {
            outcome_unknown.set(true);
        }
        put.map(drop)
    })
    .await
}

/// Whether exactly this value is stored under the key.
pub(super) async fn has(client: &Client, collection: &str, key: &[u8], value: &Bytes) -> Result<bool, ClientError> {
    Ok(client.get(collection, key).await?.is_some_and(|record| record.value == *value))
}

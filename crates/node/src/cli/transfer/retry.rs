//! Retries of calls for a bounded time.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable as _};
use flotilla_client::{Client, ClientError, LocalValue, PutOptions, Transfer};

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
    value: &LocalValue,
    options: &PutOptions,
) -> Result<Transfer, ClientError> {
    let outcome_unknown = Cell::new(false);
    with_retries(async || {
        if outcome_unknown.get() && client.has_value(collection, key, value).await? {
            // What the attempt took is not known.
            return Ok(Transfer { value_bytes: value.bytes(), sent_bytes: value.bytes(), ..Transfer::default() });
        }
        let put = client.put_value(collection, key, value, options).await;
        // Stays set: a later refusal says nothing about this attempt.
        if put.as_ref().is_err_and(ClientError::is_outcome_unknown) {
            outcome_unknown.set(true);
        }
        put.map(|stored| stored.transfer)
    })
    .await
}

//! Trying again, for a while.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use flotilla_client::{Client, ClientError, PutOptions};

/// How long one record is tried before the whole transfer gives up.
const TRY_FOR: Duration = Duration::from_secs(30);
/// First and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Repeats what is harmless to repeat until it succeeds, fails for good, or [`TRY_FOR`] has passed.
pub(super) async fn patiently<T>(call: impl AsyncFn() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let started = Instant::now();
    let pauses =
        ExponentialBuilder::new().with_min_delay(PAUSES.0).with_max_delay(PAUSES.1).without_max_times().with_jitter();
    (|| call())
        .retry(pauses)
        .sleep(tokio::time::sleep)
        .when(|error| (error.is_retryable() || error.is_outcome_unknown()) && started.elapsed() < TRY_FOR)
        .await
}

/// Stores a value, also when the outcome of an attempt is not known: then the record is read first. Repeating is right
/// here because an import means "this value", not "one more write".
pub(super) async fn put(
    client: &Client,
    collection: &str,
    key: &[u8],
    value: &Bytes,
    options: &PutOptions,
) -> Result<(), ClientError> {
    let unsure = Cell::new(false);
    patiently(async || {
        if unsure.get() && has(client, collection, key, value).await? {
            return Ok(());
        }
        let put = client.put(collection, key, value.clone(), options).await;
        unsure.set(put.as_ref().is_err_and(ClientError::is_outcome_unknown));
        put.map(drop)
    })
    .await
}

/// Whether exactly this value is stored under the key.
pub(super) async fn has(client: &Client, collection: &str, key: &[u8], value: &Bytes) -> Result<bool, ClientError> {
    Ok(client.get(collection, key).await?.is_some_and(|record| record.value == *value))
}

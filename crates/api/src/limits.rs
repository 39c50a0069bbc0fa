//! Limits and header names shared by gateway, client and command line.

/// Longest key, in bytes. A key has at least one byte.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// Longest value, in bytes, where values are not stored as objects: in batches, and in clusters whose version does not
/// have large values.
pub const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest value, in bytes, where it can be stored as objects.
pub const LARGE_VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Maximum number of operations, and likewise of conditions, in one batch.
pub const BATCH_OPERATIONS_MAX: usize = 1_024;
/// Largest batch: total bytes of its decoded keys and values.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Maximum number of items in a page of a scan.
pub const SCAN_ITEMS_MAX: usize = 10_000;
/// Items in a page of a scan without `limit`.
pub const SCAN_ITEMS_DEFAULT: usize = 1_000;
/// Maximum number of shards that a request for digests may name.
pub const DIGEST_SHARDS_MAX: usize = 256;
/// Timeout of a request that specifies none, in milliseconds.
pub const TIMEOUT_MS_DEFAULT: u64 = 5_000;
/// Longest timeout that a request may specify, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 60_000;

/// Header names, in lower case.
pub mod header {
    /// Request: how long the answer may take, in milliseconds.
    pub const TIMEOUT_MS: &str = "flotilla-timeout-ms";
    /// Reply: version of the record.
    pub const VERSION: &str = "flotilla-version";
    /// Reply: hybrid time at which the record was written.
    pub const TIMESTAMP: &str = "flotilla-timestamp";
    /// Reply: id of the node whose replica answered the read.
    pub const SERVED_BY: &str = "flotilla-served-by";
    /// Reply: when the record expires, in Unix milliseconds; absent when it does not.
    pub const EXPIRES_AT_MS: &str = "flotilla-expires-at-ms";
    /// Reply: what `token=` of a later read takes, to see at least this state of the record.
    pub const TOKEN: &str = "flotilla-token";
    /// Request: the upload that holds the objects of a value that is written by its reference.
    pub const UPLOAD: &str = "flotilla-upload";
    /// Request: the media type of such a value, which its reads return as `content-type`.
    pub const CONTENT_TYPE: &str = "flotilla-content-type";
}

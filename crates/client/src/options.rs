//! Options of the client and of its calls.

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::Timestamp;

/// How to reach the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// `http://host:port` or `host:port`, in the order of preference. At least one.
    pub endpoints: Vec<String>,
    /// The client key to authenticate with, if the cluster needs one.
    pub key: Option<String>,
    /// The authority that signed the nodes' certificates (PEM), for `https` endpoints. Without one, only
    /// certificates that the system trusts are accepted.
    pub authority: Option<Vec<u8>>,
    /// How long the node may take for one call: 1 ms to 60 s.
    pub timeout: Duration,
}

impl ClientOptions {
    /// Creates options with these endpoints and a timeout of 5 s.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        let timeout = Duration::from_millis(flotilla_api::TIMEOUT_MS_DEFAULT);
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), key: None, authority: None, timeout }
    }
}

/// Conditions and expiry of a put. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Only if the record has exactly this version.
    pub if_version: Option<Timestamp>,
    /// Only if there is no such record. Not together with `if_version`.
    pub if_absent: bool,
    /// When the record expires, from now.
    pub ttl: Option<Duration>,
}

/// Which records a scan returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanOptions {
    /// Only keys that start with this.
    pub prefix: Bytes,
    /// First key, included.
    pub start: Bytes,
    /// End of the range, exclusive; empty for no bound.
    pub end: Bytes,
    /// Maximum number of records in a page: 1 to 10,000.
    pub limit: usize,
    /// The cursor of the previous page.
    pub cursor: Option<String>,
    /// Whether all pages show each shard at one moment, that of the first page. The nodes keep it for a while;
    /// then a page fails as `snapshot_expired`.
    pub snapshot: bool,
    /// Whether to return values.
    pub values: bool,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            prefix: Bytes::new(),
            start: Bytes::new(),
            end: Bytes::new(),
            limit: flotilla_api::SCAN_ITEMS_DEFAULT,
            cursor: None,
            snapshot: false,
            values: true,
        }
    }
}

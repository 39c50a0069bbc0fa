//! Options of the client and of its calls.

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::Timestamp;

/// [`ClientOptions::value_timeout`] unless another one is set.
const VALUE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

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
    /// How long storing or reading one large value may take, with all its calls and their retries. A value of
    /// 64 MiB takes nine minutes at 1 Mbit/s.
    pub value_timeout: Duration,
}

impl ClientOptions {
    /// Creates options with these endpoints, and timeouts of 5 s for a call and of 10 minutes for a large value.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        let timeout = Duration::from_millis(flotilla_api::TIMEOUT_MS_DEFAULT);
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            key: None,
            authority: None,
            timeout,
            value_timeout: VALUE_TIMEOUT_DEFAULT,
        }
    }
}

/// Conditions, expiry and media type of a put. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Only if the record has exactly this version.
    pub if_version: Option<Timestamp>,
    /// Only if there is no such record. Not together with `if_version`.
    pub if_absent: bool,
    /// When the record expires, from now.
    pub ttl: Option<Duration>,
    /// The media type of the value, which a `GET` answers as `Content-Type`: at most 255 bytes.
    pub media_type: Option<String>,
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

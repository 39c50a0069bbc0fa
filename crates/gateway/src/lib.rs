//! The layer between clients and shards: `Store`, the typed calls that every protocol makes, its admission
//! and batching, and the HTTP interface. `flotilla_control` finds the leader and forwards.

mod accept;
mod access;
mod admin;
mod budget;
mod http;
mod linger;
mod pace;
mod store;
mod tls;

pub use accept::{AcceptBackoff, AddressLimit, AddressSlot};
pub use access::{Access, Denied, Grant, KeyFacts, Keys, Right, TABLE as RIGHTS};
pub use admin::{Admin, AdminError, AdminFuture, AuditEntry, ChangeOptions};
pub use budget::{Account, CLIENT_BYTES_DEFAULT, CLIENT_BYTES_MIN, Charge, ClientBudget};
pub use flotilla_route::GatewayStart;
pub use http::{HttpConfig, HttpConfigError, serve};
pub use linger::Linger;
pub use pace::Pace;
pub use store::{
    Consistency, Counted, Found, Page, READ_KEYS_MAX, Scan, ScanSnapshot, SnapshotId, Store, StoreError, Written,
};
pub use tls::{ClientStream, Tls};

/// How client ports are guarded.
#[derive(Clone)]
pub struct Security {
    /// Who may do what.
    pub access: std::sync::Arc<Access>,
    /// TLS; `None` for clear text.
    pub tls: Option<Tls>,
}

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

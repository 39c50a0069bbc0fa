//! The layer between clients and shards: `Store`, the typed calls that every protocol makes, its admission
//! and batching, and the HTTP interface. `flotilla_control` finds the leader and forwards.

mod accept;
mod access;
mod admin;
mod http;
mod store;

pub use accept::AcceptBackoff;
pub use access::{Access, Denied, Grant, KeyFacts, Keys, Right, TABLE as RIGHTS};
pub use admin::{Admin, AdminError, AdminFuture};
pub use flotilla_route::GatewayStart;
pub use http::{HttpConfig, HttpConfigError, serve};
pub use store::{Consistency, Found, Page, READ_KEYS_MAX, Scan, Store, StoreError, Written};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

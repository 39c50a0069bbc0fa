//! The gateway: admission, forwarding and the HTTP interface.

mod accept;
mod admin;
mod http;
mod store;

pub use accept::AcceptBackoff;
pub use admin::{Admin, AdminError, AdminFuture};
pub use flotilla_route::GatewayStart;
pub use http::{HttpConfig, HttpConfigError, serve};
pub use store::{Consistency, Found, Page, READ_KEYS_MAX, Scan, Store, StoreError, Written};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

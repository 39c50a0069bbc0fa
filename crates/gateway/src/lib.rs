//! The gateway: admission, forwarding and the HTTP interface.

mod store;

pub use store::{Consistency, Found, Page, Scan, Store, StoreError, Written};

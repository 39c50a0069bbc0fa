//! A Rust client over the HTTP interface.

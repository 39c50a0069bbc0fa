//! Named places where a test build can crash, fail or wait.
//!
//! The places stand in shells only: cores are pure, and a simulator crashes them between any two effects anyway. Every place is a
//! [`Place`], so that the list is whole by construction.
//!
//! With the feature `enabled` the settings are state of the whole process, in the registry of the crate `fail`: the one exception to the
//! rule against global state, and none of it exists without the feature. Deliberately absent: any effect without the feature.

mod place;
#[cfg(feature = "enabled")]
mod settings;

use std::io;

pub use place::{Place, UnknownPlace};
#[cfg(feature = "enabled")]
pub use settings::{SettingsError, configure, watch};

/// The file in the data folder that a running node takes its settings from.
pub const FILE: &str = "failpoints";
/// The variable that a node takes its first settings from.
pub const VARIABLE: &str = "FAILPOINTS";
/// The counter that says how often each place was reached, with the label `place`.
pub const COUNTER: &str = "flotilla_failpoint_reached_total";

/// Places inside raft-engine that can be set as well: its write and its fsync fail. They are not counted.
pub const ENGINE_PLACES: &[&str] = &["log_fd::write::no_space_err", "log_fd::sync::err"];

/// Whether this build has failpoints.
#[must_use]
pub const fn is_enabled() -> bool {
    cfg!(feature = "enabled")
}

/// The process may end or wait here.
#[inline]
pub fn reached(place: Place) {
    // A place without a result cannot fail: whoever sets it so gets nothing.
    let _ = io(place);
}

/// The process may end or wait here, or this may fail.
///
/// # Errors
/// Those that were asked for.
#[cfg(feature = "enabled")]
pub fn io(place: Place) -> io::Result<()> {
    match settings::action(place).as_deref() {
        None | Some("") => Ok(()),
        Some("enospc") => Err(io::ErrorKind::StorageFull.into()),
        Some(_) => Err(io::Error::other(Injected(place))),
    }
}

/// The process may end or wait here, or this may fail.
///
/// # Errors
/// None without the feature.
#[cfg(not(feature = "enabled"))]
#[inline]
pub const fn io(_place: Place) -> io::Result<()> {
    Ok(())
}

/// A number that a test has set for this place.
#[cfg(feature = "enabled")]
#[must_use]
pub fn number(place: Place) -> Option<i64> {
    settings::action(place)?.parse().ok()
}

/// A number that a test has set for this place: none without the feature.
#[cfg(not(feature = "enabled"))]
#[inline]
#[must_use]
pub const fn number(_place: Place) -> Option<i64> {
    None
}

/// An error that was asked for.
#[cfg(feature = "enabled")]
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("injected at {0}")]
pub struct Injected(Place);

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

//! Named places where a test build can crash, fail or wait.
//!
//! Places exist only in shells: cores are pure, and the simulator crashes them between any two effects. Every
//! place is a variant of [`Place`], so the list is complete by construction.
//!
//! With the feature `enabled` the settings are global state of the process, in the registry of the crate
//! `fail`. Besides metrics and logging this is the one exception to the rule against global state.
//! Deliberately absent: any effect without the feature.

mod place;
#[cfg(feature = "enabled")]
mod settings;

use std::io;

pub use place::{Place, UnknownPlace};
#[cfg(feature = "enabled")]
pub use settings::{SettingsError, configure, watch};

/// The file in the data folder from which a running node reads its settings.
pub const FILE: &str = "failpoints";
/// The environment variable with the settings in force while there is no [`FILE`].
pub const VARIABLE: &str = "FAILPOINTS";
/// The environment variable that limits a node to the cluster versions up to this number, as an older binary
/// is. A node reads it once, when it starts.
pub const VERSION_VARIABLE: &str = "FAILPOINTS_CLUSTER_VERSION_MAX";
/// The counter of how often each place was reached, with the label `place`.
pub const COUNTER: &str = "flotilla_failpoint_reached_total";

/// Places inside raft-engine that can be set too: its write and its fsync fail. They are not counted.
pub const ENGINE_PLACES: &[&str] = &["log_fd::write::no_space_err", "log_fd::sync::err"];

/// Whether this build has failpoints.
#[must_use]
pub const fn is_enabled() -> bool {
    cfg!(feature = "enabled")
}

/// Marks a place where the process may be made to abort or wait.
#[inline]
pub fn reached(place: Place) {
    // This place has no result: an injected error has no effect.
    let _ = io(place);
}

/// Marks a place where the process may be made to abort, wait or fail.
///
/// # Errors
/// The injected error.
#[cfg(feature = "enabled")]
pub fn io(place: Place) -> io::Result<()> {
    match settings::action(place).as_deref() {
        None | Some("") => Ok(()),
        Some("enospc") => Err(io::ErrorKind::StorageFull.into()),
        Some(_) => Err(io::Error::other(Injected(place))),
    }
}

/// Marks a place where the process may be made to abort, wait or fail.
///
/// # Errors
/// None without the feature.
#[cfg(not(feature = "enabled"))]
#[inline]
pub const fn io(_place: Place) -> io::Result<()> {
    Ok(())
}

/// The number that a test has set for this place.
#[cfg(feature = "enabled")]
#[must_use]
pub fn number(place: Place) -> Option<i64> {
    settings::action(place)?.parse().ok()
}

/// The number that a test has set for this place; `None` without the feature.
#[cfg(not(feature = "enabled"))]
#[inline]
#[must_use]
pub const fn number(_place: Place) -> Option<i64> {
    None
}

/// An injected error.
#[cfg(feature = "enabled")]
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("injected at {0}")]
pub struct Injected(Place);

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

//! The metadata on a node that only follows the metadata group.
//!
//! Invariants: the state is always one that the group had; it never goes backwards; after an error other than
//! [`FeedError::Backwards`] the follower requests a snapshot.

use std::sync::Arc;

use crate::{CodecError, Feed, Increment, MetaState, apply::apply_entry};

/// A feed could not be applied. The state is unchanged; fetch again from [`MetaFollower::resume_version`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// The increments do not follow the current state.
    #[error("the feed continues from version {previous}, but this node is at {have}")]
    Gap {
        /// The current version.
        have: u64,
        /// The version the increment builds on.
        previous: u64,
    },
    /// The snapshot is older than the current state: the source lags. Try another source, or later.
    #[error("the feed offers version {offered}, but this node is at {have}")]
    Backwards {
        /// The current version.
        have: u64,
        /// The version offered.
        offered: u64,
    },
    /// The entry changed the group's state but not this one.
    #[error("entry {index} had no effect here")]
    Diverged {
        /// The entry's index.
        index: u64,
    },
    /// The feed does not parse, or needs a newer binary.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The source could not parse the query.
    #[error("the source could not parse the query")]
    Refused,
}

/// Follows the metadata group through its feed.
#[derive(Debug, Clone, Default)]
pub struct MetaFollower {
    state: Arc<MetaState>,
    start_over: bool,
}

impl MetaFollower {
    /// Starts from a cached state or from [`MetaState::default`].
    #[must_use]
    pub fn new(state: Arc<MetaState>) -> Self {
        Self { state, start_over: false }
    }

    /// The metadata as of the last applied feed.
    #[must_use]
    pub fn state(&self) -> &Arc<MetaState> {
        &self.state
    }

    /// The version for the next [`crate::MetaQuery::FeedSince`]: the current one, or zero to start over from
    /// a snapshot.
    #[must_use]
    pub fn resume_version(&self) -> u64 {
        if self.start_over { 0 } else { self.state.version() }
    }

    /// Applies a feed. Returns whether the state changed.
    pub fn apply(&mut self, feed: &Feed) -> Result<bool, FeedError> {
        let taken = match feed {
            Feed::UpToDate => return Ok(false),
            Feed::Increments(increments) => self.advance(increments),
            Feed::Snapshot(bytes) => self.replace(bytes),
            Feed::Refused => Err(FeedError::Refused),
        };
        match taken {
            Ok(state) => {
                let changed = state != *self.state;
                self.state = Arc::new(state);
                self.start_over = false;
                Ok(changed)
            }
            Err(error) => {
                // An answer that lags says nothing about the current state.
                self.start_over |= !matches!(error, FeedError::Backwards { .. });
                Err(error)
            }
        }
    }

    fn advance(&self, increments: &[Increment]) -> Result<MetaState, FeedError> {
        let mut state = MetaState::clone(&self.state);
        for increment in increments {
            if increment.previous != state.version() {
                return Err(FeedError::Gap { have: state.version(), previous: increment.previous });
            }
            apply_entry(&mut state, increment.index, increment.timestamp, &increment.commands)?;
            if state.version() != increment.index.0 || increment.index.0 <= increment.previous {
                return Err(FeedError::Diverged { index: increment.index.0 });
            }
        }
        Ok(state)
    }

    fn replace(&self, bytes: &[u8]) -> Result<MetaState, FeedError> {
        let state = MetaState::decode(bytes)?;
        let have = self.state.version();
        if state.version() < have {
            return Err(FeedError::Backwards { have, offered: state.version() });
        }
        Ok(state)
    }
}

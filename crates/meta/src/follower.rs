//! The metadata on a node that only follows the metadata group.
//!
//! Invariants: the state is always one that the group had; it never goes back; after any error the follower asks for everything.

use std::sync::Arc;

use crate::{CodecError, Feed, Increment, MetaState, apply::apply_entry};

/// A feed could not be taken. The state is unchanged; ask again with [`MetaFollower::wanted`], which starts over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// The increments do not follow the state at hand.
    #[error("the feed goes on from version {previous}, but this node is at {have}")]
    Gap {
        /// The version at hand.
        have: u64,
        /// The version the increment builds on.
        previous: u64,
    },
    /// The snapshot is older than the state at hand: the answering node lags behind. Ask another one, or later.
    #[error("the feed offers version {offered}, but this node is at {have}")]
    Backwards {
        /// The version at hand.
        have: u64,
        /// The version offered.
        offered: u64,
    },
    /// The entry changed something in the group and nothing here.
    #[error("entry {index} had no effect here")]
    Diverged {
        /// The entry's index.
        index: u64,
    },
    /// The feed does not parse, or needs a newer binary.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The query was not understood.
    #[error("the query was not understood")]
    Refused,
}

/// Follows the metadata group through its feed.
#[derive(Debug, Clone, Default)]
pub struct MetaFollower {
    state: Arc<MetaState>,
    start_over: bool,
}

impl MetaFollower {
    /// Starts from a state that was kept, or from [`MetaState::default`].
    #[must_use]
    pub fn new(state: Arc<MetaState>) -> Self {
        Self { state, start_over: false }
    }

    /// The metadata as of the last feed taken.
    #[must_use]
    pub fn state(&self) -> &Arc<MetaState> {
        &self.state
    }

    /// The version to ask with ([`crate::MetaQuery::FeedSince`]): the one at hand, or zero to start over.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        if self.start_over { 0 } else { self.state.version() }
    }

    /// Takes a feed. Returns whether the state changed.
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
                // A lagging answer says nothing about the state at hand.
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

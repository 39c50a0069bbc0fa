//! The feed by which nodes outside the metadata group follow it: the entries since their version, or a
//! snapshot.
//!
//! Invariants: increments form a chain, each naming the version it builds on, so that a follower notices
//! every gap; the ring is bounded in entries and bytes; a version that is no longer in the ring, or precedes
//! a restart, gets a snapshot.

use std::collections::VecDeque;

use bytes::Bytes;
use flotilla_types::{LogIndex, Timestamp};

use crate::{
    CodecError, MetaState,
    codec::{NUMBER_MAX, decode_versioned, encode_versioned, number},
};

/// Entries that the ring holds.
pub const FEED_INCREMENTS_MAX: usize = 1_024;
/// Bytes of commands that the ring holds.
pub const FEED_BYTES_MAX: usize = 4 << 20;
/// Bytes of commands in one answer, unless its first increment alone is larger. The follower fetches the rest
/// separately.
pub const FEED_REPLY_BYTES_MAX: usize = 1 << 20;

/// One entry that changed the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increment {
    /// The version it builds on.
    pub previous: u64,
    /// The entry's index, which is the version it leads to.
    pub index: LogIndex,
    /// The entry's timestamp.
    pub timestamp: Timestamp,
    /// Its commands, including refused ones: the follower refuses them again.
    pub commands: Vec<Bytes>,
}

impl Increment {
    fn bytes(&self) -> usize {
        self.commands.iter().map(Bytes::len).sum()
    }
}

/// The answer to a follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feed {
    /// There is nothing newer.
    UpToDate,
    /// The entries after the follower's version, oldest first; possibly not all of them.
    Increments(Vec<Increment>),
    /// The whole state, from [`MetaState::encode`].
    Snapshot(Bytes),
    /// The query did not parse.
    Refused,
}

/// A query to the metadata group. Every answer is a [`Feed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaQuery {
    /// The whole state, as [`Feed::Snapshot`]. Encoded as no bytes at all.
    State,
    /// The changes after a version; zero requests a snapshot.
    FeedSince(u64),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct QueryPb {
    #[prost(uint64, tag = "1")]
    since: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FeedPb {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(bool, tag = "1")]
    UpToDate(bool),
    #[prost(message, tag = "2")]
    Increments(IncrementsPb),
    #[prost(bytes = "bytes", tag = "3")]
    Snapshot(Bytes),
    #[prost(bool, tag = "4")]
    Refused(bool),
}

#[derive(Clone, PartialEq, prost::Message)]
struct IncrementsPb {
    #[prost(message, repeated, tag = "1")]
    increments: Vec<IncrementPb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct IncrementPb {
    #[prost(uint64, tag = "1")]
    previous: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, tag = "3")]
    timestamp: u64,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    commands: Vec<Bytes>,
}

impl MetaQuery {
    /// Encodes the query.
    #[must_use]
    pub fn encode(self) -> Bytes {
        match self {
            Self::State => Bytes::new(),
            Self::FeedSince(since) => encode_versioned(&QueryPb { since }),
        }
    }

    /// Decodes the output of [`MetaQuery::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.is_empty() {
            Ok(Self::State)
        } else {
            decode_versioned::<QueryPb>(bytes).map(|query| Self::FeedSince(query.since))
        }
    }
}

impl Feed {
    /// Encodes the feed.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let increment = |increment: &Increment| IncrementPb {
            previous: increment.previous,
            index: increment.index.0,
            timestamp: increment.timestamp.0,
            commands: increment.commands.clone(),
        };
        let kind = match self {
            Self::UpToDate => Kind::UpToDate(true),
            Self::Increments(increments) => {
                Kind::Increments(IncrementsPb { increments: increments.iter().map(increment).collect() })
            }
            Self::Snapshot(bytes) => Kind::Snapshot(bytes.clone()),
            Self::Refused => Kind::Refused(true),
        };
        encode_versioned(&FeedPb { kind: Some(kind) })
    }

    /// Decodes the output of [`Feed::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let increment = |pb: IncrementPb| {
            // A larger timestamp could overflow when the ordinals of commands are added.
            let timestamp =
                if pb.timestamp <= NUMBER_MAX { Timestamp(pb.timestamp) } else { return Err(CodecError::Malformed) };
            Ok(Increment { previous: pb.previous, index: number(pb.index)?, timestamp, commands: pb.commands })
        };
        match decode_versioned::<FeedPb>(bytes)?.kind.ok_or(CodecError::Malformed)? {
            Kind::UpToDate(_) => Ok(Self::UpToDate),
            Kind::Increments(pb) => {
                Ok(Self::Increments(pb.increments.into_iter().map(increment).collect::<Result<_, _>>()?))
            }
            Kind::Snapshot(bytes) => Ok(Self::Snapshot(bytes)),
            Kind::Refused(_) => Ok(Self::Refused),
        }
    }
}

/// The most recent entries that changed the state.
#[derive(Debug, Default)]
pub(crate) struct FeedRing {
    increments: VecDeque<Increment>,
    bytes: usize,
}

impl FeedRing {
    pub(crate) fn push(&mut self, increment: Increment) {
        self.bytes += increment.bytes();
        self.increments.push_back(increment);
        while self.increments.len() > FEED_INCREMENTS_MAX || self.bytes > FEED_BYTES_MAX {
            let Some(oldest) = self.increments.pop_front() else { break };
            self.bytes -= oldest.bytes();
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The next answer that brings a follower at `version` closer to `state`. Version zero always gets a
    /// snapshot, so that a follower that no longer trusts its state can start over.
    pub(crate) fn since(&self, version: u64, state: &MetaState) -> Feed {
        if version >= state.version() {
            return Feed::UpToDate;
        }
        let first = self.increments.partition_point(|increment| increment.previous < version);
        let follows = self.increments.get(first).is_some_and(|increment| increment.previous == version);
        if version == 0 || !follows {
            return Feed::Snapshot(state.encode());
        }
        let mut bytes = 0;
        let increments = self
            .increments
            .range(first..)
            .take_while(|increment| {
                let fits = bytes == 0 || bytes + increment.bytes() <= FEED_REPLY_BYTES_MAX;
                bytes += increment.bytes();
                fits
            })
            .cloned()
            .collect();
        Feed::Increments(increments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn increment(previous: u64, bytes: usize) -> Increment {
        let commands = vec![Bytes::from(vec![0; bytes])];
        Increment { previous, index: LogIndex(previous + 1), timestamp: Timestamp(previous), commands }
    }

    fn state_at(version: u64) -> MetaState {
        let mut state = MetaState::default();
        state.header.version = version;
        state
    }

    #[test]
    fn ring_drops_the_oldest_entries_above_its_entry_limit() {
        let mut ring = FeedRing::default();
        let total = FEED_INCREMENTS_MAX as u64 + 10;
        (0..total).for_each(|version| ring.push(increment(version, 1)));
        assert_eq!(ring.increments.len(), FEED_INCREMENTS_MAX);
        let state = state_at(total);
        assert!(matches!(ring.since(9, &state), Feed::Snapshot(_)));
        assert!(matches!(ring.since(10, &state), Feed::Increments(all) if all.len() == FEED_INCREMENTS_MAX));
    }

    #[test]
    fn ring_drops_the_oldest_entries_above_its_byte_limit_and_answers_in_parts() {
        let mut ring = FeedRing::default();
        (0..20).for_each(|version| ring.push(increment(version, FEED_BYTES_MAX / 10)));
        assert!(ring.bytes <= FEED_BYTES_MAX);
        assert_eq!(ring.increments.len(), 10);
        assert!(matches!(ring.since(10, &state_at(20)), Feed::Increments(part) if part.len() == 2));
        ring.push(increment(20, FEED_BYTES_MAX + 1));
        assert_eq!((ring.increments.len(), ring.bytes), (0, 0));
        assert!(matches!(ring.since(20, &state_at(21)), Feed::Snapshot(_)));
    }

    #[test]
    fn feeds_and_queries_round_trip() {
        let feeds = [
            Feed::UpToDate,
            Feed::Increments(vec![increment(3, 5), increment(4, 0)]),
            Feed::Snapshot(Bytes::from_static(b"state")),
            Feed::Refused,
        ];
        for feed in feeds {
            assert_eq!(Feed::decode(&feed.encode()), Ok(feed));
        }
        for query in [MetaQuery::State, MetaQuery::FeedSince(0), MetaQuery::FeedSince(u64::MAX)] {
            assert_eq!(MetaQuery::decode(&query.encode()), Ok(query));
        }
        let far = Feed::Increments(vec![Increment { timestamp: Timestamp(u64::MAX), ..increment(1, 1) }]);
        assert_eq!(Feed::decode(&far.encode()), Err(CodecError::Malformed));
    }
}

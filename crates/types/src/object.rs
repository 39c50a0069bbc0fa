//! Content-derived ids of immutable byte strings.

use std::{fmt, str::FromStr};

use crate::{LogIndex, ParseIdError, ReplicaId, Term};

/// The id of an object: the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 32]);

/// Who needs objects on a node. Objects that are not reachable from what a holder names may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// The durable checkpoint of a replica here.
    Checkpoint(ReplicaId),
    /// A replica here that is about to take over the checkpoint of another one.
    Merge(ReplicaId),
    /// A replica here that receives a snapshot.
    Receiver(ReplicaId),
    /// A snapshot that a leader here has offered to a follower.
    Offer {
        /// The leader.
        from: ReplicaId,
        /// The follower.
        to: ReplicaId,
    },
    /// An entry in the log of a replica here.
    Log {
        /// The replica.
        replica: ReplicaId,
        /// The entry.
        index: LogIndex,
        /// Its term: one that replaces it is held beside it until the log has replaced it.
        term: Term,
    },
    /// Entries that a replica here takes into its log once their objects are here.
    Parked(ReplicaId),
    /// A command that a leader here proposes once its objects are here.
    Request {
        /// The leader.
        replica: ReplicaId,
        /// Which of its commands it is.
        number: u64,
    },
    /// What somebody stores here before a command refers to it.
    Upload(u64),
    /// What is fetched here for an upload, until that holds it.
    Fetch(u64),
}

impl Holder {
    /// The replica that is damaged if an object that this holder needs is. What is fetched, offered or stored for
    /// a time, and is damaged, is fetched, offered or stored again.
    #[must_use]
    pub const fn damages(self) -> Option<ReplicaId> {
        match self {
            Self::Checkpoint(replica) | Self::Merge(replica) | Self::Log { replica, .. } => Some(replica),
            Self::Receiver(_)
            | Self::Offer { .. }
            | Self::Parked(_)
            | Self::Request { .. }
            | Self::Upload(_)
            | Self::Fetch(_) => None,
        }
    }
}

impl ObjectId {
    /// The id of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads an id from exactly 32 bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The id as bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..12])
    }
}

impl FromStr for ObjectId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        blake3::Hash::from_hex(text)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_| ParseIdError { what: "object id", text: text.to_owned() })
    }
}

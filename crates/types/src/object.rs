//! Content-derived ids of immutable byte strings.

use std::{fmt, str::FromStr};

use crate::{ParseIdError, ReplicaId};

/// The id of an object: the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 32]);

/// Who needs objects on a node. Objects that are not reachable from what a holder names may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// The durable checkpoint of a replica here.
    Checkpoint(ReplicaId),
    /// A replica here that receives a snapshot.
    Receiver(ReplicaId),
    /// A snapshot that a leader here has offered to a follower.
    Offer {
        /// The leader.
        from: ReplicaId,
        /// The follower.
        to: ReplicaId,
    },
    /// What somebody stores here before a command refers to it.
    Upload(u64),
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

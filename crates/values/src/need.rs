//! An object that a value needs, and the check that given bytes are this object.

use flotilla_types::ObjectId;

use crate::{Level, ListNode, Part, VerifyError};

/// What an object is to its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A part of the content.
    Chunk,
    /// A part of the list of chunks.
    List(Level),
}

/// An object that a value needs, and what its parent says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Need {
    /// The object.
    pub id: ObjectId,
    /// What it must be.
    pub kind: Kind,
    /// How many bytes of the value it must cover; the length of a chunk.
    pub bytes: u64,
}

impl Need {
    pub(crate) fn new(kind: Kind, part: Part) -> Self {
        Self { id: part.id, kind, bytes: part.bytes.into() }
    }

    /// Checks that these bytes are the object, and what its parent says. Returns the list if it is one.
    pub fn verify(&self, object: &[u8]) -> Result<Option<ListNode>, VerifyError> {
        let Self { id, kind, bytes } = *self;
        let found = object.len() as u64;
        let Kind::List(level) = kind else {
            if found != bytes {
                return Err(VerifyError::Length { id, found, expected: bytes });
            }
            return if ObjectId::of(object) == id { Ok(None) } else { Err(VerifyError::Mismatch(id)) };
        };
        if ObjectId::of(object) != id {
            return Err(VerifyError::Mismatch(id));
        }
        let node = ListNode::decode(object).map_err(|reason| VerifyError::Malformed { id, reason })?;
        if node.level() != level {
            return Err(VerifyError::Level { id, found: node.level() });
        }
        if node.covers() != bytes {
            return Err(VerifyError::Length { id, found: node.covers(), expected: bytes });
        }
        Ok(Some(node))
    }
}

//! An object that a value needs, and the check that given bytes are this object; needs as references.

use bytes::Bytes;
use flotilla_types::{ObjectId, ObjectRef};

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

impl From<Need> for ObjectRef {
    fn from(need: Need) -> Self {
        let height = match need.kind {
            Kind::Chunk => 0,
            Kind::List(Level::Leaf) => 1,
            Kind::List(Level::Root) => 2,
        };
        Self { id: need.id, height, bytes: need.bytes }
    }
}

/// The objects that a list needs, for whoever knows references only. Fails unless the object is the list that the
/// reference names.
pub fn list_refs(reference: &ObjectRef, object: &Bytes) -> Result<Vec<ObjectRef>, &'static str> {
    let kind = match reference.height {
        0 => Kind::Chunk,
        1 => Kind::List(Level::Leaf),
        2 => Kind::List(Level::Root),
        _ => return Err("no list is so high"),
    };
    let need = Need { id: reference.id, kind, bytes: reference.bytes };
    let list = need.verify(object).map_err(|_| "an object is not the list that it is said to be")?;
    Ok(list.iter().flat_map(|list| list.needs().map(ObjectRef::from)).collect())
}

//! The value of a record.

use std::ops::Deref;

use bytes::Bytes;
use flotilla_types::Refs;

/// The value of a record, and the objects that it needs beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Value {
    bytes: Bytes,
    refs: Refs,
}

impl Value {
    /// A value that needs these objects.
    #[must_use]
    pub fn new(bytes: impl Into<Bytes>, refs: Refs) -> Self {
        Self { bytes: bytes.into(), refs }
    }

    /// The objects that it needs.
    #[must_use]
    pub const fn refs(&self) -> &Refs {
        &self.refs
    }

    /// What readers get.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What readers get.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The memory that it takes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes.len() + size_of_val(&self.refs[..])
    }
}

impl<T: Into<Bytes>> From<T> for Value {
    fn from(bytes: T) -> Self {
        Self { bytes: bytes.into(), refs: Refs::NONE }
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

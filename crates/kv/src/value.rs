//! The value of a record: its bytes, or a reference to the objects of which it consists.

use bytes::Bytes;
use flotilla_types::Refs;
use flotilla_values::ValueRef;

/// Bytes of a media type at most.
pub const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// A value, with what the client said that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The bytes, or where they are.
    pub content: Content,
    /// The media type, as the client gave it; empty if it gave none. At most [`MEDIA_TYPE_BYTES_MAX`].
    pub media_type: Bytes,
}

/// The bytes of a value, or where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The bytes, in the record.
    Inline(Bytes),
    /// Objects, which every replica has beside the record.
    Large(ValueRef),
}

impl Value {
    /// The length of the whole value.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.content {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Large(value) => value.bytes(),
        }
    }

    /// The bytes, unless they are objects.
    #[must_use]
    pub fn inline(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Inline(bytes) => Some(bytes),
            Content::Large(_) => None,
        }
    }

    /// The bytes, or where they are.
    pub fn into_inline(self) -> Result<Bytes, ValueRef> {
        match self.content {
            Content::Inline(bytes) => Ok(bytes),
            Content::Large(value) => Err(value),
        }
    }

    /// The objects that a record with this value needs.
    #[must_use]
    pub fn refs(&self) -> Refs {
        match &self.content {
            Content::Inline(_) => Refs::NONE,
            Content::Large(value) => value.refs(),
        }
    }

    /// Whether it needs [`flotilla_types::ClusterVersion::VALUE_REFS`].
    #[must_use]
    pub fn is_extended(&self) -> bool {
        !self.media_type.is_empty() || matches!(self.content, Content::Large(_))
    }

    /// Bytes in commands, records and answers: about those of the reference, if it is one.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        let content = match &self.content {
            Content::Inline(bytes) => bytes.len(),
            Content::Large(value) => value.encoded_bytes(),
        };
        content + self.media_type.len()
    }
}

impl Default for Value {
    fn default() -> Self {
        Self::from(Bytes::new())
    }
}

impl<T: Into<Bytes>> From<T> for Value {
    fn from(bytes: T) -> Self {
        Self { content: Content::Inline(bytes.into()), media_type: Bytes::new() }
    }
}

//! Values in messages: the bytes or the encoded reference, which of both, and the media type.

use bytes::Bytes;
use flotilla_values::ValueRef;

use super::DecodeError;
use crate::{Content, MEDIA_TYPE_BYTES_MAX, Value};

const INLINE: u32 = 0;
const LARGE: u32 = 1;

/// The fields of a value: its bytes, what they are, and its media type.
pub(super) fn fields(value: &Value) -> (Bytes, u32, Bytes) {
    let media_type = value.media_type.clone();
    match &value.content {
        Content::Inline(bytes) => (bytes.clone(), INLINE, media_type),
        Content::Large(value) => (value.encode(), LARGE, media_type),
    }
}

/// The value of these fields; inline bytes are a slice of the message.
pub(super) fn value(
    what: &'static str,
    (bytes, content, media_type): (Bytes, u32, Bytes),
) -> Result<Value, DecodeError> {
    let malformed = DecodeError::Malformed(what);
    if media_type.len() > MEDIA_TYPE_BYTES_MAX {
        return Err(malformed);
    }
    let content = match content {
        INLINE => Content::Inline(bytes),
        LARGE => Content::Large(ValueRef::decode(&bytes).map_err(|_| malformed)?),
        _ => return Err(malformed),
    };
    Ok(Value { content, media_type })
}

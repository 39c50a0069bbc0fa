//! The objects of large values, as clients exchange them with a node: what they lack, and frames with bytes.
//!
//! A frame is `kind u8 ‖ length u32 (little-endian) ‖ bytes`. Objects have no id in a frame: it is the BLAKE3 hash
//! of their bytes.

use std::fmt;
use std::str::FromStr;

use flotilla_types::{NodeId, ObjectId, ObjectRef};
use serde::{Deserialize, Serialize};

use crate::UploadId;

/// The media type of an encoded value reference.
pub const VALUE_REF_MEDIA_TYPE: &str = "application/vnd.flotilla.value-ref";
/// References, or ids, of one call at most.
pub const OBJECT_REFS_MAX: usize = 4_096;
/// Objects whose bytes `objects.fetch` returns, at most.
pub const OBJECTS_FETCHED_MAX: usize = 64;
/// Objects of one upload request, at most.
pub const UPLOAD_OBJECTS_MAX: usize = 4_096;
/// Body of one upload request, also once it is decompressed, bytes.
pub const UPLOAD_BYTES_MAX: usize = 4 << 20;
/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 1 + 4;
/// Bytes in a frame at most: the longest object.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;

/// An object's id in JSON: 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(pub ObjectId);

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for ObjectName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        ObjectId::from_str(&text).map(Self).map_err(<D::Error as serde::de::Error>::custom)
    }
}

/// A reference in JSON: an object, how many levels of lists are below it, and the bytes of the value in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectNeed {
    /// The object.
    pub id: ObjectName,
    /// 0: a chunk; 1: a list of chunks; 2: a list of lists.
    pub height: u8,
    /// Length of a chunk; bytes of the value below a list.
    pub bytes: u64,
}

impl From<ObjectRef> for ObjectNeed {
    fn from(ObjectRef { id, height, bytes }: ObjectRef) -> Self {
        Self { id: ObjectName(id), height, bytes }
    }
}

impl From<ObjectNeed> for ObjectRef {
    fn from(ObjectNeed { id, height, bytes }: ObjectNeed) -> Self {
        Self { id: id.0, height, bytes }
    }
}

/// Parameters of `objects.need`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeedRequest {
    /// The collection to which the value will be written.
    pub collection: String,
    /// The upload that goes on; absent to begin one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
    /// What is asked for. At most [`OBJECT_REFS_MAX`].
    pub refs: Vec<ObjectNeed>,
}

/// Result of `objects.need`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeedReply {
    /// The upload, which holds what is here.
    pub upload: UploadId,
    /// When the upload ends unless it is used before.
    pub expires_in_ms: u64,
    /// What the node lacks: of the objects asked for, and of all below those that are here. If there are
    /// [`OBJECT_REFS_MAX`], there may be more: upload these and ask again.
    pub missing: Vec<ObjectName>,
}

/// Answer to `POST /v1/uploads/{upload}/objects`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadReply {
    /// Objects that were stored.
    pub stored: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Parameters of `objects.missing`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MissingRequest {
    /// What is asked for. At most [`OBJECT_REFS_MAX`].
    pub refs: Vec<ObjectNeed>,
}

/// Result of `objects.missing`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingReply {
    /// What the node lacks, as in [`NeedReply::missing`].
    pub missing: Vec<ObjectName>,
}

/// Parameters of `objects.fetch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchRequest {
    /// At most [`OBJECTS_FETCHED_MAX`].
    pub ids: Vec<ObjectName>,
}

/// Result of `objects.fetch`, in the order of the ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReply {
    /// One for each id.
    pub objects: Vec<FetchedObject>,
}

/// The bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedObject {
    /// Its id.
    pub id: ObjectName,
    /// Its bytes in base64; absent if the node does not have it, or if the objects before it filled the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

/// Parameters of `objects.pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// What to fetch to the node, with all below. At most [`OBJECT_REFS_MAX`].
    pub refs: Vec<ObjectNeed>,
    /// The node to ask; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeId>,
}

/// Result of `objects.pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullReply {
    /// The upload that holds what is here now.
    pub upload: UploadId,
    /// When the upload ends.
    pub expires_in_ms: u64,
    /// What could not be fetched.
    pub missing: Vec<ObjectName>,
}

/// What the bytes of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A part of a value.
    Chunk,
    /// A list of chunks.
    List,
    /// A list of lists.
    Root,
    /// No object: the one that was asked for does not belong to the value. Without bytes.
    Absent,
}

impl FrameKind {
    const fn code(self) -> u8 {
        match self {
            Self::Chunk => 0,
            Self::List => 1,
            Self::Root => 2,
            Self::Absent => u8::MAX,
        }
    }
}

/// Bytes are not a sequence of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// There is no such kind.
    #[error("there are no frames of kind {0}")]
    Kind(u8),
    /// A frame is longer than any object, or empty though its kind is not.
    #[error("a frame of {0} bytes: none has this length")]
    Length(u32),
    /// The bytes end within a frame.
    #[error("the bytes end within a frame")]
    Cut,
}

/// Appends a frame. `bytes` has at most [`FRAME_BYTES_MAX`].
pub fn put_frame(to: &mut Vec<u8>, kind: FrameKind, bytes: &[u8]) {
    to.push(kind.code());
    to.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    to.extend_from_slice(bytes);
}

/// Takes frames out of bytes that arrive in pieces. Keeps no more than one frame.
#[derive(Debug, Default)]
pub struct FrameReader {
    header: Vec<u8>,
    frame: Option<(FrameKind, usize)>,
    body: Vec<u8>,
}

impl FrameReader {
    /// Takes bytes from the front of `input` until a frame is complete; none when it took all.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<(FrameKind, Vec<u8>)>, FrameError> {
        let (kind, length) = match self.frame {
            Some(frame) => frame,
            None => {
                take(&mut self.header, FRAME_HEADER_BYTES, input);
                let Ok([kind, length @ ..]) = <[u8; FRAME_HEADER_BYTES]>::try_from(&self.header[..]) else {
                    return Ok(None);
                };
                let frame = header(kind, u32::from_le_bytes(length))?;
                self.header.clear();
                *self.frame.insert(frame)
            }
        };
        take(&mut self.body, length, input);
        if self.body.len() < length {
            return Ok(None);
        }
        self.frame = None;
        Ok(Some((kind, std::mem::take(&mut self.body))))
    }

    /// Checks that no frame has begun.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.frame.is_none() && self.header.is_empty() { Ok(()) } else { Err(FrameError::Cut) }
    }
}

fn header(kind: u8, length: u32) -> Result<(FrameKind, usize), FrameError> {
    let known = match kind {
        0 => FrameKind::Chunk,
        1 => FrameKind::List,
        2 => FrameKind::Root,
        u8::MAX => FrameKind::Absent,
        other => return Err(FrameError::Kind(other)),
    };
    if length > FRAME_BYTES_MAX || (length == 0) != (known == FrameKind::Absent) {
        return Err(FrameError::Length(length));
    }
    Ok((known, length as usize))
}

/// Moves bytes from the front of `input` until `to` has `length`. The memory grows with what has arrived.
fn take(to: &mut Vec<u8>, length: usize, input: &mut &[u8]) {
    let (taken, rest) = input.split_at(input.len().min(length - to.len()));
    to.extend_from_slice(taken);
    *input = rest;
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<(FrameKind, Vec<u8>)>, FrameError> {
        let (mut reader, mut frames) = (FrameReader::default(), Vec::new());
        for mut piece in bytes.chunks(piece.max(1)) {
            while let Some(frame) = reader.next(&mut piece)? {
                frames.push(frame);
            }
        }
        reader.finish()?;
        Ok(frames)
    }

    #[test]
    fn frames_are_read_back_however_they_arrive() {
        let frames = [
            (FrameKind::Chunk, vec![7; 300]),
            (FrameKind::List, vec![8]),
            (FrameKind::Absent, Vec::new()),
            (FrameKind::Root, vec![9; 5]),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|(kind, object)| put_frame(&mut bytes, *kind, object));
        assert_eq!(bytes[..6], [0, 44, 1, 0, 0, 7]);
        for piece in [1, 2, 5, 6, 299, bytes.len()] {
            assert_eq!(read(&bytes, piece).as_deref(), Ok(&frames[..]), "{piece}");
        }
        for cut in 1..bytes.len() {
            let complete = [305, 311, 316].contains(&cut);
            assert_eq!(read(&bytes[..cut], 64).is_ok(), complete, "{cut}");
        }
    }

    #[test]
    fn frames_that_nobody_writes_are_refused_by_their_header() {
        assert_eq!(read(&[3, 1, 0, 0, 0, 0], 9), Err(FrameError::Kind(3)));
        assert_eq!(read(&[0, 1, 0, 16, 0], 9), Err(FrameError::Length(FRAME_BYTES_MAX + 1)));
        assert_eq!(read(&[1, 0, 0, 0, 0], 9), Err(FrameError::Length(0)), "no object is empty");
        assert_eq!(read(&[255, 1, 0, 0, 0, 0], 9), Err(FrameError::Length(1)));
    }

    #[test]
    fn ids_are_hexadecimal_digits() {
        let need = ObjectNeed { id: ObjectName(ObjectId::of(b"x")), height: 1, bytes: 9 };
        let text = serde_json::to_string(&need).expect("JSON");
        assert!(text.contains(&format!("\"{}\"", ObjectId::of(b"x"))), "{text}");
        assert_eq!(serde_json::from_str::<ObjectNeed>(&text).expect("a reference"), need);
        for bad in [r#"{"id":"00","height":0,"bytes":1}"#, r#"{"id":7,"height":0,"bytes":1}"#, r#"{"height":0}"#] {
            assert!(serde_json::from_str::<ObjectNeed>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_refused(bytes in vec(any::<u8>(), 0..64), piece in 1_usize..9) {
            if let Ok(frames) = read(&bytes, piece) {
                let mut written = Vec::new();
                frames.iter().for_each(|(kind, object)| put_frame(&mut written, *kind, object));
                prop_assert_eq!(written, bytes);
            }
        }
    }
}

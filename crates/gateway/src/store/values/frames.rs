//! Objects as clients send and get them: frames, compressed or not.

use std::io::Read as _;

use bytes::Bytes;
use flotilla_api::{FrameError, FrameKind, FrameReader, UPLOAD_BYTES_MAX, UPLOAD_OBJECTS_MAX, UploadReply, put_frame};
use flotilla_storage::ValueObjects;
use flotilla_types::ObjectId;
use flotilla_values::{FormatError, Kind, Level, ListNode, Need};

use super::{Damaged, Hold, StoreError, Values, failed, held_object};

/// Bytes that are decompressed at a time.
const PIECE_BYTES: usize = 64 << 10;
/// The longest window of a compressed stream, as a power of two: that of [`UPLOAD_BYTES_MAX`].
const WINDOW_LOG_MAX: u32 = 22;
const LEVEL: i32 = 1;

/// How frames are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Zstd,
}

/// Frames were not taken. Those before the one at fault were stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramesError {
    /// The bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The bytes do not decompress.
    #[error("the bytes are not a zstd stream, or need a longer window than 4 MiB")]
    Zstd,
    /// A list does not parse, or is of another kind than its frame says.
    #[error("a list does not parse: {0}")]
    List(FormatError),
    /// A frame of no object, or a list of another kind than its frame says.
    #[error("a frame is of another kind than its bytes")]
    Kind,
    /// There are too many objects or bytes.
    #[error("an upload request may have at most {UPLOAD_OBJECTS_MAX} objects and {UPLOAD_BYTES_MAX} bytes")]
    TooMuch,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Values {
    /// Stores the objects of these frames for an upload, durably.
    pub(crate) async fn store_frames(
        &self,
        upload: u64,
        frames: Bytes,
        encoding: Encoding,
    ) -> Result<UploadReply, FramesError> {
        // It stays when this is dropped.
        drop(Hold::of(self, upload)?);
        self.work(UPLOAD_BYTES_MAX, move |objects| {
            let mut storing =
                Storing { objects, upload, reader: FrameReader::default(), reply: UploadReply::default() };
            each_piece(&frames, encoding, |piece| storing.take(piece))?;
            storing.reader.finish()?;
            objects.sync().map_err(|error| failed(&error))?;
            Ok(storing.reply)
        })
        .await?
    }

    /// As many frames of no object.
    pub(crate) fn absent_frames(count: usize, encoding: Encoding) -> Result<Bytes, StoreError> {
        let mut frames = Vec::new();
        (0..count).for_each(|_| put_frame(&mut frames, FrameKind::Absent, &[]));
        encoded(frames, encoding)
    }

    /// The frames of these objects, which are held; one that is not of the value has an empty frame.
    pub(crate) async fn load_frames(
        &self,
        objects: Vec<Option<Need>>,
        encoding: Encoding,
    ) -> Result<Result<Bytes, Damaged>, StoreError> {
        let bytes: usize = objects.iter().flatten().map(frame_bytes).sum();
        self.work(bytes, move |store| {
            let mut frames = Vec::with_capacity(bytes);
            for need in &objects {
                let Some(need) = need else {
                    put_frame(&mut frames, FrameKind::Absent, &[]);
                    continue;
                };
                let object = match held_object(store, need)? {
                    Ok(object) => object,
                    Err(damaged) => return Ok(Err(damaged)),
                };
                put_frame(&mut frames, frame_kind(need), &object);
            }
            encoded(frames, encoding).map(Ok)
        })
        .await?
    }
}

/// Frames of zstd, one after the other, are one stream.
fn encoded(frames: Vec<u8>, encoding: Encoding) -> Result<Bytes, StoreError> {
    match encoding {
        Encoding::Plain => Ok(frames.into()),
        Encoding::Zstd => {
            zstd::bulk::compress(&frames, LEVEL).map(Bytes::from).map_err(|_| StoreError::ObjectsUnavailable)
        }
    }
}

/// Bytes of an object's frame at most.
pub(crate) fn frame_bytes(need: &Need) -> usize {
    let object = match need.kind {
        Kind::Chunk => usize::try_from(need.bytes).unwrap_or(usize::MAX),
        Kind::List(_) => ListNode::ENCODED_BYTES_MAX,
    };
    object.saturating_add(flotilla_api::FRAME_HEADER_BYTES)
}

fn frame_kind(need: &Need) -> FrameKind {
    match need.kind {
        Kind::Chunk => FrameKind::Chunk,
        Kind::List(Level::Leaf) => FrameKind::List,
        Kind::List(Level::Root) => FrameKind::Root,
    }
}

/// Calls `take` with the decoded bytes, piece by piece.
fn each_piece(
    frames: &[u8],
    encoding: Encoding,
    mut take: impl FnMut(&[u8]) -> Result<(), FramesError>,
) -> Result<(), FramesError> {
    if encoding == Encoding::Plain {
        return take(frames);
    }
    let mut decoder = zstd::stream::read::Decoder::new(frames).map_err(|_| FramesError::Zstd)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(|_| FramesError::Zstd)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        let read = decoder.read(&mut piece).map_err(|_| FramesError::Zstd)?;
        bytes += read;
        if bytes > UPLOAD_BYTES_MAX {
            return Err(FramesError::TooMuch);
        }
        if read == 0 {
            return Ok(());
        }
        take(&piece[..read])?;
    }
}

/// Frames on their way into the store.
struct Storing<'a> {
    objects: &'a dyn ValueObjects,
    upload: u64,
    reader: FrameReader,
    reply: UploadReply,
}

impl Storing<'_> {
    fn take(&mut self, mut piece: &[u8]) -> Result<(), FramesError> {
        while let Some((kind, object)) = self.reader.next(&mut piece)? {
            let children = children(kind, &object)?;
            self.reply.stored += 1;
            self.reply.bytes += object.len() as u64;
            if self.reply.stored > UPLOAD_OBJECTS_MAX as u64 {
                return Err(FramesError::TooMuch);
            }
            let id = ObjectId::of(&object);
            self.objects.store(self.upload, id, object.into(), &children).map_err(StoreError::from)?;
        }
        Ok(())
    }
}

/// What an object needs, by its frame's kind: the bytes of a chunk may look like a list.
fn children(kind: FrameKind, object: &[u8]) -> Result<Vec<ObjectId>, FramesError> {
    let level = match kind {
        FrameKind::Chunk => return Ok(Vec::new()),
        FrameKind::List => Level::Leaf,
        FrameKind::Root => Level::Root,
        FrameKind::Absent => return Err(FramesError::Kind),
    };
    let list = ListNode::decode(object).map_err(FramesError::List)?;
    if list.level() != level {
        return Err(FramesError::Kind);
    }
    Ok(list.needs().map(|need| need.id).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_hostile::{attack, mutated};
    use proptest::prelude::*;

    use flotilla_values::{Chunking, cut};

    use super::{
        super::{memory::MemoryObjects, tests::content},
        *,
    };

    const UPLOAD: u64 = 7;

    async fn store(frames: &[u8], encoding: Encoding) -> (Result<UploadReply, FramesError>, Arc<MemoryObjects>) {
        let here = Arc::new(MemoryObjects::default());
        here.begin_upload(UPLOAD, super::super::HOLD_TIME).expect("an upload");
        let frames = Bytes::copy_from_slice(frames);
        (here.values(Vec::new()).store_frames(UPLOAD, frames, encoding).await, here)
    }

    fn frames(objects: &[(FrameKind, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        objects.iter().for_each(|(kind, object)| put_frame(&mut bytes, *kind, object));
        bytes
    }

    #[tokio::test]
    async fn frames_are_stored_durably_and_held_whether_compressed_or_not() {
        let plain = frames(&[(FrameKind::Chunk, b"one"), (FrameKind::Chunk, &[7; 200_000])]);
        let compressed = zstd::bulk::compress(&plain, LEVEL).expect("compressed");
        for (bytes, encoding) in [(&plain, Encoding::Plain), (&compressed, Encoding::Zstd)] {
            let (reply, here) = store(bytes, encoding).await;
            assert_eq!(reply, Ok(UploadReply { stored: 2, bytes: 200_003 }));
            here.collect();
            assert!(here.is_durable() && here.ids().contains(&ObjectId::of(b"one")));
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_or_no_list_or_too_much_is_refused() {
        let refused = async |bytes: &[u8], encoding| store(bytes, encoding).await.0.expect_err("refused");
        let plain = async |objects: &[(FrameKind, &[u8])]| refused(&frames(objects), Encoding::Plain).await;
        assert_eq!(plain(&[(FrameKind::Absent, b"")]).await, FramesError::Kind);
        assert_eq!(plain(&[(FrameKind::List, b"x")]).await, FramesError::List(FormatError::NotAList));
        let mut long = cut(&content(2 << 20), Chunking::default()).expect("not too long");
        let root = long.objects.pop().expect("a root").bytes;
        assert_eq!(plain(&[(FrameKind::List, &root)]).await, FramesError::Kind);
        assert!(
            store(&frames(&[(FrameKind::Root, &root), (FrameKind::Chunk, &root)]), Encoding::Plain).await.0.is_ok()
        );
        assert_eq!(refused(&[0, 9, 0, 0, 0, 1], Encoding::Plain).await, FramesError::Frame(FrameError::Cut));
        assert_eq!(refused(b"not zstd", Encoding::Zstd).await, FramesError::Zstd);
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], LEVEL).expect("compressed");
        assert!(matches!(refused(&bomb, Encoding::Zstd).await, FramesError::Frame(_) | FramesError::TooMuch));
        let many: Vec<(FrameKind, &[u8])> = vec![(FrameKind::Chunk, b"x"); UPLOAD_OBJECTS_MAX + 1];
        assert_eq!(plain(&many).await, FramesError::TooMuch);
        let object = vec![7; 1 << 20];
        let long = frames(&[(FrameKind::Chunk, &object[..]); 5]);
        let long = zstd::bulk::compress(&long, LEVEL).expect("compressed");
        assert_eq!(refused(&long, Encoding::Zstd).await, FramesError::TooMuch, "once it is decompressed");
    }

    #[tokio::test]
    async fn an_upload_that_has_ended_takes_nothing() {
        let values = Arc::new(MemoryObjects::default()).values(Vec::new());
        let stored = values.store_frames(UPLOAD, frames(&[(FrameKind::Chunk, b"x")]).into(), Encoding::Plain).await;
        assert_eq!(stored, Err(FramesError::Store(StoreError::UploadEnded)));
    }

    #[test]
    fn hostile_frames_are_stored_or_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let object = proptest::collection::vec(any::<u8>(), 1..40);
        let valid = proptest::collection::vec((0..3_usize, object), 0..4).prop_map(|objects| {
            let kinds = [FrameKind::Chunk, FrameKind::List, FrameKind::Root];
            let objects: Vec<_> = objects.iter().map(|(kind, object)| (kinds[*kind], &object[..])).collect();
            frames(&objects)
        });
        attack(300, mutated(valid), |bytes| {
            for encoding in [Encoding::Plain, Encoding::Zstd] {
                let (reply, here) = runtime.block_on(store(&bytes, encoding));
                assert!(reply.is_err() || reply.is_ok_and(|reply| here.ids().len() as u64 <= reply.stored));
            }
        });
    }
}

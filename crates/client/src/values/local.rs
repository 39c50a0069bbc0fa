//! A value that was cut here: its reference, and where to find each of its objects.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use flotilla_api::FrameKind;
use flotilla_types::ObjectId;
use flotilla_values::{Chunking, Cutter, Finished, ListNode, Object, ObjectKind, ValueRef};

use super::{
    LARGE_VALUE_BYTES_MAX,
    collection::{OBJECTS_FROM_MIN, Settings},
    source::{ValueSource, blocking},
};
use crate::{Client, ClientError};

/// A value that is ready to be stored, and to be compared with what is stored.
///
/// Takes memory for its list of objects: about 100 bytes for each 16 KiB of the value.
#[derive(Debug)]
pub struct LocalValue {
    pub(super) source: ValueSource,
    /// How it was cut; none for a value that is stored inside its record.
    pub(super) cut: Option<Cut>,
    pub(super) progress: Progress,
}

/// How many bytes of a value the cluster has.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU64);

impl Progress {
    pub(super) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A value in objects.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) reference: ValueRef,
    /// Each object once, with its number: children have lower ones than their parents.
    objects: BTreeMap<ObjectId, (u32, Place)>,
}

/// Where the bytes of an object are.
#[derive(Debug)]
enum Place {
    /// In the source.
    Chunk { offset: u64, bytes: u32 },
    /// Here: the source does not have them.
    List { bytes: Bytes, node: ListNode },
}

/// An object that can be read from the source.
#[derive(Debug, Clone)]
pub(super) struct LocalObject {
    pub(super) id: ObjectId,
    pub(super) kind: FrameKind,
    pub(super) bytes: usize,
    offset: u64,
    list: Option<Bytes>,
}

impl LocalValue {
    /// The content.
    #[must_use]
    pub fn source(&self) -> &ValueSource {
        &self.source
    }

    /// The length, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.source.len()
    }

    /// How many bytes of it the cluster has, as far as a put that is under way knows. Stays 0 for a value that goes
    /// as a whole.
    #[must_use]
    pub fn bytes_there(&self) -> u64 {
        self.progress.0.load(Ordering::Relaxed).min(self.bytes())
    }
}

impl Client {
    /// Reads a value and cuts it as this collection does it.
    ///
    /// # Errors
    /// The source cannot be read, or the value is longer than [`LARGE_VALUE_BYTES_MAX`].
    pub async fn prepare(&self, collection: &str, source: impl Into<ValueSource>) -> Result<LocalValue, ClientError> {
        let source = source.into();
        if source.len() > LARGE_VALUE_BYTES_MAX {
            return Err(ClientError::TooLong { bytes_max: LARGE_VALUE_BYTES_MAX });
        }
        let settings = match self.collections.get(collection) {
            _ if source.len() <= OBJECTS_FROM_MIN => None,
            Some(settings) => settings,
            None => self.load_settings(collection).await?,
        };
        let cut = match settings {
            Some(Settings { objects_from, chunking }) if source.len() > objects_from => {
                let reader = source.clone();
                let cut = blocking(move || Cut::new(&reader, chunking)).await;
                Some(cut.map_err(|source| ClientError::Source { what: "the value", source })?)
            }
            _ => None,
        };
        Ok(LocalValue { source, cut, progress: Progress::default() })
    }
}

impl Cut {
    /// Cuts all of the source. Blocks.
    pub(super) fn new(source: &ValueSource, chunking: Chunking) -> io::Result<Self> {
        let too_long = |error| io::Error::new(io::ErrorKind::FileTooLarge, error);
        let mut cutter = Cutter::new(chunking, LARGE_VALUE_BYTES_MAX);
        let mut objects = BTreeMap::new();
        let mut add = |object: Object| {
            let number = objects.len() as u32;
            if let Entry::Vacant(entry) = objects.entry(object.id) {
                let place = match object.kind {
                    ObjectKind::Chunk { offset } => Place::Chunk { offset, bytes: object.bytes.len() as u32 },
                    ObjectKind::List(node) => Place::List { bytes: object.bytes, node },
                };
                entry.insert((number, place));
            }
        };
        for piece in source.pieces() {
            let piece = piece?;
            let mut rest = &piece[..];
            while let Some(object) = cutter.push(&mut rest).map_err(too_long)? {
                add(object);
            }
        }
        let Finished { value: reference, objects: last } = cutter.finish();
        last.into_iter().for_each(add);
        Ok(Self { reference, objects })
    }

    /// How many objects there are, each counted once.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Length of all chunks but these.
    pub(super) fn bytes_without(&self, missing: &BTreeSet<ObjectId>) -> u64 {
        let bytes_of = |id| match self.objects.get(id) {
            Some((_, Place::Chunk { bytes, .. })) => u64::from(*bytes),
            Some((_, Place::List { .. })) | None => 0,
        };
        self.reference.bytes().saturating_sub(missing.iter().map(bytes_of).sum())
    }

    /// The list in this object if it is one; `None` if the value has no such object.
    pub(super) fn object(&self, id: ObjectId) -> Option<(u32, Option<&ListNode>)> {
        self.objects.get(&id).map(|(number, place)| match place {
            Place::Chunk { .. } => (*number, None),
            Place::List { node, .. } => (*number, Some(node)),
        })
    }

    /// Where to read these objects, children before parents. Others are left out.
    pub(super) fn locate(&self, ids: impl Iterator<Item = ObjectId>) -> Vec<LocalObject> {
        let mut found: Vec<_> =
            ids.filter_map(|id| self.objects.get(&id).map(|(number, place)| (number, id, place))).collect();
        found.sort_unstable_by_key(|(number, ..)| **number);
        let locate = |id, place: &Place| match place {
            Place::Chunk { offset, bytes } => {
                LocalObject { id, kind: FrameKind::Chunk, bytes: *bytes as usize, offset: *offset, list: None }
            }
            Place::List { bytes, node } => {
                let kind = super::frames::list_kind(node.level());
                LocalObject { id, kind, bytes: bytes.len(), offset: 0, list: Some(bytes.clone()) }
            }
        };
        found.into_iter().map(|(_, id, place)| locate(id, place)).collect()
    }
}

impl LocalObject {
    /// Whether it is a part of the list of chunks.
    pub(super) fn is_list(&self) -> bool {
        self.list.is_some()
    }

    /// Reads the bytes. `None` if they are not what they were when the value was cut. Blocks.
    pub(super) fn read(&self, source: &ValueSource) -> io::Result<Option<Bytes>> {
        let bytes = match &self.list {
            Some(list) => return Ok(Some(list.clone())),
            None => match source.slice(self.offset, self.bytes) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                read => read?,
            },
        };
        Ok((ObjectId::of(&bytes) == self.id).then_some(bytes))
    }
}

//! Reading a part of a value, chunk by chunk.

use std::{collections::VecDeque, ops::Range, time::Duration};

use bytes::Bytes;
use flotilla_types::{NodeId, ObjectRef, Refs};
use flotilla_values::{CHUNK_BYTES_MAX, Need, Reader, Slice, Step, ValueRef};
use futures_util::{Stream, stream};
use tokio::task::JoinHandle;

use super::{Hold, StoreError, Values};

/// Chunks that are read ahead of the one that is sent.
pub(crate) const AHEAD_MAX: usize = 2;
/// The longest chunk of the usual chunking; a reader is counted as if it had such ones.
const USUAL_CHUNK_BYTES: usize = 64 << 10;
/// Up to this length a part of a value is looked up by itself; the rest of the value is not looked at.
const PART_BYTES_MAX: u64 = 1 << 20;

/// A part of a value whose objects are here, and held until this is dropped.
pub(crate) struct ValueReader {
    hold: Hold,
    /// The nodes that have the value.
    from: Vec<NodeId>,
    steps: Steps,
    ahead: VecDeque<(Slice, Reading)>,
}

/// The bytes of a chunk, if it is here.
type Reading = JoinHandle<Result<Option<Bytes>, StoreError>>;

/// What is left of a part.
enum Steps {
    /// The lists are read while their turn comes.
    Listed(Reader),
    /// Every chunk is known.
    Chunks(VecDeque<Slice>),
}

impl ValueReader {
    /// Prepares to read these bytes of a value. What is not here is fetched from `from` first.
    ///
    /// # Errors
    /// [`StoreError::ObjectsMissing`] if an object cannot be had: the record may have been overwritten since it was
    /// read.
    pub(crate) async fn open(
        values: &Values,
        value: &ValueRef,
        range: Range<u64>,
        from: Vec<NodeId>,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let invalid = |_| StoreError::Invalid("the range is not within the value");
        let hold = Hold::begin(values)?;
        let is_part = range.end - range.start.min(range.end) <= PART_BYTES_MAX.min(value.bytes() / 4);
        let known =
            if is_part { chunks_of(values, Reader::new(value, range.clone()).map_err(invalid)?).await? } else { None };
        if let Some(chunks) = known {
            let refs: Refs = chunks.iter().map(|slice| ObjectRef::from(slice.need)).collect();
            hold.gather(&refs, from.clone(), timeout).await?;
            return Ok(Self { hold, from, steps: Steps::Chunks(chunks), ahead: VecDeque::new() });
        }
        hold.gather(&value.refs(), from.clone(), timeout).await?;
        let reader = Reader::new(value, range).map_err(invalid)?;
        Ok(Self { hold, from, steps: Steps::Listed(reader), ahead: VecDeque::new() })
    }

    /// Bytes of memory that a reader takes at most.
    pub(crate) fn bytes_held_max(value: &ValueRef) -> usize {
        let chunk = u64::from(CHUNK_BYTES_MAX).min(value.bytes());
        (AHEAD_MAX + 1) * usize::try_from(chunk).unwrap_or(0).min(USUAL_CHUNK_BYTES)
    }

    /// The next bytes; none at the end. An object that was damaged since the reader was opened is fetched again.
    ///
    /// # Errors
    /// An object is damaged here and cannot be had from other nodes, or the store fails. The reader is of no use
    /// afterwards.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.hold.renew()?;
        while self.ahead.len() <= AHEAD_MAX {
            let Some(slice) = self.steps.next(&self.hold, &self.from).await? else { break };
            let (values, Need { id, bytes, .. }) = (self.hold.values().clone(), slice.need);
            self.ahead.push_back((slice, tokio::spawn(async move { values.object(id, bytes).await })));
        }
        let Some((slice, read)) = self.ahead.pop_front() else { return Ok(None) };
        let chunk = match read.await.map_err(|_| StoreError::ObjectsUnavailable)?? {
            Some(chunk) => chunk,
            None => self.hold.restore(slice.need, &self.from).await?,
        };
        slice.of(&chunk).map(Some).map_err(|_| StoreError::ObjectsUnavailable)
    }

    /// The bytes as a stream.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, StoreError>> + Send {
        stream::try_unfold(self, async |mut reader| Ok(reader.next().await?.map(|bytes| (bytes, reader))))
    }
}

impl Drop for ValueReader {
    fn drop(&mut self) {
        self.ahead.iter().for_each(|(_, read)| read.abort());
    }
}

impl Steps {
    async fn next(&mut self, hold: &Hold, from: &[NodeId]) -> Result<Option<Slice>, StoreError> {
        let reader = match self {
            Self::Chunks(chunks) => return Ok(chunks.pop_front()),
            Self::Listed(reader) => reader,
        };
        loop {
            match reader.step() {
                None => return Ok(None),
                Some(Step::Chunk(slice)) => return Ok(Some(slice)),
                Some(Step::List(need)) => {
                    let list = match hold.values().object(need.id, 0).await? {
                        Some(list) => list,
                        None => hold.restore(need, from).await?,
                    };
                    reader.supply(&list).map_err(|_| StoreError::ObjectsUnavailable)?;
                }
            }
        }
    }
}

/// The chunks of a part, if all lists on the way are here.
async fn chunks_of(values: &Values, mut reader: Reader) -> Result<Option<VecDeque<Slice>>, StoreError> {
    let mut chunks = VecDeque::new();
    while let Some(step) = reader.step() {
        match step {
            Step::Chunk(slice) => chunks.push_back(slice),
            Step::List(need) => {
                let Some(list) = values.object(need.id, 0).await? else { return Ok(None) };
                reader.supply(&list).map_err(|_| StoreError::ObjectsUnavailable)?;
            }
        }
    }
    Ok(Some(chunks))
}

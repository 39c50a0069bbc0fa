//! Storing a value while it arrives.

use std::mem;

use bytes::Bytes;
use flotilla_storage::ValueObjects;
use flotilla_types::ObjectId;
use flotilla_values::{Chunking, Cutter, Object, TooLong, ValueRef};

use super::{Hold, StoreError};

/// Bytes that a writer collects before they are cut and stored.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Cuts a value into objects and stores them, while its bytes are pushed. What it has stored is dropped with it.
pub(crate) struct ValueWriter {
    hold: Hold,
    /// None after an error.
    cutter: Option<Cutter>,
    bytes: u64,
    bytes_max: u64,
    batch: Vec<Bytes>,
    batch_bytes: usize,
}

impl ValueWriter {
    /// For one value of at most `bytes_max` bytes, whose objects the hold keeps.
    pub(crate) fn new(hold: Hold, chunking: Chunking, bytes_max: u64) -> Self {
        let cutter = Some(Cutter::new(chunking, bytes_max));
        Self { hold, cutter, bytes: 0, bytes_max, batch: Vec::new(), batch_bytes: 0 }
    }

    /// Bytes of memory that a writer takes at most: its batch, the chunks that are cut and the block that is hashed.
    pub(crate) fn bytes_held_max(chunking: Chunking) -> usize {
        BATCH_BYTES_MAX + 2 * chunking.max() as usize + (64 << 10)
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The value is too long, or the store refuses it. The writer is of no use afterwards.
    pub(crate) async fn push(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(self.too_long());
        }
        while !bytes.is_empty() {
            let taken = bytes.split_to(bytes.len().min(BATCH_BYTES_MAX - self.batch_bytes));
            self.batch_bytes += taken.len();
            self.batch.push(taken);
            if self.batch_bytes == BATCH_BYTES_MAX {
                self.settle().await?;
            }
        }
        Ok(())
    }

    /// Stores what has arrived, but for the beginning of a chunk. To be called when the client has sent nothing for a
    /// while, so that it is not kept in memory until the client goes on.
    pub(crate) async fn settle(&mut self) -> Result<(), StoreError> {
        self.hold.renew()?;
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut cutter = self.cutter.take().ok_or(StoreError::ObjectsUnavailable)?;
        let (batch, upload, too_long) = (mem::take(&mut self.batch), self.hold.upload(), self.too_long());
        let cut = move |objects: &dyn ValueObjects| {
            for bytes in &batch {
                let mut rest = &bytes[..];
                while let Some(object) = cutter.push(&mut rest).map_err(|TooLong { .. }| too_long.clone())? {
                    store(objects, upload, object)?;
                }
            }
            Ok::<_, StoreError>(cutter)
        };
        self.cutter = Some(self.hold.values().work(mem::take(&mut self.batch_bytes), cut).await??);
        Ok(())
    }

    /// Ends the value. Its objects are durable after [`Hold::sync`].
    pub(crate) async fn finish(mut self) -> Result<(ValueRef, Hold), StoreError> {
        self.settle().await?;
        let (cutter, upload) = (self.cutter.take().ok_or(StoreError::ObjectsUnavailable)?, self.hold.upload());
        let finish = move |objects: &dyn ValueObjects| {
            let finished = cutter.finish();
            finished.objects.into_iter().try_for_each(|object| store(objects, upload, object))?;
            Ok::<_, StoreError>(finished.value)
        };
        let value = self.hold.values().work(0, finish).await??;
        Ok((value, self.hold))
    }

    #[cfg(test)]
    pub(crate) fn batch_bytes(&self) -> usize {
        self.batch.iter().map(Bytes::len).sum()
    }

    fn too_long(&self) -> StoreError {
        StoreError::ValueTooLarge { limit_bytes: self.bytes_max }
    }
}

fn store(objects: &dyn ValueObjects, upload: u64, object: Object) -> Result<(), StoreError> {
    let children: Vec<ObjectId> = object.children().collect();
    Ok(objects.store(upload, object.id, object.bytes, &children)?)
}

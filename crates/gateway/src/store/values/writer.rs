//! Storing a value while it arrives.

use flotilla_types::ObjectId;
use flotilla_values::{Chunking, Cutter, Object, ValueRef};

use super::{Hold, StoreError};

/// Bytes of objects that a writer collects before it stores them, unless one is longer.
pub(crate) const BATCH_BYTES_MAX: usize = 256 << 10;
/// Bytes that are cut before other tasks get a turn.
pub(crate) const CUT_BYTES: usize = 64 << 10;

/// Cuts a value into objects and stores them, while its bytes are pushed. What it has stored is dropped with it.
pub(crate) struct ValueWriter {
    hold: Hold,
    cutter: Cutter,
    bytes_max: u64,
    batch: Vec<Object>,
    batch_bytes: usize,
}

impl ValueWriter {
    /// For one value of at most `bytes_max` bytes, whose objects the hold keeps.
    pub(crate) fn new(hold: Hold, chunking: Chunking, bytes_max: u64) -> Self {
        Self { hold, cutter: Cutter::new(chunking, bytes_max), bytes_max, batch: Vec::new(), batch_bytes: 0 }
    }

    /// Bytes of memory that a writer takes at most: its batch, the chunk that is cut and the one that is hashed.
    pub(crate) fn bytes_held_max(chunking: Chunking) -> usize {
        let chunk = chunking.max() as usize;
        BATCH_BYTES_MAX.max(chunk) + chunk + (64 << 10)
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The value is too long, or the store refuses it. The writer is of no use afterwards.
    pub(crate) async fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.cutter.bytes() + bytes.len() as u64 > self.bytes_max {
            return Err(self.too_long());
        }
        self.hold.renew()?;
        for mut piece in bytes.chunks(CUT_BYTES) {
            while let Some(object) = self.cutter.push(&mut piece).map_err(|_| self.too_long())? {
                self.add(object).await?;
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Stores what is ready: to be called when the client has sent nothing for a while, so that it is not kept in
    /// memory until the client goes on.
    pub(crate) async fn settle(&mut self) -> Result<(), StoreError> {
        self.hold.renew()?;
        self.store().await
    }

    /// Ends the value. Its objects are durable after [`Hold::sync`].
    pub(crate) async fn finish(mut self) -> Result<(ValueRef, Hold), StoreError> {
        let cutter = std::mem::replace(&mut self.cutter, Cutter::new(Chunking::default(), 0));
        let finished = cutter.finish();
        for object in finished.objects {
            self.add(object).await?;
        }
        self.store().await?;
        Ok((finished.value, self.hold))
    }

    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.batch.iter().map(|object| object.bytes.len()).sum()
    }

    async fn add(&mut self, object: Object) -> Result<(), StoreError> {
        if self.batch_bytes + object.bytes.len() > BATCH_BYTES_MAX {
            self.store().await?;
        }
        self.batch_bytes += object.bytes.len();
        self.batch.push(object);
        Ok(())
    }

    async fn store(&mut self) -> Result<(), StoreError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let (batch, upload) = (std::mem::take(&mut self.batch), self.hold.upload());
        let store = move |objects: &dyn flotilla_storage::ValueObjects| {
            batch.into_iter().try_for_each(|object| {
                let children: Vec<ObjectId> = object.children().collect();
                objects.store(upload, object.id, object.bytes, &children)
            })
        };
        Ok(self.hold.values().work(std::mem::take(&mut self.batch_bytes), store).await??)
    }

    fn too_long(&self) -> StoreError {
        StoreError::ValueTooLarge { limit_bytes: self.bytes_max }
    }
}
